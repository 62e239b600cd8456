// Where points lie in a permutohedral lattice: the simplex around each, its d + 1 vertices as integer keys and the
// weights of the point on them. One source for the CPU (many lanes) and for CUDA (one lane a thread).
//
// All of it is float32 in the order of Kraehenbuehl's code, without fused multiply-adds: another rounding would put
// points into other simplices. Compile with -ffp-contract=off.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "dense_crf.h"

#if defined(__CUDACC__)
#define ADVCAM_BOTH __host__ __device__ __forceinline__
#else
#define ADVCAM_BOTH inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)  // the host's compiler does not know it
#define ADVCAM_UNROLL _Pragma("unroll")
#else
#define ADVCAM_UNROLL
#endif

namespace advcam {
ADVCAM_BOTH float exact_multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// A vertex has d + 1 coordinates of sum 0, all equal to its colour modulo d + 1. Its key packs the first d, divided by
// d + 1 (rounded down), each less `low`, into `bits` bits.
template <int d>
struct LatticeShape {
  float scale[d];
  int low[d], shift[d];
  int bits;

  // most: the largest value of each feature; the smallest is 0.
  LatticeShape(std::initializer_list<float> largest) : bits(0) {
    const float* most = largest.begin();
    const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (d + 1));
    double rest = 0;  // the largest sum of the features behind this one
    for (int i = 0; i < d; ++i) {
      scale[i] = static_cast<float>(1.0 / std::sqrt((i + 2) * (i + 1)) * deviation);
      rest += double(most[i]) * scale[i];
    }
    for (int i = 0; i < d; ++i) {  // coordinate i lies between -i * feature i - 1 and the sum of the features i, ...
      const double least = i ? -i * double(most[i - 1]) * scale[i - 1] : 0;
      const double cells = rest / (d + 1) - least / (d + 1);
      low[i] = static_cast<int>(std::fmax(std::floor(least / (d + 1)), -1e9)) - 4;
      shift[i] = std::min(bits, 63);
      // a vertex and its neighbours, on both sides; 64 stands for any number of bits that is too large
      bits += static_cast<int>(std::fmin(std::ceil(std::log2(cells + 10)), 64));
      rest -= double(most[i]) * scale[i];
    }
  }

  // What is added to the key of a vertex to get that of its neighbour, one step up along `axis`; its colour is one
  // more.
  ADVCAM_BOTH int64_t up(int axis, int colour) const {
    int64_t all = 0, own = 0;
    ADVCAM_UNROLL
    for (int i = 0; i < d; ++i) (i == axis ? own : all) += (i == axis ? -1 : 1) * (int64_t(1) << shift[i]);
    return colour == d ? all : own;
  }
};

constexpr int kKeyBits = 60;  // there is room for a colour, and for a key that no vertex has

inline LatticeShape<2> gaussian_shape(const DenseCrf& c) {
  return {static_cast<float>(c.width - 1) / c.gaussian_sxy, static_cast<float>(c.height - 1) / c.gaussian_sxy};
}

inline LatticeShape<5> bilateral_shape(const DenseCrf& c) {
  const float colour = 255 / c.bilateral_srgb;
  return {static_cast<float>(c.width - 1) / c.bilateral_sxy, static_cast<float>(c.height - 1) / c.bilateral_sxy, colour,
          colour, colour};
}

// Null, or why these lattices cannot be.
inline const char* lattice_error(const DenseCrf& c) {
  if (c.height > (1 << 24) || c.width > (1 << 24) || c.height * c.width > (1 << 28))
    return "images: more than 2^28 pixels came";
  if (c.gaussian_weight != 0 && gaussian_shape(c).bits > kKeyBits)
    return "gaussian: the deviation is so small that keys of 60 bits do not hold the lattice of this size";
  if (c.bilateral_weight != 0 && bilateral_shape(c).bits > kKeyBits)
    return "bilateral: the deviations are so small that keys of 60 bits do not hold the lattice of this size";
  return nullptr;
}

