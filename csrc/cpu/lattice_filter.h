// The leaf loops of filtering on a lattice: splat, blur and slice of K channels at a time, and the softmax between.
//
// Points come in tiles, values in rows of kTile points, one row a channel. At the vertices the K channels of a block
// lie side by side: a vector.
#pragma once
#include <cmath>
#include <cstdint>

#include "cpu/lattice.h"
#include "cpu/simd.h"

namespace advcam::cpu {
constexpr int kMostChannels = 16;  // of a block

template <class T, int K>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * K), aligned(sizeof(T)), may_alias));
};
template <class T>
struct VectorOf<T, 1> {
  using type = T;
};

// What the leaves need of a lattice, from a first point on; `corners` of each point's vertices are worked on.
struct Corners {
  const int32_t* vertex;
  const float* weight;
  int64_t stride;
};

// The vertices of a point to come; of no point, behind the last one.
constexpr int kAhead = 4;
template <class T, int K, int kCorners>
ADVCAM_INLINE void fetch(Corners at, int64_t n, const T* value) {
  for (int c = 0; c < kCorners; ++c) __builtin_prefetch(value + int64_t{K} * at.vertex[c * at.stride + n], 1);
}

// Adds the tile to the vertices: value[vertex] += weight * factor * row.
template <class T, int K, int kCorners>
ADVCAM_INLINE void splat(Corners at, int count, const T* factor, const T* const* row, T* __restrict value) {
  using V = typename VectorOf<T, K>::type;
  for (int n = 0; n < count; ++n) {
    if constexpr (K > 4) fetch<T, K, kCorners>(at, n + kAhead, value);
    V q;
    if constexpr (K == 1)
      q = row[0][n] * factor[n];
    else
      for (int k = 0; k < K; ++k) q[k] = row[k][n] * factor[n];
    for (int c = 0; c < kCorners; ++c) {
      V* v = reinterpret_cast<V*>(value + int64_t{K} * at.vertex[c * at.stride + n]);
      *v += q * static_cast<T>(at.weight[c * at.stride + n]);
    }
  }
}

// row += factor * scale * sum over the corners of weight * value[vertex].
template <class T, int K, int kCorners>
ADVCAM_INLINE void slice(Corners at, int count, const T* factor, T scale, const T* value, T* const* row) {
  using V = typename VectorOf<T, K>::type;
  if constexpr (K == 1) {  // the vector is one of points
    T sum[kTile] = {};
    for (int c = 0; c < kCorners; ++c)
      for (int n = 0; n < count; ++n)
        sum[n] += value[at.vertex[c * at.stride + n]] * static_cast<T>(at.weight[c * at.stride + n]);
    for (int n = 0; n < count; ++n) sum[n] *= scale * factor[n];
    for (int n = 0; n < count; ++n) row[0][n] += sum[n];
  } else {
    for (int n = 0; n < count; ++n) {
      if constexpr (K > 4) fetch<T, K, kCorners>(at, n + kAhead, value);
      V sum{};
      for (int c = 0; c < kCorners; ++c)
        sum += *reinterpret_cast<const V*>(value + int64_t{K} * at.vertex[c * at.stride + n]) *
               static_cast<T>(at.weight[c * at.stride + n]);
      sum *= scale * factor[n];
      for (int k = 0; k < K; ++k) row[k][n] += sum[k];
    }
  }
}

// value <- value + (lower + upper) / 2 along the chains [first, last), in place. *first and *last begin chains.
template <class T, int K>
ADVCAM_INLINE void blur(const uint32_t* first, const uint32_t* last, T* value) {
  using V = typename VectorOf<T, K>::type;
  constexpr T kKeep[2] = {T(1), T(0)};
  if (first == last) return;
  V* here = reinterpret_cast<V*>(value + int64_t{K} * (*first & ~kStart));
  V lower{}, middle = *here;
  for (const uint32_t* chain = first; chain != last; ++chain) {
    const uint32_t next = chain[1];
    if constexpr (K > 2) __builtin_prefetch(value + int64_t{K} * (chain[kSlack] & ~kStart), 1);
    V* there = reinterpret_cast<V*>(value + int64_t{K} * (next & ~kStart));
    const V upper = *there;
    const T keep = kKeep[next >> 31];
    *here = middle + (lower + upper * keep) * T(0.5);
    lower = middle * keep, middle = upper, here = there;
  }
}

// e^x for x <= 0 within 1.2 units of the last place; 0 where that is no normal number. A NaN stays.
ADVCAM_INLINE float exp_of_negative(float x) {
  const float least = -87.3365f, bounded = x < least ? least : x;
  const float n = bounded * 1.44269504f + 12582912.0f - 12582912.0f;
  const float r = bounded - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = as_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x < least ? 0.0f : p * power;
}
ADVCAM_INLINE double exp_of_negative(double x) { return std::exp(x); }

