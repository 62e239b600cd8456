// The gradient of random_walk on a CPU. Going back from step t + 1 to t, with g the gradient by x_{t+1}:
//
//   h = (1 - restart) g / S;  g <- h A;  dA_ij += h_i x_j + h_j x_i - (s_i + s_j),  s_j += h_j (x A)_j / S_j
//
// The states x_t are kept at every sqrt(steps)-th step; those between are made again, a stretch at a time.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/walk_step.h"
#include "random_walk.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace advcam::cpu {
namespace {
constexpr int64_t kSerial = 4096;  // pixels below which a second thread costs more than it brings

template <class T>
ADVCAM_INLINE void pair_product(T* __restrict to, const T* __restrict h, const T* __restrict x, int64_t d, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += h[i] * x[i + d] + h[i + d] * x[i];
}
// h, s and the restart's share of the gradient by x0
template <class T>
ADVCAM_INLINE void weigh(const T* __restrict g, const T* __restrict inverse, const T* __restrict after,
                         const T* __restrict origin, T* __restrict h, T* __restrict s, T* __restrict start, int64_t n,
                         T restart) {
  for (int64_t i = 0; i < n; ++i) {
    const T part = g[i] * inverse[i];
    h[i] = part * (T(1) - restart);
    s[i] += part * (after[i] - restart * origin[i]);
    start[i] += restart * g[i];
  }
}
template <class T>
ADVCAM_INLINE void add(T* __restrict to, const T* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}
#define WALK_BACKWARD(T)                                                                                              \
  ADVCAM_CLONES void pair_(T* to, const T* h, const T* x, int64_t d, int64_t n) { pair_product(to, h, x, d, n); }     \
  ADVCAM_CLONES void weigh_(const T* g, const T* i, const T* a, const T* o, T* h, T* s, T* b, int64_t n, T restart) { \
    weigh(g, i, a, o, h, s, b, n, restart);                                                                           \
  }                                                                                                                   \
  ADVCAM_CLONES void add_one_(T* to, const T* from, int64_t n) { add(to, from, n); }
WALK_BACKWARD(float)
WALK_BACKWARD(double)
#undef WALK_BACKWARD

int64_t stretch_of(int64_t steps) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(steps)))));
}

template <class T>
class Backward {
 public:
  Backward(const RandomWalkBackward& c, const Stencil& s)
      : call_(c),
        walk_(c.walk),
        image_(c.walk, s),
        f_(image_.frame),
        layers_(std::min(c.walk.labels, kMostLabels)),
        stretch_(stretch_of(c.walk.steps)),
        tap_(taps(image_, layers_)),
        gradient_(f_, layers_, f_.margin, f_.margin),
        weighed_(f_, layers_, f_.margin, f_.margin),
        start_(f_, layers_, 0, 0),
        pairs_(f_, image_.planes, 0, 0),
        sums_(f_, 1, 0, f_.margin) {
    for (int64_t done = 0; done < std::max<int64_t>(walk_.steps, 1); done += stretch_) kept_.push_back(state());
    for (int64_t t = 0; t < std::min(stretch_, walk_.steps); ++t) between_.push_back(state());
  }

  void item(int64_t n, const Team& team) {
    image_.prepare(n, team);
    each_row(team, [&](int64_t y) {
      std::fill_n(pairs_.row(y), pairs_.step, T(0));
      std::fill_n(sums_.row(y), f_.columns, T(0));
      if (!walk_.color) std::fill_n(guide_gradient(n, 0) + y * f_.width, f_.width, T(0));
    });
    for (int64_t label = 0; label < walk_.labels;) {
      const int64_t count = labels_together(walk_.labels - label);
      load(n, label, count, team);
      forward(count, team);
      for (int64_t c = static_cast<int64_t>(kept_.size()) - 1; c >= 0 && walk_.steps; --c) back(c, count, team);
      finish(n, label, count, team);
      team.wait();
      label += count;
    }
    if (team.rank == 0) walk_.color ? colors(n) : boundary(n);
    team.wait();
  }

 private:
  using State = std::unique_ptr<Layers<T>>;
  const RandomWalkBackward& call_;
  const RandomWalk& walk_;
  WalkImage<T> image_;
  const Frame<T>& f_;
  int64_t layers_, stretch_;
  std::vector<Tap> tap_;
  std::vector<State> kept_, between_;  // x_t at the stretches' beginnings, and within one
  Layers<T> gradient_, weighed_;       // g, h
  Layers<T> start_;                    // gradient by x0
  Layers<T> pairs_, sums_;             // dA without its s, and s

