// pointwise: a convolution whose kernel has one element and whose weights are frozen, with all that follows it in the
// same pass: bias, residual, rectifier and its bits, or, of a gradient, the bits of the rectifier that it goes through.
//
//   v_{p,m} = sum over c of x_{p,c} w_{c,m} + b_m + residual_{p,m}
//   y = v, or min(max(v, 0), ceiling) with bit = 0 < v < ceiling; 0 where a bit of `kept` is
//
// Sums in float32, rounded once (bf16 below its normal numbers counts as 0, as the processor has it), always of the
// same products in the same order. Bits as in masked_relu.h, which also says what becomes of NaN. A library's
// convolution is as fast in the middle of a large product, but every pass after it costs a third of a small one.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct Pointwise {
  const void* x;         // [batch, rows, columns, inputs], `x_step` apart
  const void* weight;    // of `dtype`, as pointwise_pack lays it out
  const float* bias;     // [outputs] or null
  const void* residual;  // laid out as y, or null; may be y
  void* y;               // [batch, rows, columns, outputs], `y_step` apart  written
  uint8_t* bits;         // of y  written; null: not wanted. Only with rectify
  const uint8_t* kept;   // of y, or null
  DType dtype;           // f32 or bf16
  bool rectify;
  double ceiling;
  int64_t batch, rows, columns, inputs, outputs;
  int64_t x_step[3], y_step[3];  // elements from one item, row, column to the next
};

namespace cpu {
constexpr int64_t kPointwiseOutputs = 16;  // wanted is a multiple
// Whether this machine has the instructions (AVX-512; for bf16 its products of pairs, but not the tiles of AMX, with
// which a library's convolution is the faster one), and the channels fill vectors.
bool pointwise_serves(DType dtype, int64_t inputs, int64_t outputs);
// [outputs, inputs] -> packed, of as many elements: blocks of 64 outputs (the last: of the rest), in them what one lane
// multiplies, for each output: [inputs / pack, outputs of the block, pack], pack = 2 for bf16 and 1 for float.
void pointwise_pack(DType dtype, const void* weight, void* packed, int64_t inputs, int64_t outputs);
void pointwise(const Pointwise&, int threads);  // throws where it does not serve
}  // namespace cpu
}  // namespace advcam