// rows [labels, kTile]: messages of all labels but the last come, each less that of the last label, which softmax does
// not mind. Leave: the probabilities, or, `differences`, those of all labels but the last less that of the last one,
// whose filter gives the next messages. Returns false if a pixel's unary energies are no distribution.
template <class T>
ADVCAM_INLINE bool normalise(T* __restrict rows, int64_t labels, const T* __restrict unary, int64_t pixels, int count,
                             bool differences) {
  T most[kTile], sum[kTile];
  T* __restrict last = rows + (labels - 1) * kTile;
  for (int n = 0; n < count; ++n) last[n] = most[n] = -unary[(labels - 1) * pixels + n];
  for (int64_t l = 0; l + 1 < labels; ++l) {
    T* __restrict row = rows + l * kTile;
    const T* __restrict u = unary + l * pixels;
    for (int n = 0; n < count; ++n) {
      row[n] -= u[n];
      most[n] = row[n] > most[n] ? row[n] : most[n];
    }
  }
  for (int n = 0; n < count; ++n) sum[n] = 0;
  for (int64_t l = 0; l < labels; ++l) {
    T* __restrict row = rows + l * kTile;
    for (int n = 0; n < count; ++n) {
      row[n] = exp_of_negative(row[n] - most[n]);
      sum[n] += row[n];
    }
  }
  bool good = true;
  for (int n = 0; n < count; ++n) {
    good &= sum[n] >= T(1);
    sum[n] = T(1) / sum[n];
  }
  for (int64_t l = 0; l + 1 < labels; ++l)
    for (int n = 0; n < count; ++n)
      rows[l * kTile + n] = (rows[l * kTile + n] - (differences ? last[n] : T(0))) * sum[n];
  for (int n = 0; n < count; ++n) last[n] *= sum[n];
  return good;
}

template <class T>
using Splat = void (*)(Corners, int, const T*, const T* const*, T*);
template <class T>
using Slice = void (*)(Corners, int, const T*, T, const T*, T* const*);
template <class T>
using Blur = void (*)(const uint32_t*, const uint32_t*, T*);

#define ADVCAM_CORNERS(T, K, C)                                                                         \
  ADVCAM_CLONES static void splat_##T##K##_##C(Corners a, int n, const T* f, const T* const* r, T* v) { \
    splat<T, K, C>(a, n, f, r, v);                                                                      \
  }
#define ADVCAM_SLICE(T, K, C)                                                                                \
  ADVCAM_CLONES static void slice_##T##K##_##C(Corners a, int n, const T* f, T s, const T* v, T* const* r) { \
    slice<T, K, C>(a, n, f, s, v, r);                                                                        \
  }
#define ADVCAM_CHANNELS(T, K) \
  ADVCAM_CORNERS(T, K, 1)     \
  ADVCAM_CORNERS(T, K, 3)     \
  ADVCAM_CORNERS(T, K, 6)     \
  ADVCAM_SLICE(T, K, 3)       \
  ADVCAM_SLICE(T, K, 6)       \
  ADVCAM_CLONES static void blur_##T##K(const uint32_t* a, const uint32_t* b, T* v) { blur<T, K>(a, b, v); }
#define ADVCAM_FILTER(T)                                                                                  \
  ADVCAM_CHANNELS(T, 1)                                                                                   \
  ADVCAM_CHANNELS(T, 2)                                                                                   \
  ADVCAM_CHANNELS(T, 4)                                                                                   \
  ADVCAM_CHANNELS(T, 8)                                                                                   \
  ADVCAM_CHANNELS(T, 16)                                                                                  \
  ADVCAM_CLONES static bool normalise_(T* r, int64_t l, const T* u, int64_t p, int n, bool d) {           \
    return normalise(r, l, u, p, n, d);                                                                   \
  }                                                                                                       \
  template <>                                                                                             \
  struct Leaves<T> {                                                                                      \
    static constexpr Splat<T> splat1[] = {splat_##T##1_1, splat_##T##2_1, splat_##T##4_1, splat_##T##8_1, \
                                          splat_##T##16_1};                                               \
    static constexpr Splat<T> splat3[] = {splat_##T##1_3, splat_##T##2_3, splat_##T##4_3, splat_##T##8_3, \
                                          splat_##T##16_3};                                               \
    static constexpr Splat<T> splat6[] = {splat_##T##1_6, splat_##T##2_6, splat_##T##4_6, splat_##T##8_6, \
                                          splat_##T##16_6};                                               \
    static constexpr Slice<T> slice3[] = {slice_##T##1_3, slice_##T##2_3, slice_##T##4_3, slice_##T##8_3, \
                                          slice_##T##16_3};                                               \
    static constexpr Slice<T> slice6[] = {slice_##T##1_6, slice_##T##2_6, slice_##T##4_6, slice_##T##8_6, \
                                          slice_##T##16_6};                                               \
    static constexpr Blur<T> blur[] = {blur_##T##1, blur_##T##2, blur_##T##4, blur_##T##8, blur_##T##16}; \
  };
template <class T>
struct Leaves;
ADVCAM_FILTER(float)
ADVCAM_FILTER(double)
#undef ADVCAM_FILTER
#undef ADVCAM_CHANNELS
#undef ADVCAM_SLICE
#undef ADVCAM_CORNERS
}  // namespace advcam::cpu