  State state() const { return std::make_unique<Layers<T>>(f_, layers_, f_.margin, f_.margin); }

  template <class Row>
  void each_row(const Team& team, Row row) {
    for (int64_t y = team.first(f_.height); y < team.last(f_.height); ++y) row(y);
  }

  int64_t at(int64_t n, int64_t label) const { return (n * walk_.labels + label) * f_.height * f_.width; }
  T* guide_gradient(int64_t n, int64_t channel) const {
    return static_cast<T*>(call_.guide_gradient) + (n * walk_.channels + channel) * f_.height * f_.width;
  }

  void load(int64_t n, int64_t label, int64_t count, const Team& team) {
    each_row(team, [&](int64_t y) {
      for (int64_t l = 0; l < count; ++l) {
        const int64_t from = at(n, label + l) + y * f_.width, to = l * f_.pitch;
        T *x = kept_[0]->row(y) + to, *g = gradient_.row(y) + to;
        for (int64_t i = 0; i < f_.width; ++i) {
          x[i] = static_cast<const T*>(walk_.maps)[from + i] * image_.share(n, y * f_.width + i);
          g[i] = static_cast<const T*>(call_.gradient)[from + i];
        }
        std::fill(x + f_.width, x + f_.columns, T(0));
        std::fill(g + f_.width, g + f_.columns, T(0));
        std::fill_n(start_.row(y) + to, f_.columns, T(0));
      }
    });
  }

  // to = one step from `from`, all rows.
  void step(const Layers<T>& from, const Layers<T>& to, int64_t count, const Team& team) {
    team.wait();
    each_row(team, [&](int64_t y) {
      step_row(StepRow<T>{from.row(y), to.row(y), image_.affinity.row(y), image_.inverse.row(y), image_.moving.row(y),
                          walk_.restart != 0 ? kept_[0]->row(y) : nullptr, tap_.data(), image_.planes, f_.pitch,
                          f_.columns, static_cast<T>(walk_.restart)},
               count);
    });
  }

  // The states that are kept, but for the first, which is x0.
  void forward(int64_t count, const Team& team) {
    for (size_t c = 0; c + 1 < kept_.size(); ++c) {
      const Layers<T>* from = kept_[c].get();
      for (int64_t k = 0; k < stretch_; ++k) {
        const Layers<T>* to = k + 1 < stretch_ ? between_[k % 2].get() : kept_[c + 1].get();
        step(*from, *to, count, team);
        from = to;
      }
    }
  }

  // Through the stretch that begins at kept_[c].
  void back(int64_t c, int64_t count, const Team& team) {
    const int64_t steps = std::min(stretch_, walk_.steps - c * stretch_);
    for (int64_t k = 0; k < steps; ++k) step(k ? *between_[k - 1] : *kept_[c], *between_[k], count, team);
    for (int64_t k = steps - 1; k >= 0; --k) {
      const Layers<T>&before = k ? *between_[k - 1] : *kept_[c], &after = *between_[k];
      team.wait();
      each_row(team, [&](int64_t y) {
        for (int64_t l = 0; l < count; ++l) {
          const int64_t m = l * f_.pitch;
          weigh_(gradient_.row(y) + m, image_.inverse.row(y), after.row(y) + m, kept_[0]->row(y) + m,
                 weighed_.row(y) + m, sums_.row(y), start_.row(y) + m, f_.columns, static_cast<T>(walk_.restart));
        }
      });
      team.wait();
      each_row(team, [&](int64_t y) {
        step_row(StepRow<T>{weighed_.row(y), gradient_.row(y), image_.affinity.row(y), nullptr, nullptr, nullptr,
                            tap_.data(), image_.planes, f_.pitch, f_.columns, T(0)},
                 count);
        for (int64_t p = 0; p < image_.planes; ++p)
          for (int64_t l = 0; l < count; ++l)
            pair_(pairs_.row(y) + p * f_.pitch, weighed_.row(y) + l * f_.pitch, before.row(y) + l * f_.pitch,
                  tap_[p].neighbour, f_.columns);
      });
    }
  }

