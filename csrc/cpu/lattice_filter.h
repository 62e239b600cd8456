// The leaf loops of filtering on a lattice: splat, blur and slice of K channels at a time, and the softmax between.
//
// At the points and at the vertices the K channels of a block lie side by side: a vector. The softmax takes tiles of
// points in rows, one row a channel.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/lattice.h"
#include "cpu/simd.h"

namespace advcam::cpu {
// How many channels a block may have. 20 are VOC's 21 labels but one.
constexpr int kWidths[] = {1, 2, 4, 8, 16, 20}, kMostChannels = 20;

template <class T, int K>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * K), aligned(sizeof(T)), may_alias));
};
template <class T>
struct VectorOf<T, 1> {
  using type = T;
};
template <class T>
struct __attribute__((may_alias)) Twenty {
  typename VectorOf<T, 16>::type most;
  typename VectorOf<T, 4>::type rest;
  ADVCAM_BOTH Twenty operator+(const Twenty& o) const { return {most + o.most, rest + o.rest}; }
  ADVCAM_BOTH Twenty operator*(T factor) const { return {most * factor, rest * factor}; }
  ADVCAM_BOTH void operator+=(const Twenty& o) { most += o.most, rest += o.rest; }
};
template <class T>
struct VectorOf<T, 20> {
  using type = Twenty<T>;
};

// sum[i] = sum of the values at the places [begin[i], begin[i + 1]): of a vertex, over its copies.
template <class T, int K>
ADVCAM_INLINE void gather(const int32_t* begin, const int32_t* place, int64_t count, const T* value, T* sum) {
  using V = typename VectorOf<T, K>::type;
  const int32_t* at = place + begin[0];
  for (int64_t i = 0; i < count; ++i) {
    V total{};
    for (const int32_t* const end = place + begin[i + 1]; at != end; ++at)
      total += *reinterpret_cast<const V*>(value + int64_t{K} * *at);
    *reinterpret_cast<V*>(sum + K * i) = total;
  }
}

// copy[i] = value[vertex[i]]
template <class T, int K>
ADVCAM_INLINE void fetch(const int32_t* vertex, int64_t count, const T* value, T* copy) {
  using V = typename VectorOf<T, K>::type;
  for (int64_t i = 0; i < count; ++i)
    *reinterpret_cast<V*>(copy + K * i) = *reinterpret_cast<const V*>(value + int64_t{K} * vertex[i]);
}

// value[vertex[i]] += copy[i]
template <class T, int K>
ADVCAM_INLINE void scatter(const int32_t* vertex, int64_t count, const T* copy, T* value) {
  using V = typename VectorOf<T, K>::type;
  for (int64_t i = 0; i < count; ++i)
    *reinterpret_cast<V*>(value + int64_t{K} * vertex[i]) += *reinterpret_cast<const V*>(copy + K * i);
}

// What a tile's pixels need of a lattice: [corners, kTile].
template <class T>
struct Corners {
  const uint16_t* copy;
  const T* weight;
};

// copies += weight * points [kTile, K]. Neighbours often share a vertex, and would wait for each other's sums: pixels
// that follow each other here lie apart.
template <class T, int K, int kCorners>
ADVCAM_INLINE void splat(Corners<T> at, const T* points, T* copies) {
  using V = typename VectorOf<T, K>::type;
  constexpr int kApart = 8;
  for (int i = 0; i < kTile; ++i) {
    const int n = i * kApart % kTile + i * kApart / kTile;
    const V q = *reinterpret_cast<const V*>(points + K * n);
    for (int c = 0; c < kCorners; ++c)
      *reinterpret_cast<V*>(copies + size_t{K} * at.copy[c * kTile + n]) += q * at.weight[c * kTile + n];
  }
}

// Of a lattice that a message comes from.
template <class T>
struct Source {
  Corners<T> at;
  const T* copies;
  T scale;
};

// message = scale * sum over the corners of weight * copies, of pixel n; or more of the same.
template <class T, int K, int kCorners>
ADVCAM_INLINE void slice_pixel(const Source<T>& from, int n, typename VectorOf<T, K>::type& message) {
  using V = typename VectorOf<T, K>::type;
  V sum{};
  for (int c = 0; c < kCorners; ++c)
    sum += *reinterpret_cast<const V*>(from.copies + size_t{K} * from.at.copy[c * kTile + n]) *
           from.at.weight[c * kTile + n];
  message += sum * from.scale;
}

// For one channel the vector is one of points.
template <class T, int kCorners>
ADVCAM_INLINE void slice_tile(const Source<T>& from, T* __restrict message) {
  T sum[kTile] = {};
  for (int c = 0; c < kCorners; ++c)
    for (int n = 0; n < kTile; ++n) sum[n] += from.copies[from.at.copy[c * kTile + n]] * from.at.weight[c * kTile + n];
  for (int n = 0; n < kTile; ++n) message[n] += sum[n] * from.scale;
}

