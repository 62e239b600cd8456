// random_walk on a CPU. The affinities of a half stencil serve both directions, and up to four labels share a pass over
// them. Rows are taken in bands, and a band makes kDepth steps before the next one is looked at, each step one margin
// higher up: what it reads of the step before is then there, what it overwrites is no longer needed, and the affinities
// stay in the cache. Every pixel's sum is one and the same whatever the bands and threads.
#include "random_walk.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/walk_step.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace advcam::cpu {
namespace {
constexpr int64_t kBand = 8, kDepth = 8;  // rows (two margins at least), steps
constexpr int64_t kSerial = 4096;         // pixels below which a second thread costs more than it brings

template <class T>
struct Walker {
  WalkImage<T> image;
  Layers<T> first, second, origin;  // two states, and x0 where it is needed again
  std::vector<Tap> tap;
  const int64_t band;
  int64_t prepared = -1;                       // the image whose affinities are there
  std::vector<std::atomic<int64_t>> progress;  // steps that each band has made

  Walker(const RandomWalk& c, const Stencil& s, int64_t layers)
      : image(c, s),
        first(image.frame, layers, image.frame.margin, image.frame.margin),
        second(image.frame, layers, image.frame.margin, image.frame.margin),
        origin(image.frame, c.restart != 0 ? layers : 0, 0, 0),
        tap(taps(image, layers)),
        band(std::max(kBand, 2 * image.frame.margin)),
        progress((c.height + image.frame.margin * (kDepth - 1) + band - 1) / band) {}

  T* map(void* maps, int64_t item, int64_t label) const {
    return static_cast<T*>(maps) + (item * image.call.labels + label) * image.frame.height * image.frame.width;
  }

  void load(int64_t item, int64_t label, int64_t count, const Team& team) {
    const Frame<T>& f = image.frame;
    for (int64_t y = team.first(f.height); y < team.last(f.height); ++y)
      for (int64_t l = 0; l < count; ++l) {
        const T* from = map(const_cast<void*>(image.call.maps), item, label + l) + y * f.width;
        T* to = first.row(y) + l * f.pitch;
        for (int64_t x = 0; x < f.width; ++x) to[x] = from[x] * image.share(item, y * f.width + x);
        std::fill(to + f.width, to + f.columns, T(0));  // a NaN of the item before
        if (origin.layers) std::copy_n(to, f.columns, origin.row(y) + l * f.pitch);
      }
  }

  void store(const Layers<T>& state, int64_t item, int64_t label, int64_t count, const Team& team) const {
    const Frame<T>& f = image.frame;
    for (int64_t y = team.first(f.height); y < team.last(f.height); ++y)
      for (int64_t l = 0; l < count; ++l)
        std::copy_n(state.row(y) + l * f.pitch, f.width, map(image.call.out, item, label + l) + y * f.width);
  }

  void rows(const Layers<T>& from, const Layers<T>& to, int64_t begin, int64_t end, int64_t count) const {
    const Frame<T>& f = image.frame;
    for (int64_t y = std::max<int64_t>(begin, 0); y < std::min(end, f.height); ++y)
      step_row(StepRow<T>{from.row(y), to.row(y), image.affinity.row(y), image.inverse.row(y), image.moving.row(y),
                          origin.layers ? origin.row(y) : nullptr, tap.data(), image.planes, f.pitch, f.columns,
                          static_cast<T>(image.call.restart)},
               count);
  }

  // Up to kDepth steps of all rows. A band's step needs its own step before and that of the band above it; with two
  // margins to a band it is no other band's concern.
  void pass(int64_t steps, int64_t count, const Team& team) {
    const int64_t margin = image.frame.margin;
    const auto bands = static_cast<int64_t>(progress.size());
    for (int64_t b = team.rank; b < bands; b += team.size) progress[b].store(0, std::memory_order_relaxed);
    team.wait();
    for (int64_t b = team.rank; b < bands; b += team.size)
      for (int64_t k = 0; k < steps; ++k) {
        while (b > 0 && progress[b - 1].load(std::memory_order_acquire) < k) std::this_thread::yield();
        const int64_t begin = b * band - k * margin;
        rows(k % 2 ? second : first, k % 2 ? first : second, begin, begin + band, count);
        progress[b].store(k + 1, std::memory_order_release);
      }
    team.wait();
  }

  // `count` labels of an image, with the affinities of the call before if that was for the same image.
  void walk(int64_t item, int64_t label, int64_t count, const Team& team) {
    if (item != prepared) image.prepare(item, team);
    load(item, label, count, team);
    team.wait();
    for (int64_t done = 0; done < image.call.steps; done += kDepth)
      pass(std::min(kDepth, image.call.steps - done), count, team);
    // kDepth is even: only a last odd pass ends in the second state
    store(image.call.steps % 2 ? second : first, item, label, count, team);
    team.wait();
    if (team.rank == 0) prepared = item;
    team.wait();
  }
};

// Labels that walk together: fewer than could, where that gives every thread its own.
int64_t layers_of(const RandomWalk& c, int threads) {
  int64_t layers = labels_together(c.labels);
  while (layers > 1 && c.batch * ((c.labels + layers - 1) / layers) < threads) layers /= 2;
  return layers;
}

template <class T>
void run(const RandomWalk& c, int threads) {
  static_assert(kDepth % 2 == 0);
  const Stencil stencil(c.radius);
  const int64_t layers = layers_of(c, threads), groups = (c.labels + layers - 1) / layers, jobs = c.batch * groups;
  const auto walk = [&](Walker<T>& walker, int64_t job, const Team& team) {
    for (int64_t label = job % groups * layers, end = std::min(c.labels, label + layers); label < end;) {
      const int64_t count = labels_together(end - label);
      walker.walk(job / groups, label, count, team);
      label += count;
    }
  };
  if (jobs >= threads) {  // no thread waits for another
    std::vector<std::unique_ptr<Walker<T>>> walkers;
    for (int t = 0; t < threads; ++t) walkers.push_back(std::make_unique<Walker<T>>(c, stencil, layers));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1 && c.height * c.width > kSerial)
    for (int t = 0; t < threads; ++t)
      for (int64_t job = jobs * t / threads; job < jobs * (t + 1) / threads; ++job) walk(*walkers[t], job, {0, 1});
    return;
  }
  Walker<T> walker(c, stencil, layers);
#pragma omp parallel num_threads(threads) if (threads > 1 && c.height * c.width > kSerial)
  {
#ifdef _OPENMP
    const Team team{omp_get_thread_num(), omp_get_num_threads()};
#else
    const Team team{0, 1};
#endif
    for (int64_t job = 0; job < jobs; ++job) walk(walker, job, team);
  }
}
}  // namespace

void random_walk(const RandomWalk& c, int threads) {
  if (c.batch * c.labels * c.height * c.width == 0) return;
  c.dtype == DType::f64 ? run<double>(c, threads) : run<float>(c, threads);
}
}  // namespace advcam::cpu
