// The windows of max_pool with AVX-512, for 64 channels: maxima and sums in registers, which no compiler makes of the
// portable loops over arrays in max_pool.cpp.
#pragma once
#include "cpu/simd.h"
#include "max_pool.h"

#if defined(ADVCAM_WIDE)
#include <immintrin.h>

#include <limits>

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

// As pool_window.
template <class T>
ADVCAM_WIDE_INLINE void pool_lanes(const Pooling& p, const T* x, int64_t top, int64_t left, T* y, uint8_t* at) {
  __m512 best[4];
  __m512i which[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    best[v] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    which[v] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < p.kernel[0]; ++k) {
    const int64_t row = top + k * p.dilation[0];
    if (row < 0 || row >= p.height) continue;
    for (int64_t l = 0; l < p.kernel[1]; ++l) {
      const int64_t column = left + l * p.dilation[1];
      if (column < 0 || column >= p.width) continue;
      const T* from = x + (row * p.width + column) * p.channels;
      const __m512i element = _mm512_set1_epi32(static_cast<int>(k * p.kernel[1] + l));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512 a = load16(from + 16 * v);
        const __mmask16 larger = _mm512_cmp_ps_mask(a, best[v], _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        best[v] = _mm512_mask_mov_ps(best[v], larger, a);
        which[v] = _mm512_mask_mov_epi32(which[v], larger, element);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    store16(y + 16 * v, best[v]);
    if (at) _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16 * v), _mm512_cvtepi32_epi8(which[v]));
  }
}

// As gather_position.
template <class T>
ADVCAM_WIDE_INLINE void gather_lanes(const Pooling& p, const T* gradient, const uint8_t* at, T* to, const int64_t* rows,
                                     const int64_t* columns) {
  __m512 sum[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) sum[v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < p.kernel[0]; ++k) {
    if (rows[k] < 0) continue;
    for (int64_t l = 0; l < p.kernel[1]; ++l) {
      if (columns[l] < 0) continue;
      const int64_t from = (rows[k] * p.columns + columns[l]) * p.channels;
      const __m512i took = _mm512_loadu_si512(at + from);
      const __mmask64 mine = _mm512_cmpeq_epi8_mask(took, _mm512_set1_epi8(static_cast<char>(k * p.kernel[1] + l)));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        sum[v] = _mm512_mask_add_ps(sum[v], static_cast<__mmask16>(mine >> 16 * v), sum[v],
                                    load16(gradient + from + 16 * v));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) store16(to + 16 * v, sum[v]);
}
}  // namespace advcam::cpu
#endif
