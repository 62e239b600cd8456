// centroid_walk: every pixel moves along a displacement field to the centre of its instance.
//
// From its own place a pixel moves `steps` times by the field there, read bilinearly, and is kept within the image:
//
//   (y, x) <- clamp((y, x) + d(y, x))
//
// Where |d| < threshold the field is weak: centres of instances lie there. The 4-connected components of those pixels
// are numbered 1, 2, ... by their first pixels in raster order, and a pixel's label is the number of the component that
// holds its last place, rounded half to even, or 0 where that is in none. Every product and sum is rounded by itself,
// in the order of advcam_fast/ops/reference_walk.py, so that the bits are those of NumPy and PyTorch. A place that has
// met a NaN is NaN, with label 0.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct CentroidWalk {
  const void* displacement;  // [batch, 2, height, width]  dy, dx in pixels
  void* centroids;           // [batch, 2, height, width]  written: the last y, x
  int64_t* labels;           // [batch, height, width]     written
  int64_t batch, height, width, steps;
  double threshold;
  DType dtype;  // f32 or f64, of the field and the centroids
};

namespace cpu {
void centroid_walk(const CentroidWalk&, int threads);
}
namespace cuda {
constexpr int kCentroidWalkParts = 2;  // integers of four bytes for each pixel
// workspace: [batch, kCentroidWalkParts, height, width] of dtype or of any four bytes; need not be cleared. Returns
// null, or the text of the CUDA error.
const char* centroid_walk(const CentroidWalk&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
