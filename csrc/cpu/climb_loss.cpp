// climb_loss on a CPU: the logit map is read once and its gradient written once; the target's column, a 1/classes of
// it, is read twice. No intermediate of the logit map's size exists (the eager form has eight).
#include "climb_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kClasses = 1024;  // classes of one job: whole rows of most heads, and sums that fit first-level cache

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Not (v > 0 ? v : 0): a NaN must come through, as in torch.relu.
template <class A>
ADVCAM_INLINE A relu(A v) {
  return v < A(0) ? A(0) : v;
}

// Whether s'(v) is 1. A NaN passes here too.
template <class A>
ADVCAM_INLINE bool passes(A v, bool rectify) {
  return !(rectify && v <= A(0));
}

// Channels-last: every row holds the `classes` logits of one position.
template <class T, class A>
ADVCAM_INLINE void rows(const T* __restrict z, T* __restrict dz, int64_t pixels, int64_t stride, int64_t classes,
                        const A* __restrict slope, A* __restrict sum, bool rectify) {
  for (int64_t k = 0; k < classes; ++k) sum[k] = 0;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < classes; ++k) {
      const A v = load(z[p * stride + k]);
      sum[k] += rectify ? relu(v) : v;
      if (dz) store(dz[p * stride + k], passes(v, rectify) ? slope[k] : A(0));
    }
}
// Contiguous: one class's logits side by side. Lanes keep the order of the sum fixed.
template <class T, class A>
ADVCAM_INLINE A plane(const T* __restrict z, T* __restrict dz, int64_t pixels, A slope, bool rectify) {
  constexpr int kLanes = 64 / sizeof(A);
  A lane[kLanes] = {}, sum = 0;
  int64_t p = 0;
  for (; p + kLanes <= pixels; p += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const A v = load(z[p + j]);
      lane[j] += rectify ? relu(v) : v;
      if (dz) store(dz[p + j], passes(v, rectify) ? slope : A(0));
    }
  for (; p < pixels; ++p) {
    const A v = load(z[p]);
    sum += rectify ? relu(v) : v;
    if (dz) store(dz[p], passes(v, rectify) ? slope : A(0));
  }
  for (A a : lane) sum += a;
  return sum;
}

#define CLIMB_LOSS(T, A)                                                                                               \
  ADVCAM_CLONES void rows_(const T* z, T* dz, int64_t pixels, int64_t stride, int64_t classes, const A* slope, A* sum, \
                           bool rectify) {                                                                             \
    rows(z, dz, pixels, stride, classes, slope, sum, rectify);                                                         \
  }                                                                                                                    \
  ADVCAM_CLONES A plane_(const T* z, T* dz, int64_t pixels, A slope, bool rectify) {                                   \
    return plane(z, dz, pixels, slope, rectify);                                                                       \
  }
CLIMB_LOSS(float, float)
CLIMB_LOSS(double, double)
CLIMB_LOSS(bf16, float)
CLIMB_LOSS(f16, float)
#undef CLIMB_LOSS

template <class T>
struct Call {
  using A = Acc<T>;
  const ClimbLoss& s;
  const T* logit_map;
  T* gradient;
  A* pair_map;
  int64_t pixels;
  std::vector<A> factor;        // [groups, 2]  f
  std::vector<double> penalty;  // [groups]  sum_p M |R - R0|

  explicit Call(const ClimbLoss& c)
      : s(c),
        logit_map(static_cast<const T*>(c.logit_map)),
        gradient(static_cast<T*>(c.gradient)),
        pair_map(static_cast<A*>(c.pair_map)),
        pixels(c.height * c.width),
        factor(2 * c.groups),
        penalty(c.groups) {}

  const A* initial(int64_t group) const {
    return s.initial_map ? static_cast<const A*>(s.initial_map) + group * pixels : nullptr;
  }
  int64_t target_offset(int64_t group, int member) const {
    return (group * s.members + member) * s.stride_item + s.target[group] * s.stride_class;
  }
  // Where position p of a member stands in the pair map.
  int64_t mirrored(int64_t p, int member) const {
    return member ? p / s.width * s.width + (s.width - 1 - p % s.width) : p;
  }

  void pair(int64_t group) {
    A* R = pair_map + group * pixels;
    int64_t count[2] = {}, all = 0;
    for (int n = 0; n < s.members; ++n) {
      const T* z = logit_map + target_offset(group, n);
      for (int64_t p = 0; p < pixels; ++p) count[n] += load(z[p * s.stride_pixel]) > A(0);
      all += count[n];
    }
    const A positive = static_cast<const A*>(s.positive)[group];
    for (int n = 0; n < s.members; ++n) {
      const A f = factor[2 * group + n] = all ? static_cast<A>(count[n]) / (positive * static_cast<A>(all)) : A(0);
      const T* z = logit_map + target_offset(group, n);
      for (int64_t y = 0; y < s.height; ++y)
        for (int64_t x = 0; x < s.width; ++x) {
          const A cam = f * relu<A>(load(z[(y * s.width + x) * s.stride_pixel]));
          if (n == 0)
            R[y * s.width + x] = cam;
          else
            R[y * s.width + s.width - 1 - x] += cam;
        }
    }
    mask(group, R);
  }

