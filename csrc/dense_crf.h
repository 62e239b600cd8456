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
// Throws std::invalid_argument for a NaN, a minus infinity or a pixel of nothing but infinities in unary.
void dense_crf(const DenseCrf&, int threads);
}  // namespace cpu
namespace cuda {
// Where in the workspace each array begins, in bytes. It has room for lattices whose points share no vertex, for how
// many there are is known on the device alone; one lattice's arrays serve the other after it.
struct DenseCrfWorkspace {
  struct Part {
    int64_t points, corners, slots;  // corners: (d + 1) * points, the most vertices
    int64_t number, corner, weight, lower, upper, norm;
  };
  Part part[2];  // Gaussian, bilateral
  int64_t key, count, sum, value, message, bytes;

  explicit DenseCrfWorkspace(const DenseCrf& c) : bytes(0) {
    const int64_t pixels = c.height * c.width, size = c.dtype == DType::f64 ? 8 : 4;
    int64_t most_slots = 0, most_corners = 0;
    for (int k = 0; k < 2; ++k) {
      const bool used = (k ? c.bilateral_weight : c.gaussian_weight) != 0;
      const int64_t axes = k ? 6 : 3, points = used ? pixels + (pixels % 4 != 0) : 0;
      Part& p = part[k];
      p.points = points, p.corners = axes * points, p.slots = 1;
      while (p.slots * 4 < p.corners * 5) p.slots *= 2;
      p.number = place(4 * p.slots), p.corner = place(4 * p.corners), p.weight = place(4 * p.corners);
      p.lower = place(4 * axes * p.corners), p.upper = place(4 * axes * p.corners), p.norm = place(size * points);
      most_slots = p.slots > most_slots ? p.slots : most_slots;
      most_corners = p.corners > most_corners ? p.corners : most_corners;
    }
    key = place(8 * most_slots), count = place(2 * 256);
    // 16 bytes of values a vertex, as many channels as they hold, and a sum of 64 bits for each
    sum = place(16 / size * 8 * most_corners), value = place(16 * most_corners);
    message = place(size * c.sets * c.labels * pixels);
  }

 private:
  int64_t place(int64_t size) {
    const int64_t at = bytes;
    bytes += (size + 255) / 256 * 256;
    return at;
  }
};
// The workspace need not be cleared. A NaN in unary stays in its pixel. Returns null, or the text of the CUDA error.
const char* dense_crf(const DenseCrf&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
