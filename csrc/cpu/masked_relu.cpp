// masked_relu on a CPU: one pass over memory. Elements are taken in chunks that stay in first-level cache, so that
// bias, residual and mask may be loops of their own.
#include "masked_relu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kChunk = 8192;   // elements
constexpr int64_t kBlock = 64;     // elements whose bits are gathered at once
constexpr int64_t kSerial = 8192;  // elements below which a second thread costs more than it brings

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements as unsigned integers of their width: chosen or masked without any rounding, which vectorises for
// every type.
template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  typedef uint16_t __attribute__((may_alias)) type;
};
template <>
struct Raw<4> {
  typedef uint32_t __attribute__((may_alias)) type;
};
template <>
struct Raw<8> {
  typedef uint64_t __attribute__((may_alias)) type;
};

// The element is chosen, not computed: what stays keeps its bits.
template <class T>
ADVCAM_INLINE uint8_t rectify(T& x, Acc<T> ceiling, typename Raw<sizeof(T)>::type top) {
  using U = typename Raw<sizeof(T)>::type;
  const Acc<T> v = load(x);
  const bool low = v <= Acc<T>(0), high = v >= ceiling;  // both false for NaN, which stays
  U& u = reinterpret_cast<U&>(x);
  U r = low ? U(0) : u;
  r = high ? top : r;
  u = r;
  return !(low | high);
}

// Eight bytes of 0 or 1 as eight bits, the first one lowest.
ADVCAM_INLINE uint8_t gather(const uint8_t* flags) {
  uint64_t u;
  std::memcpy(&u, flags, 8);
  return static_cast<uint8_t>((u * 0x0102040810204080ull) >> 56);
}

template <class T>
ADVCAM_INLINE void rectify_chunk(T* __restrict x, uint8_t* __restrict bits, int64_t n, Acc<T> ceiling) {
  T rounded;
  store(rounded, ceiling);
  typename Raw<sizeof(T)>::type top;
  std::memcpy(&top, &rounded, sizeof top);
  uint8_t flags[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (int64_t j = 0; j < kBlock; ++j) flags[j] = rectify(x[i + j], ceiling, top);
    if (!bits) continue;
    for (int64_t j = 0; j < kBlock / 8; ++j) bits[i / 8 + j] = gather(flags + 8 * j);
  }
  if (i == n) return;
  std::memset(flags, 0, sizeof flags);
  for (int64_t j = 0; i + j < n; ++j) flags[j] = rectify(x[i + j], ceiling, top);
  if (!bits) return;
  for (int64_t j = 0; i + 8 * j < n; ++j) bits[i / 8 + j] = gather(flags + 8 * j);
}

template <class T, class A>
ADVCAM_INLINE void add_bias(T* __restrict x, const A* __restrict bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(x[i], load(x[i]) + bias[i]);
}
template <class T>
ADVCAM_INLINE void add_residual(T* __restrict x, const T* __restrict residual, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(x[i], load(x[i]) + load(residual[i]));
}
// Eight bits as eight bytes, each 0 or not.
ADVCAM_INLINE void spread(uint8_t bits, uint8_t* flags) {
  const uint64_t u = (bits * 0x0101010101010101ull) & 0x8040201008040201ull;
  std::memcpy(flags, &u, 8);
}

template <class T>
ADVCAM_INLINE void keep(T* gradient, const uint8_t* __restrict bits, int64_t n) {
  using U = typename Raw<sizeof(T)>::type;
  U* g = reinterpret_cast<U*>(gradient);
  uint8_t flags[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (int64_t j = 0; j < kBlock / 8; ++j) spread(bits[i / 8 + j], flags + 8 * j);
    for (int64_t j = 0; j < kBlock; ++j) g[i + j] &= static_cast<U>(-static_cast<U>(flags[j] != 0));
  }
  for (; i < n; ++i) g[i] = (bits[i / 8] >> (i % 8) & 1) ? g[i] : U(0);
}

#define MASKED_RELU(T)                                                                                                \
  ADVCAM_CLONES void rectify_(T* x, uint8_t* bits, int64_t n, Acc<T> ceiling) { rectify_chunk(x, bits, n, ceiling); } \
  ADVCAM_CLONES void add_bias_(T* x, const Acc<T>* bias, int64_t n) { add_bias(x, bias, n); }                         \
  ADVCAM_CLONES void add_residual_(T* x, const T* residual, int64_t n) { add_residual(x, residual, n); }              \
  ADVCAM_CLONES void keep_(T* g, const uint8_t* bits, int64_t n) { keep(g, bits, n); }
MASKED_RELU(float)
MASKED_RELU(double)
MASKED_RELU(bf16)
MASKED_RELU(f16)
#undef MASKED_RELU

// The rows of a chunk begin and end anywhere in it.
template <class T, class Row>
void by_row(T* x, int64_t at, int64_t n, int64_t channels, Row row) {
  for (int64_t i = 0; i < n;) {
    const int64_t channel = (at + i) % channels, count = std::min(channels - channel, n - i);
    row(x + at + i, (at + i) / channels, channel, count);
    i += count;
  }
}

template <class T>
void run(const MaskedRelu& c, int threads) {
  auto* x = static_cast<T*>(c.x);
  const auto* bias = static_cast<const Acc<T>*>(c.bias);
  const auto* residual = static_cast<const T*>(c.residual);
  const int64_t n = c.rows * c.channels, chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && n > kSerial)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t at = k * kChunk, count = std::min(kChunk, n - at);
    if (bias)
      by_row(x, at, count, c.channels,
             [&](T* to, int64_t, int64_t channel, int64_t m) { add_bias_(to, bias + channel, m); });
    if (residual) add_residual_(x + at, residual + at, count);
    if (c.valid)  // -0.0 or 0: its bit is 0 as well
      by_row(x, at, count, c.channels, [&](T* to, int64_t row, int64_t, int64_t m) {
        if (!c.valid[row]) std::memset(to, 0, m * sizeof(T));
      });
    rectify_(x + at, c.bits ? c.bits + at / 8 : nullptr, count, static_cast<Acc<T>>(c.ceiling));
  }
}

template <class T>
void run_backward(const MaskedReluBackward& c, int threads) {
  auto* g = static_cast<T*>(c.gradient);
  const int64_t chunks = (c.n + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && c.n > kSerial)
  for (int64_t k = 0; k < chunks; ++k)
    keep_(g + k * kChunk, c.bits + k * kChunk / 8, std::min(kChunk, c.n - k * kChunk));
}
}  // namespace

void masked_relu(const MaskedRelu& c, int threads) {
  if (c.dtype == DType::f64) return run<double>(c, threads);
  if (c.dtype == DType::bf16) return run<bf16>(c, threads);
  if (c.dtype == DType::f16) return run<f16>(c, threads);
  run<float>(c, threads);
}

void masked_relu_backward(const MaskedReluBackward& c, int threads) {
  if (c.dtype == DType::f64) return run_backward<double>(c, threads);
  if (c.dtype == DType::bf16) return run_backward<bf16>(c, threads);
  if (c.dtype == DType::f16) return run_backward<f16>(c, threads);
  run_backward<float>(c, threads);
}
}  // namespace advcam::cpu
