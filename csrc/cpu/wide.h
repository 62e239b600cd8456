// AVX-512 for functions that are called where wide() says so: loading and storing 16 elements; and, where wide_pairs()
// says so, multiplying units of 32 bits, which are a float or two bf16.
#pragma once
#include "cpu/simd.h"

#if defined(ADVCAM_WIDE)
#include <immintrin.h>

// A template for both dtypes is compiled for one set of instructions: the larger one, which the pairs of bf16 need.
#define ADVCAM_PAIRS __attribute__((target("arch=x86-64-v4,avx512bf16"), noinline))
#define ADVCAM_PAIRS_INLINE static inline __attribute__((target("arch=x86-64-v4,avx512bf16"), always_inline))

namespace advcam::cpu {
inline bool wide_pairs() {
  static const bool has = wide() && __builtin_cpu_supports("avx512bf16");
  return has;
}
ADVCAM_PAIRS_INLINE __m512 multiplied(float, __m512 sum, __m512i a, __m512i b) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}
ADVCAM_PAIRS_INLINE __m512 multiplied(bf16, __m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

ADVCAM_WIDE_INLINE __m512 load16(const float* x) { return _mm512_loadu_ps(x); }
ADVCAM_WIDE_INLINE __m512 load16(const bf16* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
ADVCAM_WIDE_INLINE void store16(float* x, __m512 a) { _mm512_storeu_ps(x, a); }
ADVCAM_WIDE_INLINE void store16(bf16* x, __m512 a) {  // rounds as simd.h's store
  const __m512i u = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}
}  // namespace advcam::cpu
#endif
