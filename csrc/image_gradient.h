// image_gradient: the gradient of RGB images through a convolution of stride 2 whose weights are frozen.
//
//   dx_{y,x,c} = sum over k, l, m of g_{(y + p_0 - k) / 2, (x + p_1 - l) / 2, m} w_{m,c,k,l}
//
// over the elements for which both quotients are whole and lie within g. Sums in float32, rounded once (bf16 below its
// normal numbers counts as 0, as the processor has it). A library's transposed convolution leaves most of a vector
// empty: there are three channels to write. Here a vector is 16 neighbouring columns of g, for which its rows are
// turned from channels-last to planes of columns first.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct ImageGradient {
  const void* gradient;  // [batch, rows, columns, channels]
  const void* weight;    // [channels, 3, kernel[0], kernel[1]]
  void* x_gradient;      // [batch, height, width, 3]  written
  DType dtype;           // f32 or bf16
  int64_t batch, height, width, rows, columns, channels;
  int64_t kernel[2], padding[2];  // vertical, horizontal
};

namespace cpu {
constexpr int64_t kImageGradientKernel = 16;  // the longest side
// Whether this machine has the instructions (AVX-512; for bf16 its products of pairs), and the channels fill vectors.
bool image_gradient_serves(DType dtype, int64_t channels);
void image_gradient(const ImageGradient&, int threads);  // throws where it does not serve
}  // namespace cpu
}  // namespace advcam