  void mask(int64_t group, const A* R) {
    A largest = 0;
    bool nan = false;
    for (int64_t p = 0; p < pixels; ++p) {
      largest = R[p] > largest ? R[p] : largest;
      nan |= R[p] != R[p];
    }
    const A limit = nan ? std::numeric_limits<A>::quiet_NaN() : static_cast<A>(s.mask_threshold) * largest;
    const A* start = initial(group);
    double sum = nan ? limit : 0.0;
    for (int64_t p = 0; p < pixels; ++p) {
      const bool in = R[p] > limit;
      s.mask[group * pixels + p] = in;
      if (in && start) sum += std::abs(R[p] - start[p]);
    }
    penalty[group] = start ? sum : 0.0;
  }

  void classes(int64_t item, int64_t first) {
    const int64_t group = item / s.members, count = std::min(kClasses, s.classes - first);
    const A* weight = static_cast<const A*>(s.weight) + group * s.classes + first;
    A* score = static_cast<A*>(s.score) + item * s.classes + first;
    const int64_t at = item * s.stride_item + first * s.stride_class;
    A slope[kClasses], sum[kClasses];
    for (int64_t k = 0; k < count; ++k) slope[k] = weight[k] / static_cast<A>(pixels);
    if (s.stride_pixel == 1) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t o = at + k * s.stride_class;
        sum[k] = plane_(logit_map + o, gradient ? gradient + o : nullptr, pixels, slope[k], s.rectify);
      }
    } else {
      rows_(logit_map + at, gradient ? gradient + at : nullptr, pixels, s.stride_pixel, count, slope, sum, s.rectify);
    }
    for (int64_t k = 0; k < count; ++k) score[k] = sum[k] / static_cast<A>(pixels);
    const int64_t target = s.target[group];
    if (gradient && initial(group) && target >= first && target < first + count)
      restrain(group, static_cast<int>(item % s.members), slope[target - first]);
  }

  // The regulariser's share of the target column, added before the one rounding to T.
  void restrain(int64_t group, int member, A slope) {
    const A *R = pair_map + group * pixels, *start = initial(group);
    const T* z = logit_map + target_offset(group, member);
    T* dz = gradient + target_offset(group, member);
    const uint8_t* in = s.mask + group * pixels;
    const A pull = static_cast<A>(s.suppression) * factor[2 * group + member];
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t q = mirrored(p, member);
      const bool on = load(z[p * s.stride_pixel]) > A(0);
      if (!in[q] || !on) continue;
      const A difference = R[q] - start[q];
      store(dz[p * s.stride_pixel], slope - pull * static_cast<A>((difference > 0) - (difference < 0)));
    }
  }

  void objective(int64_t group) {
    const A* weight = static_cast<const A*>(s.weight) + group * s.classes;
    const A* score = static_cast<const A*>(s.score) + group * s.members * s.classes;
    double sum = 0;
    for (int n = 0; n < s.members; ++n)
      for (int64_t k = 0; k < s.classes; ++k) sum += static_cast<double>(weight[k]) * score[n * s.classes + k];
    static_cast<A*>(s.objective)[group] = static_cast<A>(sum - s.suppression * penalty[group]);
  }
};

// The jobs are cut the same way whatever the number of threads, so the bits are the same too.
template <class T>
void run(const ClimbLoss& s, int threads) {
  Call<T> call(s);
  const int64_t blocks = (s.classes + kClasses - 1) / kClasses, jobs = s.groups * s.members * blocks;
#pragma omp parallel num_threads(threads) if (threads > 1 && jobs > 1 && \
                                                  jobs * std::min(kClasses, s.classes) * call.pixels > 65536)
  {
#pragma omp for schedule(static)
    for (int64_t g = 0; g < s.groups; ++g) call.pair(g);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < jobs; ++j) call.classes(j / blocks, j % blocks * kClasses);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < s.groups; ++g) call.objective(g);
  }
}
}  // namespace

void climb_loss(const ClimbLoss& s, int threads) {
  if (s.dtype == DType::f64) return run<double>(s, threads);
  if (s.dtype == DType::bf16) return run<bf16>(s, threads);
  if (s.dtype == DType::f16) return run<f16>(s, threads);
  run<float>(s, threads);
}
}  // namespace advcam::cpu
