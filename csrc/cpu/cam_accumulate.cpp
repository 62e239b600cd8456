// cam_accumulate on a CPU: source rows are stretched once, blended into the output row while it is in first-level
// cache, and the row's maximum kept; normalising is one more pass. No resized map is ever stored.
#include "cam_accumulate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
// The two source neighbours of an output coordinate and the weight of the upper one.
template <class T>
struct Tap {
  int64_t low, high;
  T share;
};

template <class T>
std::vector<Tap<T>> taps(int64_t source, int64_t resized, int64_t wanted) {
  std::vector<Tap<T>> t(wanted);
  const T ratio = static_cast<T>(source) / static_cast<T>(resized);
  for (int64_t i = 0; i < wanted; ++i) {
    const T at = std::max((static_cast<T>(i) + T(0.5)) * ratio - T(0.5), T(0));
    const int64_t low = std::min(static_cast<int64_t>(at), source - 1);
    t[i] = {low, std::min(low + 1, source - 1), at - static_cast<T>(low)};
  }
  return t;
}

template <class T>
ADVCAM_INLINE void blend(const T* __restrict a, const T* __restrict b, T* __restrict total, int64_t n, T share) {
  for (int64_t i = 0; i < n; ++i) total[i] += a[i] * (T(1) - share) + b[i] * share;
}
template <class T>
ADVCAM_INLINE void add(const T* __restrict a, T* __restrict total, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] += a[i];
}
template <class T>
ADVCAM_INLINE void scale(T* __restrict total, int64_t n, T divisor) {
  for (int64_t i = 0; i < n; ++i) total[i] /= divisor;
}
// The sum finds a NaN that the comparisons pass over.
template <class T>
ADVCAM_INLINE T largest(const T* __restrict a, int64_t n) {
  T m = -std::numeric_limits<T>::infinity();
  bool nan = false;
  for (int64_t i = 0; i < n; ++i) {
    m = a[i] > m ? a[i] : m;
    nan |= a[i] != a[i];
  }
  return nan ? std::numeric_limits<T>::quiet_NaN() : m;
}

#define CAM_ACCUMULATE(T)                                                                           \
  ADVCAM_CLONES void blend_(const T* a, const T* b, T* t, int64_t n, T s) { blend(a, b, t, n, s); } \
  ADVCAM_CLONES void add_(const T* a, T* total, int64_t n) { add(a, total, n); }                    \
  ADVCAM_CLONES void scale_(T* total, int64_t n, T divisor) { scale(total, n, divisor); }           \
  ADVCAM_CLONES T largest_(const T* a, int64_t n) { return largest(a, n); }
CAM_ACCUMULATE(float)
CAM_ACCUMULATE(double)
#undef CAM_ACCUMULATE

template <class T>
struct Scale {
  const T* map;
  int64_t height, width;
  bool plain;  // already of the resized size
  std::vector<Tap<T>> row, column;
};

// Source rows stretched to the output's width. Two of a scale are enough: going down the output, its neighbours are
// rows r and r + 1, so the even and the odd row each have a place. The gather runs once a source row, not once an
// output row.
template <class T>
class Stretched {
 public:
  Stretched(const Scale<T>& scale, int64_t width) : scale_(scale), width_(width), rows_(2 * width) {}

  const T* row(int64_t n, int64_t r) {
    const int64_t id = n * scale_.height + r, place = r & 1;
    T* out = &rows_[place * width_];
    if (held_[place] == id) return out;
    held_[place] = id;
    const T* in = scale_.map + id * scale_.width;
    const Tap<T>* tap = scale_.column.data();
    for (int64_t i = 0; i < width_; ++i)
      out[i] = in[tap[i].low] * (T(1) - tap[i].share) + in[tap[i].high] * tap[i].share;
    return out;
  }

 private:
  const Scale<T>& scale_;
  int64_t width_, held_[2] = {-1, -1};
  std::vector<T> rows_;
};

template <class T>
T add_row(const std::vector<Scale<T>>& scales, std::vector<Stretched<T>>& stretched, const CamAccumulate& c, int64_t n,
          int64_t y) {
  T* total = static_cast<T*>(c.total) + (n * c.height + y) * c.width;
  for (size_t s = 0; s < scales.size(); ++s) {
    if (scales[s].plain) {
      add_(scales[s].map + (n * c.rows + y) * c.columns, total, c.width);
      continue;
    }
    const Tap<T>& t = scales[s].row[y];
    const T* low = stretched[s].row(n, t.low);
    blend_(low, stretched[s].row(n, t.high), total, c.width, t.share);
  }
  return c.normalise ? largest_(total, c.width) : T(0);
}

template <class T>
void run(const CamAccumulate& c, int threads) {
  std::vector<Scale<T>> scales(c.scales);
  for (int s = 0; s < c.scales; ++s) {
    const int64_t h = c.map_height[s], w = c.map_width[s];
    scales[s] = {static_cast<const T*>(c.map[s]), h, w, h == c.rows && w == c.columns, {}, {}};
    if (!scales[s].plain)
      scales[s].row = taps<T>(h, c.rows, c.height), scales[s].column = taps<T>(w, c.columns, c.width);
  }
  const int64_t jobs = c.count * c.height;
  std::vector<T> row_max(jobs), map_max(c.count);
#pragma omp parallel num_threads(threads) if (threads > 1 && jobs > 1 && jobs * c.width > 16384)
  {
    std::vector<Stretched<T>> stretched;
    for (const Scale<T>& s : scales) stretched.emplace_back(s, s.plain ? 0 : c.width);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < jobs; ++j) row_max[j] = add_row(scales, stretched, c, j / c.height, j % c.height);
    if (c.normalise) {
#pragma omp for schedule(static)
      for (int64_t n = 0; n < c.count; ++n) map_max[n] = largest_(&row_max[n * c.height], c.height);
#pragma omp for schedule(static)
      for (int64_t j = 0; j < jobs; ++j)
        scale_(static_cast<T*>(c.total) + j * c.width, c.width, map_max[j / c.height] + static_cast<T>(1e-5));
    }
  }
}
}  // namespace

void cam_accumulate(const CamAccumulate& c, int threads) {
  if (c.count * c.height * c.width == 0) return;
  c.dtype == DType::f64 ? run<double>(c, threads) : run<float>(c, threads);
}
}  // namespace advcam::cpu
