// random_walk: maps spread along the affinities of neighbouring pixels, and its gradient. No N x N matrix.
//
// Neighbours of a pixel are the offsets d = (dy, dx) with 0 < dy^2 + dx^2 < radius^2; those outside the image are
// dropped. The affinity A is symmetric and A_jj = 1. From a boundary b in 0..1, which stops a walk:
//
//   A_ij = min over the path of (1 - b)^scale;  x0 = map (1 - b)
//
// the path being every pixel of the offset's bounding box, ends included, at a squared distance < 1 from the line. From
// colours c: A_ij = exp(-scale |c_i - c_j|^2); x0 = map. Then, `steps` times, an average over the sources at each
// destination j:
//
//   x_j <- (1 - restart) sum_i x_i A_ij / S_j + restart x0_j,  S_j = sum_i A_ij
//
// so a map is a row vector that T = A / S, whose columns sum to 1, multiplies from the right.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct RandomWalk {
  const void* maps;                      // [batch, labels, height, width]
  const void* guide;                     // [batch, channels, height, width]: the boundary (one channel) or colours
  void* out;                             // [batch, labels, height, width], written
  int64_t batch, labels, height, width;  // of f32 or f64 elements, all contiguous
  int64_t channels, radius, steps;       // radius 1: no neighbours
  double scale, restart;                 // restart in 0..1
  DType dtype;
  bool color;
};

// With G the gradient by out. Intermediate states are kept every sqrt(steps) steps, and the ones between made again.
// Where several pixels of a path have the least (1 - b)^scale, the first one in raster order gets all of its gradient.
struct RandomWalkBackward {
  RandomWalk walk;       // its out is not looked at
  const void* gradient;  // [batch, labels, height, width]   G
  void* maps_gradient;   // [batch, labels, height, width]   written
  void* guide_gradient;  // [batch, channels, height, width] written
};

namespace cpu {
void random_walk(const RandomWalk&, int threads);
void random_walk_backward(const RandomWalkBackward&, int threads);
}  // namespace cpu
namespace cuda {
// The forward walk alone: the gradient of a CUDA tensor is plain PyTorch's (advcam_fast/ops/random_walk.py).
// workspace: random_walk_workspace elements of dtype, need not be cleared. Returns null, or the text of the CUDA error.
const char* random_walk(const RandomWalk&, void* workspace, int device, void* stream);
}  // namespace cuda

// The offsets of a radius that come after (0, 0) in raster order: the other half mirrors them.
inline int64_t half_stencil(int64_t radius) {
  int64_t count = 0;
  for (int64_t y = 0; y < radius; ++y)
    for (int64_t x = y ? 1 - radius : 1; x < radius; ++x) count += x * x + y * y < radius * radius;
  return count;
}

// Elements: affinities, their sums, (1 - b)^scale, and a state.
inline int64_t random_walk_workspace(const RandomWalk& c) {
  return c.batch * c.height * c.width * (half_stencil(c.radius) + 2 + c.labels);
}
}  // namespace advcam
