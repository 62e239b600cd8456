// Loading and storing 16 elements with AVX-512, for functions that are called where wide() says so.
#pragma once
#include "cpu/simd.h"

#if defined(ADVCAM_WIDE)
#include <immintrin.h>

namespace advcam::cpu {
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
