// max_pool on a CPU: a job is a row of what is written, in blocks of channels whose maxima (or sums) stay in
// first-level cache while the windows pass.
#include "max_pool.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/max_pool_wide.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kBlock = 64;  // channels

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The maxima of one window. x: its item's first of these channels. whole: kBlock channels, a count that the compiler
// unrolls into registers; else `count`.
template <bool whole, class T>
ADVCAM_INLINE void pool_window(const Pooling& p, const T* x, int64_t top, int64_t left, int64_t count, T* y,
                               uint8_t* at) {
  const int64_t n = whole ? kBlock : count;
  Acc<T> best[kBlock];
  int32_t which[kBlock];
  for (int64_t j = 0; j < n; ++j) best[j] = -std::numeric_limits<Acc<T>>::infinity();
  for (int64_t j = 0; j < n; ++j) which[j] = 0;
  for (int64_t k = 0; k < p.kernel[0]; ++k) {
    const int64_t row = top + k * p.dilation[0];
    if (row < 0 || row >= p.height) continue;
    for (int64_t l = 0; l < p.kernel[1]; ++l) {
      const int64_t column = left + l * p.dilation[1];
      if (column < 0 || column >= p.width) continue;
      const T* __restrict from = x + (row * p.width + column) * p.channels;
      const int32_t element = static_cast<int32_t>(k * p.kernel[1] + l);
      for (int64_t j = 0; j < n; ++j) {
        const Acc<T> v = load(from[j]);
        const bool larger = (v > best[j]) | (v != v);
        best[j] = larger ? v : best[j];
        which[j] = larger ? element : which[j];
      }
    }
  }
  for (int64_t j = 0; j < n; ++j) store(y[j], best[j]);
  if (!at) return;
  for (int64_t j = 0; j < n; ++j) at[j] = static_cast<uint8_t>(which[j]);
}

#if defined(ADVCAM_WIDE)
#define MAX_POOL_WIDE(T)                                                                                           \
  ADVCAM_WIDE void pool_wide(const Pooling& p, const T* x, int64_t top, int64_t left, T* y, uint8_t* at) {         \
    pool_lanes(p, x, top, left, y, at);                                                                            \
  }                                                                                                                \
  ADVCAM_WIDE void gather_wide(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows, \
                               const int64_t* columns) {                                                           \
    gather_lanes(p, gradient, at, to, rows, columns);                                                              \
  }
MAX_POOL_WIDE(float)
MAX_POOL_WIDE(bf16)
#undef MAX_POOL_WIDE
#endif
template <class T>
void pool_wide(const Pooling&, const T*, int64_t, int64_t, T*, uint8_t*) {}
template <class T>
void gather_wide(const Pooling&, const T*, const uint8_t*, T*, const int64_t*, const int64_t*) {}

// Whether whole blocks go the wide way.
template <class T>
bool has_wide() {
  return wide() && (std::is_same_v<T, float> || std::is_same_v<T, bf16>);
}

// Row `row` of y. x: its item's; y and at: the row's.
template <class T>
ADVCAM_INLINE void pool_row(const Pooling& p, const T* x, T* y, uint8_t* at, int64_t row) {
  const bool widely = has_wide<T>();
  const int64_t top = row * p.stride[0] - p.padding[0];
  for (int64_t column = 0; column < p.columns; ++column) {
    const int64_t left = column * p.stride[1] - p.padding[1];
    for (int64_t c = 0; c < p.channels; c += kBlock) {
      const int64_t n = std::min(kBlock, p.channels - c), to = column * p.channels + c;
      uint8_t* const took = at ? at + to : nullptr;
      if (n == kBlock && widely)
        pool_wide(p, x + c, top, left, y + to, took);
      else if (n == kBlock)
        pool_window<true>(p, x + c, top, left, n, y + to, took);
      else
        pool_window<false>(p, x + c, top, left, n, y + to, took);
    }
  }
}

// For each position of one side of x, and each element of a window there: the window that has it there, or -1.
std::vector<int64_t> windows_at(const Pooling& p, int side, int64_t positions, int64_t windows) {
  const int64_t kernel = p.kernel[side];
  std::vector<int64_t> found(positions * kernel, -1);
  for (int64_t window = 0; window < windows; ++window) {
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t i = window * p.stride[side] - p.padding[side] + k * p.dilation[side];
      if (i >= 0 && i < positions) found[i * kernel + k] = window;
    }
  }
  return found;
}