// message [kTile, K]: what comes from a lattice of three corners, from one of six, or from both.
template <class T, int K, int kCorners>
ADVCAM_INLINE void slice(const Source<T>* from, T* message) {
  using V = typename VectorOf<T, K>::type;
  if constexpr (K == 1) {
    std::fill_n(message, kTile, T(0));
    if constexpr (kCorners != 6) slice_tile<T, 3>(from[0], message);
    if constexpr (kCorners != 3) slice_tile<T, 6>(from[kCorners == 9], message);
  } else {
    for (int n = 0; n < kTile; ++n) {
      V all{};
      if constexpr (kCorners != 6) slice_pixel<T, K, 3>(from[0], n, all);
      if constexpr (kCorners != 3) slice_pixel<T, K, 6>(from[kCorners == 9], n, all);
      *reinterpret_cast<V*>(message + K * n) = all;
    }
  }
}

// row[k][n] = points[n, k] and back, for a tile; four by four, so that the compiler has shuffles for it.
template <class T, int K>
ADVCAM_INLINE void to_rows(const T* points, T* const* row) {
  constexpr int kSide = K < 4 ? K : 4;
  for (int k = 0; k < K; k += kSide) {
    for (int n = 0; n < kTile; n += 4) {
      T square[kSide][4];
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < kSide; ++j) square[j][i] = points[(n + i) * K + k + j];
      for (int j = 0; j < kSide; ++j) std::memcpy(row[k + j] + n, square[j], sizeof square[j]);
    }
  }
}
template <class T, int K>
ADVCAM_INLINE void to_points(const T* const* row, T* points) {
  constexpr int kSide = K < 4 ? K : 4;
  for (int n = 0; n < kTile; n += 4) {
    for (int k = 0; k < K; k += kSide) {
      T square[4][kSide];
      for (int j = 0; j < kSide; ++j)
        for (int i = 0; i < 4; ++i) square[i][j] = row[k + j][n + i];
      for (int i = 0; i < 4; ++i) std::memcpy(points + (n + i) * K + k, square[i], sizeof square[i]);
    }
  }
}

// A vector of a vertex that will be written to.
template <class T, int K>
ADVCAM_INLINE void fetch_ahead(const T* vector) {
  __builtin_prefetch(vector, 1);
  if constexpr (K * sizeof(T) > 64) __builtin_prefetch(vector + K - 1, 1);
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
    if constexpr (K > 2) fetch_ahead<T, K>(value + int64_t{K} * (chain[kSlack] & ~kStart));
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

// Whether each pixel's energies [labels, kTile] make a distribution: no NaN, no minus infinity, and not all infinite.
template <class T>
ADVCAM_INLINE bool distributions(const T* energy, int64_t labels) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  T least[kTile];
  std::fill_n(least, kTile, kInfinity);
  int bad = 0;  // a bool would keep the loops from being ones of vectors
  for (int64_t l = 0; l < labels; ++l) {
    for (int n = 0; n < kTile; ++n) {
      const T e = energy[l * kTile + n];
      bad += !(e > -kInfinity);
      least[n] = e < least[n] ? e : least[n];
    }
  }
  for (int n = 0; n < kTile; ++n) bad += !(least[n] < kInfinity);
  return bad == 0;
}

// normalise, below, for two labels: the logistic function of one difference.
template <class T>
ADVCAM_INLINE void normalise_two(T* __restrict rows, const T* __restrict energy, bool differences) {
  for (int n = 0; n < kTile; ++n) {
    const T ahead = rows[n] + energy[n];
    const T small = exp_of_negative(ahead > 0 ? -ahead : ahead), larger = T(1) / (T(1) + small);
    const T smaller = small * larger, difference = larger - smaller;
    const T first = ahead > 0 ? larger : smaller, signed_difference = ahead > 0 ? difference : -difference;
    rows[n] = differences ? signed_difference : first;
    rows[kTile + n] = ahead > 0 ? smaller : larger;
  }
}

// energy: [labels, kTile] unary energies; of two labels, [kTile], the last one's less the first one's.
// rows [labels, kTile]: messages of all labels but the last come, each less that of the last label, which softmax does
// not mind. Leave: the probabilities, or, `differences`, those of all labels but the last less that of the last one,
// whose filter gives the next messages.
template <class T>
ADVCAM_INLINE void normalise(T* __restrict rows, int64_t labels, const T* __restrict energy, bool differences) {
  if (labels == 2) return normalise_two(rows, energy, differences);
  T most[kTile], sum[kTile];
  T* __restrict last = rows + (labels - 1) * kTile;
  for (int n = 0; n < kTile; ++n) last[n] = most[n] = -energy[(labels - 1) * kTile + n];
  for (int64_t l = 0; l + 1 < labels; ++l) {
    for (int n = 0; n < kTile; ++n) {
      const T logit = rows[l * kTile + n] - energy[l * kTile + n];
      rows[l * kTile + n] = logit;
      most[n] = logit > most[n] ? logit : most[n];
    }
  }
  for (int n = 0; n < kTile; ++n) sum[n] = 0;
  for (int64_t l = 0; l < labels; ++l) {
    T* __restrict row = rows + l * kTile;
    for (int n = 0; n < kTile; ++n) {
      row[n] = exp_of_negative(row[n] - most[n]);
      sum[n] += row[n];
    }
  }
  for (int n = 0; n < kTile; ++n) sum[n] = T(1) / sum[n];
  for (int64_t l = 0; l + 1 < labels; ++l)
    for (int n = 0; n < kTile; ++n)
      rows[l * kTile + n] = (rows[l * kTile + n] - (differences ? last[n] : T(0))) * sum[n];
  for (int n = 0; n < kTile; ++n) last[n] *= sum[n];
}

