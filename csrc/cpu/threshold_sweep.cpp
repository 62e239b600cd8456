// threshold_sweep on a CPU: chunks of pixels, each with its best map, its bucket among the thresholds and its count.
#include "threshold_sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/array.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kChunk = 1024;          // pixels
constexpr int64_t kPixels = 64 * kChunk;  // of a job
constexpr int kCells = 2048;
constexpr int kFew = 24;  // thresholds that are compared one by one sooner than looked up

// What a chunk is compared in: float holds every f16.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Ascending thresholds, and for many of them cells of equal width: a value's cell says how many thresholds lie in the
// cells before, which is exact since a cell's number never falls as the value rises; those within it are compared.
template <class W>
struct Steps {
  std::vector<W> value;         // and `most` times infinity
  std::vector<int32_t> before;  // [kCells]
  W first = 0, scale = 0;
  int32_t count = 0, most = 0;  // thresholds in all, and in the fullest cell
};

template <class W>
ADVCAM_INLINE int32_t cell_of(W value, W first, W scale) {
  const W cell = (value - first) * scale, last = kCells - 1;
  return static_cast<int32_t>(cell > 0 ? (cell < last ? cell : last) : W(0));
}

template <class T>
Steps<Wide<T>> steps_of(const ThresholdSweep& c) {
  using W = Wide<T>;
  Steps<W> s;
  s.count = static_cast<int32_t>(c.steps);
  for (int64_t j = 0; j < c.steps; ++j) s.value.push_back(load(static_cast<const T*>(c.thresholds)[j]));
  if (s.count <= kFew) return s;
  s.first = s.value[std::isfinite(s.value.front()) ? 0 : 1];
  s.scale = kCells / (s.value[s.count - (std::isfinite(s.value.back()) ? 1 : 2)] - s.first);
  std::vector<int32_t> within(kCells);
  for (W value : s.value) ++within[cell_of(value, s.first, s.scale)];
  s.most = *std::max_element(within.begin(), within.end());
  for (int32_t cell = 0, sum = 0; cell < kCells; ++cell) s.before.push_back(sum), sum += within[cell];
  s.value.resize(s.count + s.most, std::numeric_limits<W>::infinity());
  return s;
}

// The best map of n <= kChunk pixels and how many thresholds are below it, as place = map * (count + 1) + bucket.
// Returns the number of NaN.
template <class T, class W>
ADVCAM_INLINE int32_t place(const T* __restrict maps, int64_t stride, int64_t count, const Steps<W>& steps, int32_t n,
                            W* __restrict best, int32_t* __restrict places) {
  const int32_t row = steps.count + 1;
  int32_t nans = 0;
  for (int32_t i = 0; i < n; ++i) best[i] = -std::numeric_limits<W>::infinity(), places[i] = 0;
  for (int64_t k = 0; k < count; ++k) {
    const T* __restrict map = maps + k * stride;
    const auto first = static_cast<int32_t>(k) * row;
    for (int32_t i = 0; i < n; ++i) {
      const W value = load(map[i]);
      nans += value != value;
      places[i] = value > best[i] ? first : places[i];
      best[i] = value > best[i] ? value : best[i];
    }
  }
  const W* __restrict value = steps.value.data();
  if (steps.count > kFew) {
    const int32_t* __restrict before = steps.before.data();
    int32_t from[kChunk];
    for (int32_t i = 0; i < n; ++i) from[i] = before[cell_of(best[i], steps.first, steps.scale)];
    for (int32_t i = 0; i < n; ++i) places[i] += from[i];
    for (int32_t j = 0; j < steps.most; ++j)
      for (int32_t i = 0; i < n; ++i) places[i] += best[i] > value[from[i] + j];
    return nans;
  }
  for (int32_t j = 0; j < steps.count; ++j)
    for (int32_t i = 0; i < n; ++i) places[i] += best[i] > value[j];
  return nans;
}

#define ADVCAM_PLACE(T)                                                                                              \
  ADVCAM_CLONES int32_t place_(const T* maps, int64_t stride, int64_t count, const Steps<Wide<T>>& steps, int32_t n, \
                               Wide<T>* best, int32_t* places) {                                                     \
    return place(maps, stride, count, steps, n, best, places);                                                       \
  }
ADVCAM_PLACE(float)
ADVCAM_PLACE(double)
ADVCAM_PLACE(f16)
#undef ADVCAM_PLACE

