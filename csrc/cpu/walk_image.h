// What the walk and its gradient share on a CPU: one image with its affinities, padded so that no loop asks for edges.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/simd.h"
#include "random_walk.h"

namespace advcam::cpu {
// The threads that work on one image together.
struct Team {
  int rank, size;

  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
  // Rows of this thread, [first, last).
  int64_t first(int64_t rows) const { return rows * rank / size; }
  int64_t last(int64_t rows) const { return rows * (rank + 1) / size; }
};

struct Offset {
  int64_t y, x;
};

struct Stencil {
  std::vector<Offset> half;                // after (0, 0) in raster order
  std::vector<std::vector<Offset>> paths;  // of each: the pixels nearer than 1 to the line, in raster order

  explicit Stencil(int64_t radius) {
    for (int64_t y = 0; y < radius; ++y)
      for (int64_t x = y ? 1 - radius : 1; x < radius; ++x)
        if (x * x + y * y < radius * radius) half.push_back({y, x}), paths.push_back(path({y, x}));
  }

 private:
  static std::vector<Offset> path(Offset d) {
    std::vector<Offset> found;
    for (int64_t y = 0; y <= d.y; ++y)
      for (int64_t x = std::min<int64_t>(d.x, 0); x <= std::max<int64_t>(d.x, 0); ++x) {
        const int64_t across = y * d.x - x * d.y;  // the distance to the line, times its length
        if (across * across < d.y * d.y + d.x * d.x) found.push_back({y, x});
      }
    return found;
  }
};

// Zeroed memory that begins at a cache line.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t count) : bytes_(count * sizeof(T) + 64) {
    const auto at = reinterpret_cast<uintptr_t>(bytes_.data());
    data_ = reinterpret_cast<T*>((at + 63) / 64 * 64);
  }
  T* data() const { return data_; }

 private:
  std::vector<unsigned char> bytes_;
  T* data_;
};

// Rows begin at a cache line. A row's margin on its right is the next row's on its left. Margins hold zeros and are
// never written: `width` is rounded up to `columns`, and what is computed there is zero.
template <class T>
struct Frame {
  static constexpr int64_t kLane = 64 / sizeof(T);
  int64_t height, width, margin, left, columns, pitch;

  Frame(int64_t height, int64_t width, int64_t radius)
      : height(height),
        width(width),
        margin(radius - 1),
        left((margin + kLane - 1) / kLane * kLane),
        columns((width + kLane - 1) / kLane * kLane),
        pitch(left + columns) {}
};

// [height][layers][width] in a frame of zeros, `above` and `below` rows high.
template <class T>
class Layers {
 public:
  const int64_t layers, step;  // elements from a row to the next

  Layers(const Frame<T>& f, int64_t layers, int64_t above, int64_t below)
      : layers(layers),
        step(layers * f.pitch),
        memory_((f.height + above + below) * step + f.left + Frame<T>::kLane),
        first_(memory_.data() + above * step + f.left) {}

  T* row(int64_t y) const { return first_ + y * step; }

 private:
  Lines<T> memory_;
  T* first_;
};

template <class T>
ADVCAM_INLINE void lower(T* __restrict to, const T* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] < to[i] ? from[i] : to[i];
}
template <class T>
ADVCAM_INLINE void add_to(double* __restrict to, const T* __restrict a, const T* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += static_cast<double>(a[i]) + b[i];
}
template <class T>
ADVCAM_INLINE void divide(const double* __restrict sum, T* __restrict inverse, T* __restrict moving, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double one = 1 / (1 + sum[i]);
    inverse[i] = static_cast<T>(one), moving[i] = static_cast<T>(sum[i] * one);
  }
}
#define WALK_IMAGE(T)                                                                                    \
  ADVCAM_CLONES static void lower_(T* to, const T* from, int64_t n) { lower(to, from, n); }              \
  ADVCAM_CLONES static void add_(double* to, const T* a, const T* b, int64_t n) { add_to(to, a, b, n); } \
  ADVCAM_CLONES static void divide_(const double* sum, T* inverse, T* moving, int64_t n) {               \
    divide(sum, inverse, moving, n);                                                                     \
  }
WALK_IMAGE(float)
WALK_IMAGE(double)
#undef WALK_IMAGE

// One image at a time: its guide becomes affinities, their inverse sums, and (1 - boundary).
template <class T>
class WalkImage {
 public:
  const RandomWalk& call;
  const Stencil& stencil;
  const Frame<T> frame;
  const int64_t planes;
  Layers<T> affinity;  // [height][planes][width]: of j and j + d; 0 where that is outside
  Layers<T> inverse;   // 1 / S
  Layers<T> moving;    // (S - 1) / S, what a step takes from the neighbours
  Layers<T> open;      // (1 - boundary)^scale

  WalkImage(const RandomWalk& c, const Stencil& s)
      : call(c),
        stencil(s),
        frame(c.height, c.width, c.radius),
        planes(static_cast<int64_t>(s.half.size())),
        affinity(frame, planes, frame.margin, 0),
        inverse(frame, 1, 0, 0),
        moving(frame, 1, 0, 0),
        open(frame, 1, 0, frame.margin) {}

  const T* guide(int64_t item) const {
    return static_cast<const T*>(call.guide) + item * call.channels * frame.height * frame.width;
  }

  // The factor of the map's pixel in x0.
  T share(int64_t item, int64_t pixel) const { return call.color ? T(1) : T(1) - guide(item)[pixel]; }

  void prepare(int64_t item, const Team& team) {
    const int64_t first = team.first(frame.height), last = team.last(frame.height);
    if (!call.color) {
      const T* b = guide(item);
      for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < frame.width; ++x)
          open.row(y)[x] = static_cast<T>(std::pow(1.0 - b[y * frame.width + x], call.scale));
      team.wait();
    }
    for (int64_t y = first; y < last; ++y)
      for (int64_t p = 0; p < planes; ++p) call.color ? color_row(item, y, p) : boundary_row(y, p);
    team.wait();
    std::vector<double> sum(frame.columns);  // S - 1: an error here would be made again by every step
    for (int64_t y = first; y < last; ++y) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t p = 0; p < planes; ++p) {
        const T* ahead = affinity.row(y) + p * frame.pitch;
        const Offset d = stencil.half[p];
        add_(sum.data(), ahead, affinity.row(y - d.y) + p * frame.pitch - d.x, frame.columns);
      }
      divide_(sum.data(), inverse.row(y), moving.row(y), frame.columns);
    }
    team.wait();
  }

 private:
  void boundary_row(int64_t y, int64_t p) {
    T* a = affinity.row(y) + p * frame.pitch;
    std::copy_n(open.row(y), frame.columns, a);
    for (const Offset& o : stencil.paths[p]) lower_(a, open.row(y + o.y) + o.x, frame.columns);
  }

  void color_row(int64_t item, int64_t y, int64_t p) {
    const Offset d = stencil.half[p];
    const int64_t pixels = frame.height * frame.width;
    if (y + d.y >= frame.height) return;  // stays zero
    T* a = affinity.row(y) + p * frame.pitch;
    const int64_t from = std::max<int64_t>(0, -d.x), to = std::min(frame.width, frame.width - d.x);
    for (int64_t x = from; x < to; ++x) {
      const T* c = guide(item) + y * frame.width + x;
      T distance = 0;
      for (int64_t k = 0; k < call.channels; ++k, c += pixels) {
        const T difference = c[0] - c[d.y * frame.width + d.x];
        distance += difference * difference;
      }
      a[x] = std::exp(-static_cast<T>(call.scale) * distance);
    }
  }
};
}  // namespace advcam::cpu
