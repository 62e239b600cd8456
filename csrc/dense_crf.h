// dense_crf: mean field of a fully connected CRF whose pairwise kernels are Gaussians, filtered on permutohedral
// lattices (Adams et al. 2010; Kraehenbuehl and Koltun 2011).
//
//   Q <- softmax(-unary);   steps times:   Q <- softmax(-unary + sum_k w_k n_k F_k(n_k Q))
//
// per pixel over the labels. Kernel 0 is the Gaussian of the place (x, y) / gaussian_sxy, kernel 1 that of the place
// and the colour, (x, y) / bilateral_sxy and (r, g, b) / bilateral_srgb. F_k: splat, blur, slice; n_k = (F_k(1) +
// 1e-20)^-1/2, the symmetric normalisation. The features and what follows of them up to the weights of the vertices are
// float32 whatever dtype is, so that all implementations agree on the simplices; the rest is computed in dtype.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct DenseCrf {
  const uint8_t* images;  // [batch, height, width, 3]
  const void* unary;      // [batch, sets, labels, height, width]  -log p; the sets of an image share its lattices
  void* probability;      // like unary, written
  DType dtype;            // f32 or f64, of unary and probability
  int64_t batch, sets, labels, height, width;  // labels >= 1
  int64_t steps;
  float gaussian_sxy, gaussian_weight;  // a weight of 0: no such kernel
  float bilateral_sxy, bilateral_srgb, bilateral_weight;
};

namespace cpu {
// Returns null, or what is wrong with the numbers in unary.
const char* dense_crf(const DenseCrf&, int threads);
}  // namespace cpu
}  // namespace advcam
