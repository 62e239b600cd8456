// A step of the walk on a row of a CPU image: the stencil as a loop over vectors whose sums stay in registers.
#pragma once
#include "cpu/walk_image.h"

namespace advcam::cpu {
// Vectors as wide as a register: the compiler takes wider ones apart, but not well, and from plain loops over a local
// array it makes one that lives in memory.
template <class T, int kBytes>
struct Vector;
#define WALK_VECTOR(T, kBytes)                                                           \
  template <>                                                                            \
  struct Vector<T, kBytes> {                                                             \
    typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias)); \
  };
WALK_VECTOR(float, 32)
WALK_VECTOR(float, 64)
WALK_VECTOR(double, 32)
WALK_VECTOR(double, 64)
#undef WALK_VECTOR

// Where neighbour p of a row's first pixel is, in elements: the affinities of j with j + d and with j - d, and j + d
// itself (j - d lies as far on the other side).
struct Tap {
  int64_t ahead, behind, neighbour;
};

template <class T>
std::vector<Tap> taps(const WalkImage<T>& image, int64_t layers) {
  std::vector<Tap> found;
  const int64_t pitch = image.frame.pitch;
  for (int64_t p = 0; p < image.planes; ++p) {
    const Offset d = image.stencil.half[p];
    found.push_back({p * pitch, p * pitch - d.y * image.planes * pitch - d.x, d.y * layers * pitch + d.x});
  }
  return found;
}

// sum = over the neighbours of A state; out = state + (inverse sum - moving state), then (1 - restart) of it + restart
// origin. Without `inverse` out = state + sum, without `origin` no restart. What is added is small where hardly
// anything moves, and nothing where all neighbours agree: the error of 256 steps of float32 stays below that of one
// product.
template <class T>
struct StepRow {
  const T* state;
  T* out;
  const T *affinity, *inverse, *moving, *origin;
  const Tap* tap;
  int64_t taps, pitch, columns;
  T restart;
};

template <class T, int kBytes, int kLabels, int kVectors>
ADVCAM_INLINE void step_chunk(const StepRow<T>& r, int64_t x) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int64_t kLane = kBytes / sizeof(T);
  const int64_t pitch = r.pitch;
  V sum[kLabels][kVectors], other[kLabels][kVectors];  // of the neighbours after and before: half as many roundings
#pragma GCC unroll 8
  for (int l = 0; l < kLabels; ++l)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[l][v] = other[l][v] = V{};
  for (int64_t p = 0; p < r.taps; ++p) {
    const T *ahead = r.affinity + r.tap[p].ahead + x, *behind = r.affinity + r.tap[p].behind + x;
    const T *next = r.state + r.tap[p].neighbour + x, *last = r.state - r.tap[p].neighbour + x;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const V a = *reinterpret_cast<const V*>(ahead + kLane * v), b = *reinterpret_cast<const V*>(behind + kLane * v);
#pragma GCC unroll 8
      for (int l = 0; l < kLabels; ++l) {
        sum[l][v] += a * *reinterpret_cast<const V*>(next + l * pitch + kLane * v);
        other[l][v] += b * *reinterpret_cast<const V*>(last + l * pitch + kLane * v);
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int l = 0; l < kLabels; ++l) {
      const int64_t at = l * pitch + x + kLane * v;
      const V state = *reinterpret_cast<const V*>(r.state + at);
      V result = sum[l][v] + other[l][v];
      if (r.inverse)
        result = result * *reinterpret_cast<const V*>(r.inverse + x + kLane * v) -
                 state * *reinterpret_cast<const V*>(r.moving + x + kLane * v);
      result = result + state;
      if (r.origin) result = result * (T(1) - r.restart) + *reinterpret_cast<const V*>(r.origin + at) * r.restart;
      *reinterpret_cast<V*>(r.out + at) = result;
    }
  }
}

template <class T, int kBytes, int kLabels, int kVectors>
ADVCAM_INLINE void step_labels(const StepRow<T>& r) {
  constexpr int64_t kLane = kBytes / sizeof(T);
  int64_t x = 0;
  for (; x + kVectors * kLane <= r.columns; x += kVectors * kLane) step_chunk<T, kBytes, kLabels, kVectors>(r, x);
  for (; x < r.columns; x += kLane) step_chunk<T, kBytes, kLabels, 1>(r, x);
}

#if defined(ADVCAM_WIDE)
#define WALK_WIDE(T)                                                                       \
  ADVCAM_WIDE static void step_wide1(const StepRow<T>& r) { step_labels<T, 64, 1, 8>(r); } \
  ADVCAM_WIDE static void step_wide2(const StepRow<T>& r) { step_labels<T, 64, 2, 4>(r); } \
  ADVCAM_WIDE static void step_wide4(const StepRow<T>& r) { step_labels<T, 64, 4, 4>(r); }
#else
#define WALK_WIDE(T)                                  \
  static inline void step_wide1(const StepRow<T>&) {} \
  static inline void step_wide2(const StepRow<T>&) {} \
  static inline void step_wide4(const StepRow<T>&) {}
#endif
#define WALK_STEP(T)                                                                           \
  WALK_WIDE(T)                                                                                 \
  ADVCAM_CLONES static void step_narrow1(const StepRow<T>& r) { step_labels<T, 32, 1, 4>(r); } \
  ADVCAM_CLONES static void step_narrow2(const StepRow<T>& r) { step_labels<T, 32, 2, 2>(r); } \
  ADVCAM_CLONES static void step_narrow4(const StepRow<T>& r) { step_labels<T, 32, 4, 2>(r); }
WALK_STEP(float)
WALK_STEP(double)
#undef WALK_STEP
#undef WALK_WIDE

constexpr int64_t kMostLabels = 4;  // that share a pass over the affinities

inline int64_t labels_together(int64_t left) { return left >= kMostLabels ? kMostLabels : left >= 2 ? 2 : left; }

template <class T>
void step_row(const StepRow<T>& r, int64_t labels) {
  if (wide()) return labels == 4 ? step_wide4(r) : labels == 2 ? step_wide2(r) : step_wide1(r);
  labels == 4 ? step_narrow4(r) : labels == 2 ? step_narrow2(r) : step_narrow1(r);
}
}  // namespace advcam::cpu
