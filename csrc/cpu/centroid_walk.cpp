// centroid_walk on a CPU. Pixels move in chunks that the compiler makes vectors of; a chunk that stands still has made
// all of its further steps. Compiled without contraction: see csrc/centroid_walk.h.
#include "centroid_walk.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kChunk = 64;    // pixels
constexpr int64_t kSerial = 512;  // pixels below which a second thread costs more than it brings

template <class T>
struct Field {
  const T *dy, *dx;  // [height, width] each
  int32_t height, width;
};

// A NaN fails both comparisons, and so stays; as an index it is 0.
template <class T>
ADVCAM_INLINE T within(T value, T last) {
  value = value < T(0) ? T(0) : value;
  return value > last ? last : value;
}
template <class T>
ADVCAM_INLINE int32_t index_of(T value) {
  return static_cast<int32_t>(value >= T(0) ? value : T(0));
}

// One step of n <= kChunk pixels; true if any of them moved.
template <class T>
ADVCAM_INLINE bool move(const Field<T>& f, T* __restrict ys, T* __restrict xs, int64_t n) {
  const T bottom = static_cast<T>(f.height - 1), right = static_cast<T>(f.width - 1);
  const T* __restrict dy = f.dy, * __restrict dx = f.dx;
  int moved = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T y = ys[i], x = xs[i];
    const int32_t row = index_of(y), column = index_of(x);
    const T up = y - static_cast<T>(row), across = x - static_cast<T>(column);
    const int32_t here = row * f.width + column, below = up > T(0) ? f.width : 0, beside = across > T(0) ? 1 : 0;
    const T down = T(1) - up, back = T(1) - across;
    const T to_y = y + (((dy[here + below + beside] * up * across + dy[here + beside] * down * across) +
                         dy[here + below] * up * back) +
                        dy[here] * down * back);
    const T to_x = x + (((dx[here + below + beside] * up * across + dx[here + beside] * down * across) +
                         dx[here + below] * up * back) +
                        dx[here] * down * back);
    const T next_y = within(to_y, bottom), next_x = within(to_x, right);
    moved |= (next_y != y) | (next_x != x);
    ys[i] = next_y, xs[i] = next_x;
  }
  return moved;
}

ADVCAM_CLONES bool move_(const Field<float>& f, float* y, float* x, int64_t n) { return move(f, y, x, n); }
ADVCAM_CLONES bool move_(const Field<double>& f, double* y, double* x, int64_t n) { return move(f, y, x, n); }

// All steps of pixels `first` to `first + n` of an image; y and x lie a plane apart.
template <class T>
void walk(const Field<T>& f, T* centroids, int64_t first, int64_t n, int64_t steps) {
  T *y = centroids + first, *x = y + int64_t(f.height) * f.width;
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<T>((first + i) / f.width), x[i] = static_cast<T>((first + i) % f.width);
  for (int64_t s = 0; s < steps && move_(f, y, x, n); ++s) {
  }
}

int32_t root_of(std::vector<int32_t>& parent, int32_t i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];
  return i;
}

// The number of each pixel's component, 0 where the field is not weak. The first pixel of a component is its root.
template <class T>
std::vector<int32_t> components(const Field<T>& f, T threshold) {
  const int32_t pixels = f.height * f.width;
  std::vector<int32_t> parent(pixels), number(pixels);
  std::iota(parent.begin(), parent.end(), 0);
  std::vector<uint8_t> weak(pixels);
  for (int32_t i = 0; i < pixels; ++i) weak[i] = std::sqrt(f.dx[i] * f.dx[i] + f.dy[i] * f.dy[i]) < threshold;
  const auto join = [&](int32_t i, int32_t j) {
    if (!weak[j]) return;
    const int32_t a = root_of(parent, i), b = root_of(parent, j);
    parent[std::max(a, b)] = std::min(a, b);
  };
  for (int32_t i = 0; i < pixels; ++i) {
    if (!weak[i]) continue;
    if (i % f.width) join(i, i - 1);
    if (i >= f.width) join(i, i - f.width);
  }
  int32_t count = 0;
  for (int32_t i = 0; i < pixels; ++i)
    if (weak[i]) number[i] = parent[i] == i ? ++count : number[root_of(parent, i)];
  return number;
}

template <class T>
void run(const CentroidWalk& c, int threads) {
  const int64_t pixels = c.height * c.width, chunks = (pixels + kChunk - 1) / kChunk;
  const auto field = [&](int64_t item) {
    const T* dy = static_cast<const T*>(c.displacement) + 2 * item * pixels;
    return Field<T>{dy, dy + pixels, static_cast<int32_t>(c.height), static_cast<int32_t>(c.width)};
  };
  const auto centroids = [&](int64_t item) { return static_cast<T*>(c.centroids) + 2 * item * pixels; };
#pragma omp parallel num_threads(threads) if (threads > 1 && c.batch * pixels > kSerial)
  {
#pragma omp for schedule(static)
    for (int64_t job = 0; job < c.batch * chunks; ++job) {
      const int64_t item = job / chunks, first = job % chunks * kChunk;
      walk(field(item), centroids(item), first, std::min(kChunk, pixels - first), c.steps);
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < c.batch; ++item) {
      const std::vector<int32_t> number = components(field(item), static_cast<T>(c.threshold));
      const T *y = centroids(item), *x = y + pixels;
      for (int64_t i = 0; i < pixels; ++i) {
        const bool lost = std::isnan(y[i]) || std::isnan(x[i]);
        const int64_t row = lost ? 0 : static_cast<int64_t>(std::nearbyint(y[i]));
        const int64_t column = lost ? 0 : static_cast<int64_t>(std::nearbyint(x[i]));
        c.labels[item * pixels + i] = lost ? 0 : number[row * c.width + column];
      }
    }
  }
}
}  // namespace

void centroid_walk(const CentroidWalk& c, int threads) {
  if (c.batch * c.height * c.width == 0) return;
  c.dtype == DType::f64 ? run<double>(c, threads) : run<float>(c, threads);
}
}  // namespace advcam::cpu
