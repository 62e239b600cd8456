// masked_relu on a CPU: one pass over memory. Elements are taken in chunks that stay in first-level cache, so that
// bias, residual and mask may be loops of their own.
#include "masked_relu.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/masked_relu_wide.h"
#include "cpu/rectify.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kChunk = 8192;   // elements
constexpr int64_t kBlock = 64;     // elements whose bits are spread at once
constexpr int64_t kSerial = 8192;  // elements below which a second thread costs more than it brings

// Whether x is a number above 0 and below the ceiling, or a NaN; it becomes 0 or the ceiling if not.
template <bool bounded, class T>
ADVCAM_INLINE uint8_t rectify_element(typename Raw<T>::type& x, Ceiling<T> ceiling) {
  using I = typename Raw<T>::type;
  using U = std::make_unsigned_t<I>;
  const I v = x;
  const bool negative = static_cast<U>(v ^ std::numeric_limits<I>::min()) <= static_cast<U>(Raw<T>::infinity);
  const I r = negative ? I(0) : v;
  if (!bounded) {
    x = r;
    return (r != 0) & (r != Raw<T>::infinity);
  }
  const bool high = (v >= ceiling.least) & (v <= Raw<T>::infinity);
  x = high ? ceiling.value : r;
  return (r != 0) & !high;
}

// Eight bytes of 0 or 1 as eight bits, the first one lowest.
ADVCAM_INLINE uint8_t gather(const uint8_t* flags) {
  uint64_t u;
  std::memcpy(&u, flags, 8);
  return static_cast<uint8_t>((u * 0x0102040810204080ull) >> 56);
}

// n <= kChunk. The flags of all elements come first: the loops over them vectorise alone only.
template <bool bounded, class T>
ADVCAM_INLINE void rectify_chunk(T* values, uint8_t* __restrict bits, int64_t n, Ceiling<T> ceiling) {
  auto* x = reinterpret_cast<typename Raw<T>::type*>(values);
  uint8_t flags[kChunk];
  for (int64_t i = 0; i < n; ++i) flags[i] = rectify_element<bounded, T>(x[i], ceiling);
  if (!bits) return;  // a loop without flags would be no faster: it waits for the memory
  const int64_t bytes = (n + 7) / 8;
  std::memset(flags + n, 0, 8 * bytes - n);
  for (int64_t i = 0; i < bytes; ++i) bits[i] = gather(flags + 8 * i);
}

template <class T>
ADVCAM_INLINE void rectify_chunk(T* values, uint8_t* bits, int64_t n, Acc<T> upper) {
  const Ceiling<T> ceiling = rounded<T>(upper);
  if (ceiling.value < Raw<T>::infinity) return rectify_chunk<true>(values, bits, n, ceiling);
  rectify_chunk<false>(values, bits, n, ceiling);
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
  using I = typename Raw<T>::type;
  I* g = reinterpret_cast<I*>(gradient);
  uint8_t flags[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (int64_t j = 0; j < kBlock / 8; ++j) spread(bits[i / 8 + j], flags + 8 * j);
    for (int64_t j = 0; j < kBlock; ++j) g[i + j] &= static_cast<I>(-static_cast<I>(flags[j] != 0));
  }
  for (; i < n; ++i) g[i] = (bits[i / 8] >> (i % 8) & 1) ? g[i] : I(0);
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

#if defined(ADVCAM_WIDE)
#define RECTIFY_WIDE(T)                                                                                \
  ADVCAM_WIDE void rectify_wide(T* x, uint8_t* bits, int64_t n, Acc<T> upper) {                        \
    const Ceiling<T> ceiling = rounded<T>(upper);                                                      \
    auto* bytes = reinterpret_cast<char*>(x);                                                          \
    if (ceiling.value < Raw<T>::infinity) return rectify_lanes<true, Raw<T>>(bytes, bits, n, ceiling); \
    rectify_lanes<false, Raw<T>>(bytes, bits, n, ceiling);                                             \
  }
#else
#define RECTIFY_WIDE(T) \
  void rectify_wide(T*, uint8_t*, int64_t, Acc<T>) {}
#endif
RECTIFY_WIDE(float)
RECTIFY_WIDE(double)
RECTIFY_WIDE(bf16)
RECTIFY_WIDE(f16)
#undef RECTIFY_WIDE

// Whole blocks go the wide way where the machine has one; where a block ends, a byte of bits does too.
template <class T>
void rectify(T* x, uint8_t* bits, int64_t n, Acc<T> ceiling) {
  const int64_t whole = wide() ? n / kBlock * kBlock : 0;
  if (whole) rectify_wide(x, bits, whole, ceiling);
  if (whole < n) rectify_(x + whole, bits ? bits + whole / 8 : nullptr, n - whole, ceiling);
}

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
    rectify(x + at, c.bits ? c.bits + at / 8 : nullptr, count, static_cast<Acc<T>>(c.ceiling));
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