// weight, key: [d + 1, lanes], by the colours of the vertices. Key: int32_t or int64_t, as the shape's bits want it.
template <int d, int lanes, class Key>
ADVCAM_BOTH void find_simplices(const LatticeShape<d>& shape, const float (&feature)[d][lanes],
                                float (&weight)[d + 1][lanes], Key (&key)[d + 1][lanes]) {
  constexpr float kRound = 12582912;  // 1.5 * 2^23: adding it rounds to nearest, ties to even
  constexpr float kDown = 1.0f / (d + 1);
  float position[d + 1][lanes], cell[d + 1][lanes], rest[d + 1][lanes], total[lanes];
  int rank[d + 1][lanes], sum[lanes];
  Key base[lanes];
  for (int n = 0; n < lanes; ++n) total[n] = 0, sum[n] = 0, base[n] = 0;
  ADVCAM_UNROLL
  for (int i = d; i > 0; --i) {
    for (int n = 0; n < lanes; ++n) {
      const float scaled = exact_multiply(feature[i - 1][n], shape.scale[i - 1]);
      position[i][n] = total[n] - exact_multiply(static_cast<float>(i), scaled);
      total[n] += scaled;
    }
  }
  for (int n = 0; n < lanes; ++n) position[0][n] = total[n];
  ADVCAM_UNROLL
  for (int i = 0; i <= d; ++i) {
    for (int n = 0; n < lanes; ++n) {
      cell[i][n] = exact_multiply(position[i][n], kDown) + kRound - kRound;
      rest[i][n] = position[i][n] - exact_multiply(cell[i][n], d + 1);
      sum[n] += static_cast<int>(cell[i][n]);
      rank[i][n] = 0;
    }
  }
  ADVCAM_UNROLL
  for (int i = 0; i < d; ++i) {
    ADVCAM_UNROLL
    for (int j = i + 1; j <= d; ++j) {
      for (int n = 0; n < lanes; ++n) {
        const int less = rest[i][n] < rest[j][n] ? 1 : 0;
        rank[i][n] += less;
        rank[j][n] += 1 - less;
      }
    }
  }
  ADVCAM_UNROLL
  for (int i = 0; i <= d; ++i) {  // back onto the plane where the coordinates sum to 0
    for (int n = 0; n < lanes; ++n) {
      const int moved = rank[i][n] + sum[n], wrap = moved < 0 ? 1 : moved > d ? -1 : 0;
      rank[i][n] = moved + wrap * (d + 1);
      cell[i][n] += static_cast<float>(wrap);
      rest[i][n] = exact_multiply(position[i][n] - exact_multiply(cell[i][n], d + 1), kDown);
      if (i < d) base[n] += static_cast<Key>(static_cast<int>(cell[i][n]) - shape.low[i]) << shape.shift[i];
    }
  }
  // The ranks are a permutation: weight c is a difference of two neighbours in the order of `rest`, and vertex c + 1 is
  // vertex c with one more coordinate a cell lower.
  float ordered[d + 1][lanes];
  Key step[d + 1];
  ADVCAM_UNROLL
  for (int i = 0; i <= d; ++i) step[i] = i < d ? Key(1) << shape.shift[i < d ? i : 0] : 0;
  ADVCAM_UNROLL
  for (int c = 0; c <= d; ++c) {
    Key lower[lanes];
    for (int n = 0; n < lanes; ++n) ordered[c][n] = 0, lower[n] = 0;
    ADVCAM_UNROLL
    for (int i = 0; i <= d; ++i) {
      for (int n = 0; n < lanes; ++n) ordered[c][n] = rank[i][n] == d - c ? rest[i][n] : ordered[c][n];
      for (int n = 0; n < lanes; ++n) lower[n] += step[i] & -static_cast<Key>(rank[i][n] == d - c);
    }
    for (int n = 0; n < lanes; ++n) {
      key[c][n] = base[n];
      base[n] -= lower[n];
      weight[c][n] = c > 0 ? ordered[c][n] - ordered[c > 0 ? c - 1 : 0][n] : 0;
    }
  }
  for (int n = 0; n < lanes; ++n) weight[0][n] = ordered[0][n] + (1.0f - ordered[d][n]);
}
}  // namespace advcam
