// Rectifying with AVX-512, whose comparisons leave the bits to be kept as masks: no flag goes through memory, as in the
// portable loop of masked_relu.cpp.
#pragma once
#include "cpu/simd.h"

#if defined(ADVCAM_WIDE)
#include <immintrin.h>

#include <limits>

namespace advcam::cpu {
// A register of integers of kBytes each. Bit i of a mask belongs to element i in memory.
template <int kBytes>
struct Lanes;
#define LANES(kBytes, kBits, mask)                                                                                  \
  template <>                                                                                                       \
  struct Lanes<kBytes> {                                                                                            \
    using Mask = mask;                                                                                              \
    ADVCAM_WIDE_INLINE __m512i all(int64_t x) { return _mm512_set1_epi##kBits(x); }                                 \
    ADVCAM_WIDE_INLINE Mask above(__m512i a, __m512i b) { return _mm512_cmpgt_epu##kBits##_mask(a, b); }            \
    ADVCAM_WIDE_INLINE Mask nonzero(Mask m, __m512i x) { return _mm512_mask_test_epi##kBits##_mask(m, x, x); }      \
    ADVCAM_WIDE_INLINE Mask differ(Mask m, __m512i a, __m512i b) {                                                  \
      return _mm512_mask_cmpneq_epi##kBits##_mask(m, a, b);                                                         \
    }                                                                                                               \
    ADVCAM_WIDE_INLINE Mask within(__m512i low, __m512i x, __m512i high) {                                          \
      return _mm512_mask_cmple_epi##kBits##_mask(_mm512_cmple_epi##kBits##_mask(low, x), x, high);                  \
    }                                                                                                               \
    ADVCAM_WIDE_INLINE __m512i keep(Mask m, __m512i x) { return _mm512_maskz_mov_epi##kBits(m, x); }                \
    ADVCAM_WIDE_INLINE __m512i choose(Mask m, __m512i x, __m512i y) { return _mm512_mask_mov_epi##kBits(y, m, x); } \
  };
LANES(2, 16, __mmask32)
LANES(4, 32, __mmask16)
LANES(8, 64, __mmask8)
#undef LANES

// A register of elements given as the integers R::type, rectified; `kept`: which are above 0 and below the ceiling, or
// NaN.
template <bool bounded, class R, class L, class Ceiling>
ADVCAM_WIDE_INLINE __m512i rectify_register(__m512i v, typename L::Mask& kept, Ceiling ceiling) {
  const __m512i sign = L::all(std::numeric_limits<typename R::type>::min()), infinity = L::all(R::infinity);
  const typename L::Mask positive = L::above(_mm512_xor_si512(v, sign), infinity);  // or 0 or NaN
  kept = L::nonzero(positive, v);
  const __m512i r = L::keep(positive, v);
  if (!bounded) {
    kept = L::differ(kept, v, infinity);
    return r;
  }
  const typename L::Mask high = L::within(L::all(ceiling.least), v, infinity);
  kept &= ~high;
  return L::choose(high, L::all(ceiling.value), r);
}

// As rectify_chunk, for n a multiple of 64.
template <bool bounded, class R, class Ceiling>
ADVCAM_WIDE_INLINE void rectify_lanes(char* x, uint8_t* bits, int64_t n, Ceiling ceiling) {
  constexpr int64_t kBytes = sizeof(typename R::type), kLane = 64 / kBytes;
  using L = Lanes<kBytes>;
  for (int64_t i = 0; i < n; i += kLane) {
    typename L::Mask kept;
    const __m512i v = _mm512_loadu_si512(x + i * kBytes);
    _mm512_storeu_si512(x + i * kBytes, rectify_register<bounded, R, L>(v, kept, ceiling));
    if (bits) std::memcpy(bits + i / 8, &kept, sizeof kept);
  }
}
}  // namespace advcam::cpu
#endif
