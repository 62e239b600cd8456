// pointwise on a CPU: tiles of 6 positions by 64 outputs, whose sums stay in registers until they are written. A job is
// a run of tiles that see the same positions, so that x comes from a close cache but for the first outputs.
#include "pointwise.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/masked_relu_wide.h"
#include "cpu/rectify.h"
#include "cpu/wide.h"

namespace {
constexpr const char* kUnserved = "pointwise: wanted are AVX-512 with BF16, no AMX, and a multiple of 16 outputs";
}

namespace advcam::cpu {
namespace {
constexpr int64_t kOutputs = 64;  // of a block of weights

template <class T>
constexpr int64_t kPack = 4 / sizeof(T);  // elements of a unit: the 32 bits that a lane multiplies

template <class T>
void pack(const T* weight, T* packed, int64_t inputs, int64_t outputs) {
  for (int64_t first = 0; first < outputs; first += kOutputs)
    for (int64_t unit = 0; unit < inputs; unit += kPack<T>)
      for (int64_t m = first; m < std::min(first + kOutputs, outputs); ++m)
        for (int64_t c = unit; c < unit + kPack<T>; ++c) *packed++ = weight[m * inputs + c];
}
}  // namespace

void pointwise_pack(DType dtype, const void* weight, void* packed, int64_t inputs, int64_t outputs) {
  if (dtype == DType::bf16) return pack(static_cast<const bf16*>(weight), static_cast<bf16*>(packed), inputs, outputs);
  pack(static_cast<const float*>(weight), static_cast<float*>(packed), inputs, outputs);
}
}  // namespace advcam::cpu

#if defined(ADVCAM_WIDE)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own header

namespace advcam::cpu {
namespace {
constexpr int kPositions = 6, kVectors = 4;  // 24 sums, 4 of weights, one of x: 29 of 32 registers
constexpr int64_t kLanes = 16;
constexpr int64_t kLeast = 4, kMost = 32;    // tiles of one block of weights in a job
constexpr int64_t kNear = int64_t{1} << 17;  // bytes of x that a job may see: a part of a second-level cache
static_assert(kOutputs == kVectors * kLanes);

// Where a tile's positions are. The last tile of all may have fewer: it sees its last position again.
struct Positions {
  int64_t x[kPositions], y[kPositions];  // elements from the first
  int64_t count;
};

template <class T>
struct Tile {
  const Pointwise& c;
  const Positions& at;
  const T* ahead;  // x of the next tile
  int64_t first;   // output
  Ceiling<T> ceiling;
  bool bounded;  // by the ceiling
};

// The sums of a register of y, as the dtype has them.
ADVCAM_PAIRS_INLINE __m512i narrowed(const __m512* sums, float) { return _mm512_castps_si512(sums[0]); }
ADVCAM_PAIRS_INLINE __m512i narrowed(const __m512* sums, bf16) {
  return (__m512i)_mm512_cvtne2ps_pbh(sums[1], sums[0]);
}

// What follows the sums of one position: a register of y, or with bf16 half of one.
template <int vectors, class T>
ADVCAM_PAIRS_INLINE void finish(const Tile<T>& t, __m512* sums, int64_t at, int64_t first) {
  using R = Raw<T>;
  using L = Lanes<sizeof(T)>;
  const auto* residual = static_cast<const T*>(t.c.residual);
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v)
    if (residual) sums[v] = _mm512_add_ps(sums[v], load16(residual + at + first + kLanes * v));
  if (vectors < kPack<T>) sums[1] = _mm512_setzero_ps();
  __m512i y = narrowed(sums, T());
  const int64_t byte = (at + first) / 8;
  if (t.c.rectify) {
    typename L::Mask kept;
    y = t.bounded ? rectify_register<true, R, L>(y, kept, t.ceiling)
                  : rectify_register<false, R, L>(y, kept, t.ceiling);
    if (t.c.bits) std::memcpy(t.c.bits + byte, &kept, 2 * vectors);
  }
  if (t.c.kept) {
    typename L::Mask kept = 0;
    std::memcpy(&kept, t.c.kept + byte, 2 * vectors);
    y = L::keep(kept, y);
  }
  T* const to = static_cast<T*>(t.c.y) + at + first;
  if (vectors == kPack<T>)
    _mm512_storeu_si512(to, y);
  else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(y));
}

// 6 positions by 16 `vectors` outputs.
template <int vectors, class T>
ADVCAM_PAIRS void write_tile(const Tile<T>& t, const T* weight) {
  constexpr int kPaired = kPack<T>;
  const auto* x = static_cast<const T*>(t.c.x);
  const T* from[kPositions];
  __m512 sums[kPositions][vectors + 1];
  const char* const there = static_cast<const char*>(t.c.residual ? t.c.residual : t.c.y);
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v)
    sums[0][v] = t.c.bias ? _mm512_loadu_ps(t.c.bias + t.first + kLanes * v) : _mm512_setzero_ps();
