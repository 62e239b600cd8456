// max_pool: the maximum over windows, and which element of its window each one is, in a byte.
//
//   y_o = max over k of x_(o s - p + k d), of what lies within x;  at_o = k, counted row by row
//
// The first of equal elements is taken, and a NaN before any number, the last one of several. Where nothing in a window
// is above -infinity at is 0. The gradient gathers: each x_i adds the gradients of the windows that took it, in the
// order of k, so that no two writers meet.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct Pooling {
  int64_t batch, height, width, channels;                 // of x
  int64_t rows, columns;                                  // of y
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // each vertical, horizontal; at most 256 elements a window
};

struct MaxPool {
  const void* x;  // [batch, height, width, channels]
  void* y;        // [batch, rows, columns, channels]  written
  uint8_t* at;    // like y                            written; or null
  DType dtype;
  Pooling pooling;
};

struct MaxPoolBackward {
  const void* gradient;  // [batch, rows, columns, channels]
  const uint8_t* at;     // like gradient
  void* x_gradient;      // [batch, height, width, channels]  written
  DType dtype;
  Pooling pooling;
};

namespace cpu {
void max_pool(const MaxPool&, int threads);
void max_pool_backward(const MaxPoolBackward&, int threads);
}  // namespace cpu
namespace cuda {
// No workspace. Returns null, or the text of the CUDA error.
const char* max_pool(const MaxPool&, void* workspace, int device, void* stream);
const char* max_pool_backward(const MaxPoolBackward&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
