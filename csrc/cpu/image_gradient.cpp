// image_gradient on a CPU. A job is a band of rows of an item. The rows of g that it meets are turned first: from 16
// columns by 16 units to units by columns, a unit being the 32 bits that one lane multiplies (a float, or two bf16).
#include "image_gradient.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/array.h"
#include "cpu/wide.h"

namespace {
constexpr const char* kUnserved = "image_gradient: wanted are AVX-512 with BF16 and channels that fill vectors";
}

#if defined(ADVCAM_WIDE)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own header
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

namespace advcam::cpu {
namespace {
constexpr int64_t kLanes = 16, kRgb = 3;
constexpr int64_t kVectors = 4;  // of columns at once: 24 sums, 4 of g, a weight: 29 of 32 registers
constexpr int64_t kBand = 32;    // rows of x
constexpr int64_t kLines = kImageGradientKernel / 2;  // rows of g that a row of x meets

template <class T>
constexpr int64_t kPack = 4 / sizeof(T);  // elements of a unit

int64_t half(int64_t a) { return a >= 0 ? a / 2 : -((1 - a) / 2); }

// Two columns of x, 2 q and 2 q + 1, see columns q + low to q + high of g. x's phase f meets column q + low + d by the
// element first - 2 d + f of the kernel's row, if there is one.
struct Geometry {
  int64_t low, offsets, first, cells, units, left, pitch, lines;

  explicit Geometry(const ImageGradient& c, int64_t pack) {
    low = half(c.padding[1] - c.kernel[1] + 2);
    offsets = (c.padding[1] + 1) / 2 - low + 1;
    first = c.padding[1] - 2 * low;
    cells = (c.width + 1) / 2;
    units = c.channels / pack;
    left = std::max<int64_t>(0, -low);  // zeros before the first column of a turned row
    const int64_t read = cells + kVectors * kLanes + offsets, written = left + c.columns + kLanes;
    pitch = left + std::max(read, written);
    lines = kBand / 2 + kLines + 1;
  }
};

// [k, unit, offset, phase, RGB]: in the order in which they are read; 0 where the kernel has no such element.
template <class T>
std::vector<uint32_t> pack_weight(const ImageGradient& c, const Geometry& at) {
  const auto* weight = static_cast<const T*>(c.weight);
  std::vector<uint32_t> packed(c.kernel[0] * at.units * at.offsets * 2 * kRgb, 0);
  auto* to = reinterpret_cast<T*>(packed.data());
  for (int64_t k = 0; k < c.kernel[0]; ++k)
    for (int64_t u = 0; u < at.units; ++u)
      for (int64_t d = 0; d < at.offsets; ++d)
        for (int64_t f = 0; f < 2; ++f)
          for (int64_t rgb = 0; rgb < kRgb; ++rgb)
            for (int64_t m = u * kPack<T>; m < (u + 1) * kPack<T>; ++m, ++to) {
              const int64_t l = at.first - 2 * d + f;
              if (l >= 0 && l < c.kernel[1]) *to = weight[((m * kRgb + rgb) * c.kernel[0] + k) * c.kernel[1] + l];
            }
  return packed;
}

// 16 rows of 16 units, `stride` apart, become 16 columns, `pitch` apart.
ADVCAM_PAIRS_INLINE void turn(const uint32_t* from, int64_t stride, uint32_t* to, int64_t pitch) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // lane l of a[i + j]: column 4 l + j of rows i to i + 3
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i p = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), q = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i r = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i s = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_i32x4(p, r, 0x88), b[8 + j] = _mm512_shuffle_i32x4(p, r, 0xdd);
    b[4 + j] = _mm512_shuffle_i32x4(q, s, 0x88), b[12 + j] = _mm512_shuffle_i32x4(q, s, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * pitch, b[i]);
}