// The gradient of one position of x. gradient and at: its item's first of these channels; rows, columns: the windows
// there.
template <bool whole, class T>
ADVCAM_INLINE void gather_position(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows,
                                   const int64_t* columns, int64_t count) {
  const int64_t n = whole ? kBlock : count;
  Acc<T> sum[kBlock];
  for (int64_t j = 0; j < n; ++j) sum[j] = 0;
  for (int64_t k = 0; k < p.kernel[0]; ++k) {
    for (int64_t l = 0; l < p.kernel[1]; ++l) {
      if (rows[k] < 0 || columns[l] < 0) continue;
      const int64_t from = (rows[k] * p.columns + columns[l]) * p.channels;
      const T* __restrict g = gradient + from;
      const uint8_t* __restrict took = at + from;
      const uint8_t element = static_cast<uint8_t>(k * p.kernel[1] + l);
      for (int64_t j = 0; j < n; ++j) sum[j] += took[j] == element ? load(g[j]) : Acc<T>(0);
    }
  }
  for (int64_t j = 0; j < n; ++j) store(to[j], sum[j]);
}

// A row of the gradient of x. gradient and at: its item's; rows: the windows there; columns: of every position.
template <class T>
ADVCAM_INLINE void gather_row(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows,
                              const int64_t* columns) {
  const bool widely = has_wide<T>();
  for (int64_t column = 0; column < p.width; ++column, columns += p.kernel[1]) {
    for (int64_t c = 0; c < p.channels; c += kBlock) {
      const int64_t n = std::min(kBlock, p.channels - c);
      T* const here = to + column * p.channels + c;
      if (n == kBlock && widely)
        gather_wide(p, gradient + c, at + c, here, rows, columns);
      else if (n == kBlock)
        gather_position<true>(p, gradient + c, at + c, here, rows, columns, n);
      else
        gather_position<false>(p, gradient + c, at + c, here, rows, columns, n);
    }
  }
}

#define MAX_POOL(T)                                                                                                  \
  ADVCAM_CLONES void pool_row_(const Pooling& p, const T* x, T* y, uint8_t* at, int64_t row) {                       \
    pool_row(p, x, y, at, row);                                                                                      \
  }                                                                                                                  \
  ADVCAM_CLONES void gather_row_(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows, \
                                 const int64_t* columns) {                                                           \
    gather_row(p, gradient, at, to, rows, columns);                                                                  \
  }
MAX_POOL(float)
MAX_POOL(double)
MAX_POOL(bf16)
MAX_POOL(f16)
#undef MAX_POOL

template <class T>
void run(const MaxPool& c, int threads) {
  const Pooling& p = c.pooling;
  const int64_t given = p.height * p.width * p.channels, made = p.columns * p.channels;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t job = 0; job < p.batch * p.rows; ++job)
    pool_row_(p, static_cast<const T*>(c.x) + job / p.rows * given, static_cast<T*>(c.y) + job * made,
              c.at ? c.at + job * made : nullptr, job % p.rows);
}

template <class T>
void run_backward(const MaxPoolBackward& c, int threads) {
  const Pooling& p = c.pooling;
  const int64_t given = p.rows * p.columns * p.channels, made = p.width * p.channels;
  const std::vector<int64_t> rows = windows_at(p, 0, p.height, p.rows), columns = windows_at(p, 1, p.width, p.columns);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t job = 0; job < p.batch * p.height; ++job) {
    const int64_t item = job / p.height * given;
    gather_row_(p, static_cast<const T*>(c.gradient) + item, c.at + item, static_cast<T*>(c.x_gradient) + job * made,
                rows.data() + job % p.height * p.kernel[0], columns.data());
  }
}
}  // namespace

void max_pool(const MaxPool& c, int threads) {
  if (c.dtype == DType::f64) return run<double>(c, threads);
  if (c.dtype == DType::bf16) return run<bf16>(c, threads);
  if (c.dtype == DType::f16) return run<f16>(c, threads);
  run<float>(c, threads);
}

void max_pool_backward(const MaxPoolBackward& c, int threads) {
  if (c.dtype == DType::f64) return run_backward<double>(c, threads);
  if (c.dtype == DType::bf16) return run_backward<bf16>(c, threads);
  if (c.dtype == DType::f16) return run_backward<f16>(c, threads);
  run_backward<float>(c, threads);
}
}  // namespace advcam::cpu