template <class T>
struct Leaves;

#define ADVCAM_CHANNELS(T, K)                                                                                        \
  ADVCAM_CLONES static void gather_##T##K(const int32_t* b, const int32_t* p, int64_t n, const T* v, T* s) {         \
    gather<T, K>(b, p, n, v, s);                                                                                     \
  }                                                                                                                  \
  ADVCAM_CLONES static void fetch_##T##K(const int32_t* i, int64_t n, const T* v, T* c) { fetch<T, K>(i, n, v, c); } \
  ADVCAM_CLONES static void scatter_##T##K(const int32_t* i, int64_t n, const T* c, T* v) {                          \
    scatter<T, K>(i, n, c, v);                                                                                       \
  }                                                                                                                  \
  ADVCAM_CLONES static void splat3_##T##K(Corners<T> a, const T* p, T* c) { splat<T, K, 3>(a, p, c); }               \
  ADVCAM_CLONES static void splat6_##T##K(Corners<T> a, const T* p, T* c) { splat<T, K, 6>(a, p, c); }               \
  ADVCAM_CLONES static void slice3_##T##K(const Source<T>* f, T* m) { slice<T, K, 3>(f, m); }                        \
  ADVCAM_CLONES static void slice6_##T##K(const Source<T>* f, T* m) { slice<T, K, 6>(f, m); }                        \
  ADVCAM_CLONES static void slice9_##T##K(const Source<T>* f, T* m) { slice<T, K, 9>(f, m); }                        \
  ADVCAM_CLONES static void to_rows_##T##K(const T* p, T* const* r) { to_rows<T, K>(p, r); }                         \
  ADVCAM_CLONES static void to_points_##T##K(const T* const* r, T* p) { to_points<T, K>(r, p); }                     \
  ADVCAM_CLONES static void blur_##T##K(const uint32_t* a, const uint32_t* b, T* v) { blur<T, K>(a, b, v); }
#define ADVCAM_TABLE(leaf, T) \
  {leaf##_##T##1, leaf##_##T##2, leaf##_##T##4, leaf##_##T##8, leaf##_##T##16, leaf##_##T##20}
// By the place of their width in kWidths.
#define ADVCAM_FILTER(T)                                                                                            \
  ADVCAM_CHANNELS(T, 1)                                                                                             \
  ADVCAM_CHANNELS(T, 2)                                                                                             \
  ADVCAM_CHANNELS(T, 4)                                                                                             \
  ADVCAM_CHANNELS(T, 8)                                                                                             \
  ADVCAM_CHANNELS(T, 16)                                                                                            \
  ADVCAM_CHANNELS(T, 20)                                                                                            \
  ADVCAM_CLONES static void normalise_(T* r, int64_t l, const T* e, bool d) { normalise(r, l, e, d); }              \
  template <>                                                                                                       \
  struct Leaves<T> {                                                                                                \
    static constexpr void (*gather[])(const int32_t*, const int32_t*, int64_t, const T*, T*) = ADVCAM_TABLE(gather, \
                                                                                                            T);     \
    static constexpr void (*fetch[])(const int32_t*, int64_t, const T*, T*) = ADVCAM_TABLE(fetch, T);               \
    static constexpr void (*scatter[])(const int32_t*, int64_t, const T*, T*) = ADVCAM_TABLE(scatter, T);           \
    static constexpr void (*splat3[])(Corners<T>, const T*, T*) = ADVCAM_TABLE(splat3, T);                          \
    static constexpr void (*splat6[])(Corners<T>, const T*, T*) = ADVCAM_TABLE(splat6, T);                          \
    static constexpr void (*slice3[])(const Source<T>*, T*) = ADVCAM_TABLE(slice3, T);                              \
    static constexpr void (*slice6[])(const Source<T>*, T*) = ADVCAM_TABLE(slice6, T);                              \
    static constexpr void (*slice9[])(const Source<T>*, T*) = ADVCAM_TABLE(slice9, T);                              \
    static constexpr void (*to_rows[])(const T*, T* const*) = ADVCAM_TABLE(to_rows, T);                             \
    static constexpr void (*to_points[])(const T* const*, T*) = ADVCAM_TABLE(to_points, T);                         \
    static constexpr void (*blur[])(const uint32_t*, const uint32_t*, T*) = ADVCAM_TABLE(blur, T);                  \
  };
ADVCAM_FILTER(float)
ADVCAM_FILTER(double)
#undef ADVCAM_FILTER
#undef ADVCAM_TABLE
#undef ADVCAM_CHANNELS
}  // namespace advcam::cpu
