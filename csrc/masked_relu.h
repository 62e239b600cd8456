// masked_relu: bias, residual and ReLU (or ReLU6) in place, with one bit an element in the place of saved activations.
//
//   v = x + bias[channel] + residual;   x <- valid[row] ? min(max(v, 0), ceiling) : 0
//   bit = valid[row] and not (v <= 0 or v >= ceiling)
//
// and its gradient with respect to x (and to the residual), also in place: g <- bit ? g : 0.
// A NaN stays in x, and lets its gradient through, as it does in torch. Bit i of byte b belongs to element 8 b + i.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct MaskedRelu {
  void* x;               // [rows, channels]  written
  const void* bias;      // [channels]        f32, or f64 for an f64 x; or null
  const void* residual;  // [rows, channels]  like x, or null
  const uint8_t* valid;  // [rows]            0: outside the image; or null
  uint8_t* bits;         // [ceil(rows * channels / 8)], written; or null
  DType dtype;
  int64_t rows, channels;
  double ceiling;  // infinity: plain ReLU
};

struct MaskedReluBackward {
  void* gradient;       // [n]  written
  const uint8_t* bits;  // [ceil(n / 8)]
  DType dtype;
  int64_t n;
};

namespace cpu {
void masked_relu(const MaskedRelu&, int threads);
void masked_relu_backward(const MaskedReluBackward&, int threads);
}  // namespace cpu
namespace cuda {
// No workspace. Returns null, or the text of the CUDA error.
const char* masked_relu(const MaskedRelu&, void* workspace, int device, void* stream);
const char* masked_relu_backward(const MaskedReluBackward&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