// A row of g, [columns, units], to [units, pitch], `left` from the beginning of each.
ADVCAM_PAIRS void turn_row(const uint32_t* g, int64_t columns, int64_t units, uint32_t* to, int64_t pitch,
                           int64_t left) {
  for (int64_t u = 0; u < units; u += kLanes) {
    int64_t x = 0;
    for (; x + kLanes <= columns; x += kLanes) turn(g + x * units + u, units, to + u * pitch + left + x, pitch);
    if (x == columns) continue;
    alignas(64) uint32_t rest[kLanes * kLanes] = {};
    for (int64_t i = 0; x + i < columns; ++i) std::memcpy(rest + kLanes * i, g + (x + i) * units + u, 64);
    turn(rest, kLanes, to + u * pitch + left + x, pitch);
  }
}

// What a row of x is the sum of.
template <class T>
struct Row {
  struct Line {
    const uint32_t *g, *weight;  // a turned row of g from column `low` on, and the kernel's row that meets it
  } lines[kLines];
  int64_t count, kernel, width;
  const Geometry& at;
  T* x;
};

// Where element i of 16 cells, interleaved [cell, phase, RGB], lies: its lane among 16 of phase 0 and 16 of phase 1.
template <class Word>
struct Interleaved {
  static constexpr int kWords = 64 / sizeof(Word);
  static constexpr int kRegisters = 96 / kWords;
  alignas(64) Word lane[96];
  uint32_t green[kRegisters], blue[kRegisters];  // masks of these elements

  constexpr Interleaved() : lane(), green(), blue() {
    for (int i = 0; i < 96; ++i) {
      lane[i] = static_cast<Word>(16 * (i / 3 % 2) + i / 6);
      if (i % 3 == 1) green[i / kWords] |= 1u << (i % kWords);
      if (i % 3 == 2) blue[i / kWords] |= 1u << (i % kWords);
    }
  }
};
template <class Word>
constexpr Interleaved<Word> kInterleaved{};

using Sums = __m512[2][kRgb];  // of 16 cells: by phase and channel

ADVCAM_PAIRS_INLINE void interleave(const Sums& s, float* to) {
  const auto& order = kInterleaved<uint32_t>;
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    const __m512i lane = _mm512_load_si512(order.lane + 16 * i);
    __m512 r = _mm512_permutex2var_ps(s[0][0], lane, s[1][0]);
    r = _mm512_mask_mov_ps(r, order.green[i], _mm512_permutex2var_ps(s[0][1], lane, s[1][1]));
    r = _mm512_mask_mov_ps(r, order.blue[i], _mm512_permutex2var_ps(s[0][2], lane, s[1][2]));
    _mm512_storeu_ps(to + 16 * i, r);
  }
}
ADVCAM_PAIRS_INLINE void interleave(const Sums& s, bf16* to) {
  const auto& order = kInterleaved<uint16_t>;
  __m512i rounded[kRgb];
#pragma GCC unroll 3
  for (int rgb = 0; rgb < kRgb; ++rgb) rounded[rgb] = (__m512i)_mm512_cvtne2ps_pbh(s[1][rgb], s[0][rgb]);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const __m512i lane = _mm512_load_si512(order.lane + 32 * i);
    __m512i r = _mm512_permutexvar_epi16(lane, rounded[0]);
    r = _mm512_mask_permutexvar_epi16(r, order.green[i], lane, rounded[1]);
    r = _mm512_mask_permutexvar_epi16(r, order.blue[i], lane, rounded[2]);
    _mm512_storeu_si512(to + 32 * i, r);
  }
}

// Cells q to q + 16 vectors.
template <int vectors, class T>
ADVCAM_PAIRS void write_cells(const Row<T>& r, int64_t q) {
  Sums sums[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 2
    for (int f = 0; f < 2; ++f)
#pragma GCC unroll 3
      for (int rgb = 0; rgb < kRgb; ++rgb) sums[v][f][rgb] = _mm512_setzero_ps();
  for (int64_t i = 0; i < r.count; ++i) {
    const uint32_t* w = r.lines[i].weight;
    for (int64_t u = 0; u < r.at.units; ++u) {
      const uint32_t* g = r.lines[i].g + u * r.at.pitch + q;
      for (int64_t d = 0; d < r.at.offsets; ++d, w += 2 * kRgb) {
        __m512i x[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) x[v] = _mm512_loadu_si512(g + d + kLanes * v);
        const int64_t l = r.at.first - 2 * d;
#pragma GCC unroll 2
        for (int f = 0; f < 2; ++f) {
          if (l + f < 0 || l + f >= r.kernel) continue;
#pragma GCC unroll 3
          for (int rgb = 0; rgb < kRgb; ++rgb) {
            const __m512i b = _mm512_set1_epi32(w[kRgb * f + rgb]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[v][f][rgb] = multiplied(T(), sums[v][f][rgb], x[v], b);
          }
        }
      }
    }
  }
  T* const to = r.x + 2 * kRgb * q;
  const int64_t columns = r.width - 2 * q;
  if (columns >= 2 * kLanes * vectors) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) interleave(sums[v], to + 96 * v);
    return;
  }
  T all[96 * vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) interleave(sums[v], all + 96 * v);
  std::memcpy(to, all, columns * kRgb * sizeof(T));
}

