// climb_step: one ascent step on the images of every group (flip pair), in place.
//
//   m = max|g|,  lo = min x,  hi = max x            over the group, before the step
//   x <- clamp(x + step * g / (m + 1e-12), lo, hi)
//
// A NaN in g makes m, and so the whole group, NaN: nothing is hidden. Other groups are untouched by it.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct ClimbStep {
  void* image;           // [groups, n]  f32 or f64, written
  const void* gradient;  // [groups, n]  image f32: f32, bf16 or f16; image f64: f64
  void* network_input;   // [groups, n]  the new image rounded to network_dtype (bf16, f16), or null
  void* gradient_max;    // [groups]     image's dtype, written: m
  DType image_dtype, gradient_dtype, network_dtype;
  int64_t groups, n;  // the n elements of a group are one block, in one order for all tensors
  double step;
};

constexpr int kClimbStepParts = 64;  // partial results of a group
constexpr int kClimbStepFields = 3;  // max|g|, min x, max x

namespace cpu {
void climb_step(const ClimbStep&, int threads);
}
namespace cuda {
// workspace: [groups, kClimbStepParts, kClimbStepFields] of image's dtype; need not be cleared.
// Returns null, or the text of the CUDA error.
const char* climb_step(const ClimbStep&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