#pragma GCC unroll 6
  for (int i = 0; i < kPositions; ++i) {
    from[i] = x + t.at.x[i];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[i][v] = sums[0][v];
    // What is added to, or written over, is not near; the sums take long enough to fetch it.
    const char* const line = there + (t.at.y[i] + t.first) * sizeof(T);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v += kPaired) _mm_prefetch(line + v * kLanes * sizeof(T), _MM_HINT_T0);
  }
  const char* ahead = reinterpret_cast<const char*>(t.ahead);
  for (int64_t unit = 0; unit < t.c.inputs; unit += kPaired, weight += kPaired * kLanes * vectors) {
    _mm_prefetch(ahead, _MM_HINT_T0);  // over the tile, all positions of the next one
    ahead += kPositions * kPaired * sizeof(T);
    __m512i w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) w[v] = _mm512_loadu_si512(weight + kPaired * kLanes * v);
#pragma GCC unroll 6
    for (int i = 0; i < kPositions; ++i) {
      int32_t a;
      std::memcpy(&a, from[i] + unit, 4);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiplied(T(), sums[i][v], _mm512_set1_epi32(a), w[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPositions; ++i) {
    if (i == t.at.count) break;
    int v = 0;
#pragma GCC unroll 4
    for (; v + kPaired <= vectors; v += kPaired) finish<kPaired>(t, sums[i] + v, t.at.y[i], t.first + kLanes * v);
    if (vectors % kPaired) finish<1>(t, sums[i] + vectors - 1, t.at.y[i], t.first + kLanes * (vectors - 1));
  }
}

template <class T>
void write_any(const Tile<T>& t) {
  const T* const weight = static_cast<const T*>(t.c.weight) + t.first * t.c.inputs;
  switch (std::min(kOutputs, t.c.outputs - t.first) / kLanes) {
    case 1:
      return write_tile<1>(t, weight);
    case 2:
      return write_tile<2>(t, weight);
    case 3:
      return write_tile<3>(t, weight);
    default:
      return write_tile<4>(t, weight);
  }
}

Positions positions_of(const Pointwise& c, int64_t first) {
  const int64_t plane = c.rows * c.columns, all = c.batch * plane;
  Positions found;
  found.count = std::min<int64_t>(kPositions, all - first);
  for (int64_t i = 0; i < kPositions; ++i) {
    const int64_t p = first + std::min(i, found.count - 1);
    const int64_t item = p / plane, row = p % plane / c.columns, column = p % c.columns;
    found.x[i] = item * c.x_step[0] + row * c.x_step[1] + column * c.x_step[2];
    found.y[i] = item * c.y_step[0] + row * c.y_step[1] + column * c.y_step[2];
  }
  return found;
}

// How the tiles are cut: `tiles` of one block of weights to a job, and so many blocks.
struct Cut {
  int64_t tiles, blocks;

  Cut(const Pointwise& c, int64_t all, int64_t size, int threads) {
    const int64_t near = std::clamp(kNear / (kPositions * c.inputs * size), kLeast, kMost);
    int64_t jobs = (all + near - 1) / near;
    jobs = std::min((jobs + threads - 1) / threads * threads, (all + kLeast - 1) / kLeast);  // no thread has one more
    tiles = (all + jobs - 1) / jobs;
    const int64_t each = (c.outputs + kOutputs - 1) / kOutputs, parts = std::min(each, (threads + jobs - 1) / jobs);
    blocks = (each + parts - 1) / parts;
  }
};

template <class T>
void run(const Pointwise& c, int threads) {
  const int64_t all = (c.batch * c.rows * c.columns + kPositions - 1) / kPositions;
  const Cut cut(c, all, sizeof(T), threads);
  const int64_t outputs = cut.blocks * kOutputs, parts = (c.outputs + outputs - 1) / outputs;
  const int64_t jobs = (all + cut.tiles - 1) / cut.tiles * parts;
  const bool dense = c.x_step[2] == c.inputs;
  const Ceiling<T> ceiling = rounded<T>(static_cast<float>(c.ceiling));
  const bool bounded = ceiling.value < Raw<T>::infinity;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t job = 0; job < jobs; ++job) {
    const int64_t top = job / parts * cut.tiles, count = std::min(cut.tiles, all - top);
    const int64_t begin = job % parts * outputs, end = std::min(begin + outputs, c.outputs);
    Positions at[kMost];
    for (int64_t i = 0; i < count; ++i) at[i] = positions_of(c, (top + i) * kPositions);
    for (int64_t first = begin; first < end; first += kOutputs)
      for (int64_t i = 0; i < count; ++i) {
        const T* const next = static_cast<const T*>(c.x) + at[dense ? std::min(i + 1, count - 1) : i].x[0];
        write_any<T>({c, at[i], next, first, ceiling, bounded});
      }
  }
}
}  // namespace

bool pointwise_serves(DType dtype, int64_t inputs, int64_t outputs) {
  static const bool tiles = __builtin_cpu_supports("amx-bf16");
  if (outputs % kPointwiseOutputs) return false;
  if (dtype == DType::bf16) return wide_pairs() && !tiles && inputs % kPack<bf16> == 0;
  return wide_pairs() && dtype == DType::f32;
}

void pointwise(const Pointwise& c, int threads) {
  if (!pointwise_serves(c.dtype, c.inputs, c.outputs)) throw std::invalid_argument(kUnserved);
  if (c.dtype == DType::bf16) return run<bf16>(c, threads);
  run<float>(c, threads);
}
}  // namespace advcam::cpu
#else
namespace advcam::cpu {
bool pointwise_serves(DType, int64_t, int64_t) { return false; }
void pointwise(const Pointwise&, int) { throw std::invalid_argument(kUnserved); }
}  // namespace advcam::cpu
#endif