// Rows `top` to `bottom` of an item. g: the item's; turned: room for at.lines rows of it, zeros to the left and right.
template <class T>
void write_band(const ImageGradient& c, const Geometry& at, const uint32_t* packed, const uint32_t* g, T* x,
                uint32_t* turned, int64_t top, int64_t bottom) {
  const int64_t first = std::max<int64_t>(0, half(top + c.padding[0] - c.kernel[0] + 2));
  const int64_t last = std::min(c.rows - 1, (bottom - 1 + c.padding[0]) / 2);
  const int64_t row = at.units * at.pitch;
  for (int64_t o = first; o <= last; ++o)
    turn_row(g + o * c.columns * at.units, c.columns, at.units, turned + (o - first) * row, at.pitch, at.left);
  for (int64_t y = top; y < bottom; ++y) {
    Row<T> r{{}, 0, c.kernel[1], c.width, at, x + y * c.width * kRgb};
    for (int64_t k = (y + c.padding[0]) % 2; k < c.kernel[0]; k += 2) {
      const int64_t o = half(y + c.padding[0] - k);
      if (o < 0 || o >= c.rows) continue;
      r.lines[r.count++] = {turned + (o - first) * row + at.left + at.low,
                            packed + k * at.units * at.offsets * 2 * kRgb};
    }
    int64_t q = 0;
    for (; q + (kVectors - 1) * kLanes < at.cells; q += kVectors * kLanes) write_cells<kVectors>(r, q);
    for (; q < at.cells; q += kLanes) write_cells<1>(r, q);
  }
}

template <class T>
void run(const ImageGradient& c, int threads) {
  const Geometry at(c, kPack<T>);
  const std::vector<uint32_t> packed = pack_weight<T>(c, at);
  const int64_t room = at.lines * at.units * at.pitch, item = c.rows * c.columns * at.units;
  const int64_t bands = (c.height + kBand - 1) / kBand, jobs = c.batch * bands;
  threads = static_cast<int>(std::min<int64_t>(threads, jobs));
  const Array<uint32_t> turned(threads * room);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    uint32_t* const own = turned.get() + omp_get_thread_num() * room;
    std::fill(own, own + room, 0);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < jobs; ++job) {
      const int64_t b = job / bands, top = job % bands * kBand;
      write_band(c, at, packed.data(), static_cast<const uint32_t*>(c.gradient) + b * item,
                 static_cast<T*>(c.x_gradient) + b * c.height * c.width * kRgb, own, top,
                 std::min(top + kBand, c.height));
    }
  }
}
}  // namespace

bool image_gradient_serves(DType dtype, int64_t channels) {
  const int64_t pack = dtype == DType::bf16 ? kPack<bf16> : kPack<float>;
  return wide_pairs() && (dtype == DType::bf16 || dtype == DType::f32) && channels % (pack * kLanes) == 0;
}

void image_gradient(const ImageGradient& c, int threads) {
  if (!image_gradient_serves(c.dtype, c.channels)) throw std::invalid_argument(kUnserved);
  if (c.dtype == DType::bf16) return run<bf16>(c, threads);
  run<float>(c, threads);
}
}  // namespace advcam::cpu
#else
namespace advcam::cpu {
bool image_gradient_serves(DType, int64_t) { return false; }
void image_gradient(const ImageGradient&, int) { throw std::invalid_argument(kUnserved); }
}  // namespace advcam::cpu
#endif