  void finish(int64_t n, int64_t label, int64_t count, const Team& team) {
    team.wait();
    each_row(team, [&](int64_t y) {
      for (int64_t l = 0; l < count; ++l) {
        const int64_t from = at(n, label + l) + y * f_.width;
        T* start = start_.row(y) + l * f_.pitch;
        add_one_(start, gradient_.row(y) + l * f_.pitch, f_.columns);
        T *maps = static_cast<T*>(call_.maps_gradient) + from, *guide = guide_gradient(n, 0) + y * f_.width;
        for (int64_t x = 0; x < f_.width; ++x) {
          maps[x] = start[x] * image_.share(n, y * f_.width + x);
          if (!walk_.color) guide[x] -= start[x] * static_cast<const T*>(walk_.maps)[from + x];
        }
      }
    });
  }

  // Calls pair(y, x, p, dA) for every two neighbours within the image.
  template <class Pair>
  void each_pair(Pair pair) {
    for (int64_t y = 0; y < f_.height; ++y)
      for (int64_t p = 0; p < image_.planes; ++p) {
        const Offset d = image_.stencil.half[p];
        if (y + d.y >= f_.height) continue;
        for (int64_t x = std::max<int64_t>(0, -d.x); x < std::min(f_.width, f_.width - d.x); ++x)
          pair(y, x, p, pairs_.row(y)[p * f_.pitch + x] - sums_.row(y)[x] - sums_.row(y + d.y)[x + d.x]);
      }
  }

  void boundary(int64_t n) {
    std::vector<T> open(f_.height * f_.width);  // gradient by (1 - b)^scale
    each_pair([&](int64_t y, int64_t x, int64_t p, T value) {
      Offset least{0, 0};
      for (const Offset& o : image_.stencil.paths[p])
        if (image_.open.row(y + o.y)[x + o.x] < image_.open.row(y + least.y)[x + least.x]) least = o;
      open[(y + least.y) * f_.width + x + least.x] += value;
    });
    const T scale = static_cast<T>(walk_.scale);
    for (int64_t i = 0; i < f_.height * f_.width; ++i)
      if (scale != 0) guide_gradient(n, 0)[i] -= open[i] * scale * std::pow(T(1) - image_.guide(n)[i], scale - T(1));
  }

  void colors(int64_t n) {
    const int64_t pixels = f_.height * f_.width;
    std::fill_n(guide_gradient(n, 0), walk_.channels * pixels, T(0));
    each_pair([&](int64_t y, int64_t x, int64_t p, T value) {
      const int64_t i = y * f_.width + x, j = i + image_.stencil.half[p].y * f_.width + image_.stencil.half[p].x;
      const T factor = -2 * static_cast<T>(walk_.scale) * image_.affinity.row(y)[p * f_.pitch + x] * value;
      for (int64_t k = 0; k < walk_.channels; ++k) {
        const T* c = image_.guide(n) + k * pixels;
        guide_gradient(n, k)[i] += factor * (c[i] - c[j]);
        guide_gradient(n, k)[j] -= factor * (c[i] - c[j]);
      }
    });
  }
};

template <class T>
void run(const RandomWalkBackward& c, int threads) {
  const RandomWalk& w = c.walk;
  const Stencil stencil(w.radius);
  if (w.batch >= threads) {  // an image each
    std::vector<std::unique_ptr<Backward<T>>> backward;
    for (int t = 0; t < threads; ++t) backward.push_back(std::make_unique<Backward<T>>(c, stencil));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int t = 0; t < threads; ++t)
      for (int64_t n = t; n < w.batch; n += threads) backward[t]->item(n, {0, 1});
    return;
  }
  Backward<T> backward(c, stencil);
  for (int64_t n = 0; n < w.batch; ++n) {
#pragma omp parallel num_threads(threads) if (threads > 1 && w.height * w.width > kSerial)
    {
#ifdef _OPENMP
      const Team team{omp_get_thread_num(), omp_get_num_threads()};
#else
      const Team team{0, 1};
#endif
      backward.item(n, team);
    }
  }
}
}  // namespace

void random_walk_backward(const RandomWalkBackward& c, int threads) {
  if (c.walk.batch * c.walk.labels * c.walk.height * c.walk.width == 0) return;
  c.walk.dtype == DType::f64 ? run<double>(c, threads) : run<float>(c, threads);
}
}  // namespace advcam::cpu
