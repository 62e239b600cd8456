// climb_step on a CPU. Two passes over image and gradient: 16 bytes read and 4 written an element in fp32, against
// 40 for the eager form; the first pass's data is still in cache for all but the largest groups.
#include "climb_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kChunk = 16384;  // elements: 64 KB of image and of gradient stay in a core's own cache

// A running maximum of |g| as an integer maximum of the bits without the sign: it vectorises without -ffast-math,
// and NaN, the largest pattern, wins, as it does in torch.amax.
template <class A>
using Bits = std::conditional_t<std::is_same_v<A, double>, uint64_t, uint32_t>;
template <class A>
ADVCAM_INLINE Bits<A> magnitude(A a) {
  Bits<A> u;
  std::memcpy(&u, &a, sizeof a);
  return u & (~Bits<A>(0) >> 1);
}

template <class A>
struct Extrema {
  Bits<A> gradient = 0, image = 0;  // magnitudes; the image's only tells whether it holds a NaN
  A low = std::numeric_limits<A>::infinity(), high = -std::numeric_limits<A>::infinity();

  void merge(const Extrema& o) {
    gradient = std::max(gradient, o.gradient);
    image = std::max(image, o.image);
    low = std::min(low, o.low);
    high = std::max(high, o.high);
  }
};

// Lanes of partial results, since a compiler must not reorder a minimum of floats by itself (-0, NaN).
template <class T, class G, class A>
ADVCAM_INLINE void extrema(const T* __restrict x, const G* __restrict g, int64_t n, Extrema<A>* out) {
  constexpr int kLanes = 64 / sizeof(T);
  Extrema<A> e;
  A low[kLanes], high[kLanes];
  for (int j = 0; j < kLanes; ++j) low[j] = e.low, high[j] = e.high;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const A v = x[i + j];
      e.gradient = std::max(e.gradient, magnitude<A>(load(g[i + j])));
      e.image = std::max(e.image, magnitude<A>(v));
      low[j] = v < low[j] ? v : low[j];
      high[j] = v > high[j] ? v : high[j];
    }
  for (; i < n; ++i) e.merge({magnitude<A>(load(g[i])), magnitude<A>(x[i]), x[i], x[i]});
  for (int j = 0; j < kLanes; ++j) e.merge({0, 0, low[j], high[j]});
  *out = e;
}

template <class T, class G, class O, class A>
ADVCAM_INLINE void ascend(T* __restrict x, const G* __restrict g, O* __restrict out, int64_t n, A rate, A low, A high) {
  for (int64_t i = 0; i < n; ++i) {
    A v = x[i] + rate * static_cast<A>(load(g[i]));
    v = v < low ? low : v;  // false for NaN, which stays
    v = v > high ? high : v;
    x[i] = v;
    if constexpr (!std::is_void_v<O>) store(out[i], v);
  }
}

#define CLIMB_STEP_EXTREMA(T, G) \
  ADVCAM_CLONES void extrema_(const T* x, const G* g, int64_t n, Extrema<T>* out) { extrema(x, g, n, out); }
#define CLIMB_STEP_ASCEND(T, G, O)                                                         \
  ADVCAM_CLONES void ascend_(T* x, const G* g, O* out, int64_t n, T rate, T low, T high) { \
    ascend(x, g, out, n, rate, low, high);                                                 \
  }
#define CLIMB_STEP_ALL(T, G) CLIMB_STEP_EXTREMA(T, G) CLIMB_STEP_ASCEND(T, G, void)
CLIMB_STEP_ALL(float, float)
CLIMB_STEP_ALL(float, bf16)
CLIMB_STEP_ALL(float, f16)
CLIMB_STEP_ALL(double, double)
CLIMB_STEP_ASCEND(float, float, bf16)
CLIMB_STEP_ASCEND(float, float, f16)
CLIMB_STEP_ASCEND(float, bf16, bf16)
CLIMB_STEP_ASCEND(float, bf16, f16)
CLIMB_STEP_ASCEND(float, f16, bf16)
CLIMB_STEP_ASCEND(float, f16, f16)
#undef CLIMB_STEP_ALL
#undef CLIMB_STEP_ASCEND
#undef CLIMB_STEP_EXTREMA

// One parallel region a call, whatever the number of groups: entering one costs microseconds, and milliseconds where
// other processes hold the cores. Extrema do not depend on the order, so the bits do not depend on the threads.
template <class T, class G, class O>
void run(const ClimbStep& s, int threads) {
  auto* x = static_cast<T*>(s.image);
  auto* g = static_cast<const G*>(s.gradient);
  auto* largest = static_cast<T*>(s.gradient_max);
  const int64_t chunks = (s.n + kChunk - 1) / kChunk, jobs = s.groups * chunks;
  std::vector<Extrema<T>> part(jobs);
#pragma omp parallel num_threads(threads) if (threads > 1 && jobs > 1)
  {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < jobs; ++j) {
      const int64_t at = j / chunks * s.n + j % chunks * kChunk;
      extrema_(x + at, g + at, std::min(kChunk, s.n - j % chunks * kChunk), &part[j]);
    }
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < jobs; ++j) {
      const int64_t group = j / chunks, chunk = j % chunks, at = group * s.n + chunk * kChunk;
      Extrema<T> e = part[group * chunks];
      for (int64_t k = 1; k < chunks; ++k) e.merge(part[group * chunks + k]);
      T m, largest_pixel;
      std::memcpy(&m, &e.gradient, sizeof m);
      std::memcpy(&largest_pixel, &e.image, sizeof m);
      if (chunk == 0) largest[group] = m;
      const T rate = std::isnan(largest_pixel) ? largest_pixel : static_cast<T>(s.step) / (m + static_cast<T>(1e-12));
      O* out = nullptr;
      if constexpr (!std::is_void_v<O>) out = static_cast<O*>(s.network_input) + at;
      ascend_(x + at, g + at, out, std::min(kChunk, s.n - chunk * kChunk), rate, e.low, e.high);
    }
  }
}

template <class G>
void run_float(const ClimbStep& s, int threads) {
  if (s.network_dtype == DType::bf16) return run<float, G, bf16>(s, threads);
  if (s.network_dtype == DType::f16) return run<float, G, f16>(s, threads);
  run<float, G, void>(s, threads);
}
}  // namespace

void climb_step(const ClimbStep& s, int threads) {
  if (s.image_dtype == DType::f64) return run<double, double, void>(s, threads);
  if (s.gradient_dtype == DType::bf16) return run_float<bf16>(s, threads);
  if (s.gradient_dtype == DType::f16) return run_float<f16>(s, threads);
  run_float<float>(s, threads);
}
}  // namespace advcam::cpu
