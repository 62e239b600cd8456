// linear_head on a CPU: blocks of 6 positions by 4 classes, or by 64 channels, whose sums stay in registers. A sum is
// of the same products in the same order wherever its block begins.
#include "linear_head.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/wide.h"

namespace advcam::cpu {
namespace {
constexpr const char* kUnserved = "linear_head: wanted are AVX-512 and a multiple of 16 channels";
#if defined(ADVCAM_WIDE)
constexpr int64_t kLanes = 16;
constexpr int kPositions = 6, kClasses = 4, kVectors = 4;
constexpr int64_t kJob = 10 * kPositions;  // positions

// Logits of n positions for m classes from the first.
template <int n, int m, class T>
ADVCAM_WIDE void logits_of(const T* f, const float* w, float* z, int64_t channels, int64_t classes) {
  __m512 sum[n][m];
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < m; ++c) sum[i][c] = _mm512_setzero_ps();
  for (int64_t k = 0; k < channels; k += kLanes) {
    __m512 weight[m];
#pragma GCC unroll 4
    for (int c = 0; c < m; ++c) weight[c] = load16(w + c * channels + k);
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      const __m512 x = load16(f + i * channels + k);
#pragma GCC unroll 4
      for (int c = 0; c < m; ++c) sum[i][c] = _mm512_fmadd_ps(x, weight[c], sum[i][c]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < m; ++c) z[i * classes + c] = _mm512_reduce_add_ps(sum[i][c]);
}

// Gradients of n positions for 16 m channels from the first.
template <int n, int m, class T>
ADVCAM_WIDE void gradients_of(const float* dz, const float* w, T* df, int64_t channels, int64_t classes) {
  __m512 sum[n][m];
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < m; ++v) sum[i][v] = _mm512_setzero_ps();
  for (int64_t c = 0; c < classes; ++c) {
    __m512 weight[m];
#pragma GCC unroll 4
    for (int v = 0; v < m; ++v) weight[v] = load16(w + c * channels + kLanes * v);
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      const __m512 g = _mm512_set1_ps(dz[i * classes + c]);
#pragma GCC unroll 4
      for (int v = 0; v < m; ++v) sum[i][v] = _mm512_fmadd_ps(g, weight[v], sum[i][v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < m; ++v) store16(df + i * channels + kLanes * v, sum[i][v]);
}

template <int n, class T>
void all_logits(const T* f, const float* w, float* z, int64_t channels, int64_t classes) {
  int64_t c = 0;
  for (; c + kClasses <= classes; c += kClasses) logits_of<n, kClasses>(f, w + c * channels, z + c, channels, classes);
  for (; c < classes; ++c) logits_of<n, 1>(f, w + c * channels, z + c, channels, classes);
}

template <int n, class T>
void all_gradients(const float* dz, const float* w, T* df, int64_t channels, int64_t classes) {
  int64_t k = 0;
  for (; k + kVectors * kLanes <= channels; k += kVectors * kLanes)
    gradients_of<n, kVectors>(dz, w + k, df + k, channels, classes);
  for (; k < channels; k += kLanes) gradients_of<n, 1>(dz, w + k, df + k, channels, classes);
}

// Calls six(item, position) and one(item, position) so that each position is met once.
template <class Call, class Six, class One>
void for_positions(const Call& c, int threads, const Six& six, const One& one) {
  const int64_t jobs = (c.positions + kJob - 1) / kJob;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t job = 0; job < c.batch * jobs; ++job) {
    const int64_t b = job / jobs, end = std::min(c.positions, (job % jobs + 1) * kJob);
    int64_t p = job % jobs * kJob;
    for (; p + kPositions <= end; p += kPositions) six(b, p);
    for (; p < end; ++p) one(b, p);
  }
}

template <class T>
void run(const LinearHead& c, int threads) {
  const auto* f = static_cast<const T*>(c.features);
  const int64_t item = c.own_weights ? c.classes * c.channels : 0;
  const auto logits = [&](auto of) {
    return [&c, f, item, of](int64_t b, int64_t p) {
      const int64_t at = b * c.positions + p;
      all_logits<decltype(of)::value>(f + at * c.channels, c.weight + b * item, c.logits + at * c.classes, c.channels,
                                      c.classes);
    };
  };
  for_positions(c, threads, logits(std::integral_constant<int, kPositions>()),
                logits(std::integral_constant<int, 1>()));
}

template <class T>
void run(const LinearHeadBackward& c, int threads) {
  auto* df = static_cast<T*>(c.feature_gradient);
  const int64_t item = c.own_weights ? c.classes * c.channels : 0;
  const auto gradients = [&](auto of) {
    return [&c, df, item, of](int64_t b, int64_t p) {
      const int64_t at = b * c.positions + p;
      all_gradients<decltype(of)::value>(c.gradient + at * c.classes, c.weight + b * item, df + at * c.channels,
                                         c.channels, c.classes);
    };
  };
  for_positions(c, threads, gradients(std::integral_constant<int, kPositions>()),
                gradients(std::integral_constant<int, 1>()));
}
#endif

template <class Call>
void dispatch_dtype(const Call& c, [[maybe_unused]] int threads) {
  if (!linear_head_serves(c.dtype, c.channels)) throw std::invalid_argument(kUnserved);
#if defined(ADVCAM_WIDE)
  c.dtype == DType::bf16 ? run<bf16>(c, threads) : run<float>(c, threads);
#endif
}
}  // namespace

bool linear_head_serves(DType dtype, int64_t channels) {
  return wide() && (dtype == DType::bf16 || dtype == DType::f32) && channels % 16 == 0;
}

void linear_head(const LinearHead& c, int threads) { dispatch_dtype(c, threads); }
void linear_head_backward(const LinearHeadBackward& c, int threads) { dispatch_dtype(c, threads); }
}  // namespace advcam::cpu
