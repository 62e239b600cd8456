// The windows of max_pool with AVX-512, for 64 channels: maxima and sums in registers, which no compiler makes of the
// portable loops over arrays in max_pool.cpp.
#pragma once
#include "cpu/wide.h"
#include "max_pool.h"

#if defined(ADVCAM_WIDE)
#include <limits>

namespace advcam::cpu {
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