// Counts of one job, [num_classes + 3, count of maps, steps + 1], by truth: the classes, ignored, and no class.
struct Counts {
  Array<int32_t> pixels;
  int64_t nans = 0;
};

template <class T>
Counts count(const ThresholdSweep& c, const Steps<Wide<T>>& steps, int64_t begin, int64_t end) {
  const int64_t row = std::max<int64_t>(c.count, 1) * (steps.count + 1), size = (c.num_classes + 3) * row;
  int32_t first[256];
  for (int64_t g = 0; g < 256; ++g)
    first[g] = static_cast<int32_t>((g <= c.num_classes ? g : c.num_classes + (g == 255 ? 1 : 2)) * row);
  Counts counts{Array<int32_t>(2 * size)};
  std::fill_n(counts.pixels.get(), 2 * size, 0);
  int32_t *even = counts.pixels.get(), *odd = even + size;  // neighbours are mostly of one kind: do not wait for it
  alignas(64) Wide<T> best[kChunk];
  alignas(64) int32_t places[kChunk];
  for (int64_t at = begin; at < end; at += kChunk) {
    const auto n = static_cast<int32_t>(std::min(kChunk, end - at));
    counts.nans += place_(static_cast<const T*>(c.maps) + at, c.pixels, c.count, steps, n, best, places);
    const uint8_t* truth = c.truth + at;
    for (int32_t i = 0; i + 1 < n; i += 2)
      ++even[first[truth[i]] + places[i]], ++odd[first[truth[i + 1]] + places[i + 1]];
    if (n % 2) ++even[first[truth[n - 1]] + places[n - 1]];
  }
  for (int64_t i = 0; i < size; ++i) even[i] += odd[i];
  return counts;
}

// [truth, map, bucket] -> [step, truth, predicted]
void cumulate(const ThresholdSweep& c, const std::vector<Counts>& jobs) {
  const int64_t sides = c.num_classes + 1, row = std::max<int64_t>(c.count, 1) * (c.steps + 1);
  std::fill_n(c.confusion, c.steps * sides * sides, 0);
  std::vector<int64_t> pixels(row);
  for (int64_t g = 0; g < sides; ++g) {
    std::fill(pixels.begin(), pixels.end(), 0);
    int64_t total = 0;
    for (const Counts& job : jobs)
      for (int64_t i = 0; i < row; ++i) pixels[i] += job.pixels[g * row + i], total += job.pixels[g * row + i];
    if (!total) continue;
    for (int64_t t = 0; t < c.steps; ++t) c.confusion[(t * sides + g) * sides] = total;
    for (int64_t k = 0; k < c.count; ++k) {
      int64_t above = 0;
      for (int64_t t = c.steps - 1; t >= 0; --t) {
        int64_t* to = c.confusion + (t * sides + g) * sides;
        above += pixels[k * (c.steps + 1) + t + 1];
        to[0] -= above, to[c.classes[k] + 1] += above;
      }
    }
  }
}

int64_t wrong_label(const ThresholdSweep& c) {
  bool seen[256] = {};
  for (int64_t i = 0; i < c.pixels; ++i) seen[c.truth[i]] = true;
  for (int64_t label = 254; label > c.num_classes; --label)
    if (seen[label]) return label;
  return 0;
}

template <class T>
void run(const ThresholdSweep& c, int threads) {
  const Steps<Wide<T>> steps = steps_of<T>(c);
  std::vector<Counts> jobs((c.pixels + kPixels - 1) / kPixels);
  in_parallel(threads, static_cast<int64_t>(jobs.size()), [&](int64_t job) {
    jobs[job] = count<T>(c, steps, job * kPixels, std::min(c.pixels, (job + 1) * kPixels));
  });
  const int64_t row = std::max<int64_t>(c.count, 1) * (c.steps + 1);
  c.faults[0] = c.faults[1] = 0;
  bool strange = false;
  for (const Counts& job : jobs) {
    c.faults[0] += job.nans;
    for (int64_t i = 0; i < row; ++i) strange |= job.pixels[(c.num_classes + 2) * row + i] > 0;
  }
  if (strange) c.faults[1] = wrong_label(c);
  if (!c.faults[0] && !strange) cumulate(c, jobs);
}
}  // namespace

void threshold_sweep(const ThresholdSweep& c, int threads) {
  c.dtype == DType::f64   ? run<double>(c, threads)
  : c.dtype == DType::f16 ? run<f16>(c, threads)
                          : run<float>(c, threads);
}
}  // namespace advcam::cpu
