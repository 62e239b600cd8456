// max_pool on a CPU: a job is a row of what is written, in blocks of channels whose maxima (or sums) stay in
// first-level cache while the windows pass.
#include "max_pool.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kBlock = 64;  // channels

// A count that the compiler knows unrolls into registers.
#define ADVCAM_BLOCK(n, loop)     \
  if ((n) == kBlock) {            \
    constexpr int64_t m = kBlock; \
    loop                          \
  } else {                        \
    const int64_t m = n;          \
    loop                          \
  }

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
ADVCAM_INLINE void take_larger(const T* __restrict x, Acc<T>* __restrict best, int32_t* __restrict which,
                               int32_t element, int64_t n) {
  ADVCAM_BLOCK(
      n, for (int64_t j = 0; j < m; ++j) {
        const Acc<T> v = load(x[j]);
        const bool larger = (v > best[j]) | (v != v);
        best[j] = larger ? v : best[j];
        which[j] = larger ? element : which[j];
      })
}

// Row `row` of y. x: its item's; y and at: the row's.
template <class T>
ADVCAM_INLINE void pool_row(const Pooling& p, const T* x, T* y, uint8_t* at, int64_t row) {
  Acc<T> best[kBlock];
  int32_t which[kBlock];
  const int64_t top = row * p.stride[0] - p.padding[0];
  for (int64_t column = 0; column < p.columns; ++column) {
    const int64_t left = column * p.stride[1] - p.padding[1];
    for (int64_t c = 0; c < p.channels; c += kBlock) {
      const int64_t n = std::min(kBlock, p.channels - c), to = column * p.channels + c;
      for (int64_t j = 0; j < n; ++j) best[j] = -std::numeric_limits<Acc<T>>::infinity(), which[j] = 0;
      for (int64_t k = 0; k < p.kernel[0]; ++k) {
        const int64_t i = top + k * p.dilation[0];
        if (i < 0 || i >= p.height) continue;
        for (int64_t l = 0; l < p.kernel[1]; ++l) {
          const int64_t j = left + l * p.dilation[1];
          if (j < 0 || j >= p.width) continue;
          const T* from = x + (i * p.width + j) * p.channels + c;
          take_larger(from, best, which, static_cast<int32_t>(k * p.kernel[1] + l), n);
        }
      }
      for (int64_t j = 0; j < n; ++j) store(y[to + j], best[j]);
      if (!at) continue;
      for (int64_t j = 0; j < n; ++j) at[to + j] = static_cast<uint8_t>(which[j]);
    }
  }
}

template <class T>
ADVCAM_INLINE void add_taken(const T* __restrict gradient, const uint8_t* __restrict at, Acc<T>* __restrict sum,
                             uint8_t element, int64_t n) {
  ADVCAM_BLOCK(n, for (int64_t j = 0; j < m; ++j) sum[j] += at[j] == element ? load(gradient[j]) : Acc<T>(0);)
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

// A row of the gradient of x. gradient and at: its item's; rows: the windows there; columns: of every position.
template <class T>
ADVCAM_INLINE void gather_row(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows,
                              const int64_t* columns) {
  Acc<T> sum[kBlock];
  for (int64_t column = 0; column < p.width; ++column, columns += p.kernel[1]) {
    for (int64_t c = 0; c < p.channels; c += kBlock) {
      const int64_t n = std::min(kBlock, p.channels - c);
      for (int64_t j = 0; j < n; ++j) sum[j] = 0;
      for (int64_t k = 0; k < p.kernel[0]; ++k) {
        for (int64_t l = 0; l < p.kernel[1]; ++l) {
          if (rows[k] < 0 || columns[l] < 0) continue;
          const int64_t from = (rows[k] * p.columns + columns[l]) * p.channels + c;
          add_taken(gradient + from, at + from, sum, static_cast<uint8_t>(k * p.kernel[1] + l), n);
        }
      }
      for (int64_t j = 0; j < n; ++j) store(to[column * p.channels + c + j], sum[j]);
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
