// linear_head: the logits of a linear head at every position, and the gradient of its features.
//
//   z_{b,p,c} = sum over k of W_{c,k} F_{b,p,k}        dF_{b,p,k} = sum over c of W_{c,k} dz_{b,p,c}
//
// Weights, logits and sums are float32, whatever the features are: these are widened and rounded on their way through
// the registers, where a library's product wants copies of them, and has few channels to fill its vectors with.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct LinearHead {
  const void* features;  // [batch, positions, channels]
  const float* weight;   // [batch or 1, classes, channels]
  float* logits;         // [batch, positions, classes]  written
  DType dtype;           // of the features: f32 or bf16
  int64_t batch, positions, channels, classes;
  bool own_weights;  // each item has its own
};

struct LinearHeadBackward {
  const float* gradient;   // [batch, positions, classes]
  const float* weight;     // [batch or 1, classes, channels]
  void* feature_gradient;  // [batch, positions, channels]  written
  DType dtype;             // of the features' gradient: f32 or bf16
  int64_t batch, positions, channels, classes;
  bool own_weights;
};

namespace cpu {
bool linear_head_serves(DType dtype, int64_t channels);  // AVX-512, and channels that fill vectors
// Both throw where they do not serve.
void linear_head(const LinearHead&, int threads);
void linear_head_backward(const LinearHeadBackward&, int threads);
}  // namespace cpu
}  // namespace advcam
