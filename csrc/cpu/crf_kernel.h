// A Gaussian kernel of dense_crf on a CPU: its lattice over an image, normalised, and what works on a part of one.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/lattice.h"
#include "cpu/lattice_filter.h"
#include "dense_crf.h"

namespace advcam::cpu {
// What one job takes on.
constexpr int64_t kVerticesOfJob = 1024, kLinksOfJob = 4096;

inline int64_t jobs_of(int64_t items, int64_t of_job) { return (items + of_job - 1) / of_job; }

template <class T>
void blur_axis(const Lattice<T>& lattice, int axis, int64_t job, int leaf, T* value) {
  const uint32_t* chains = lattice.chain(axis);
  const auto start = [&](int64_t place) {  // of the first chain that begins at this place or behind it
    const uint32_t* at = chains + std::min(place, lattice.linked[axis]);
    while (!(*at & kStart)) ++at;
    return at;
  };
  Leaves<T>::blur[leaf](start(job * kLinksOfJob), start((job + 1) * kLinksOfJob), value);
}

template <class T>
Corners<T> corners_at(const Lattice<T>& lattice, int64_t patch, int64_t tile) {
  const int64_t at = lattice.at(patch, tile);
  return {lattice.corner.get() + at, lattice.weight.get() + at};
}

// What of a lattice's values a patch has.
template <class T>
struct Copies {
  const int32_t* vertex;
  int64_t count, first;
  Copies(const Lattice<T>& l, int64_t patch)
      : vertex(l.vertex.get() + l.copies[patch]),
        count(l.copies[patch + 1] - l.copies[patch]),
        first(l.copies[patch]) {}
};

template <class T>
void gather_copies(const Lattice<T>& l, int64_t job, int leaf, const T* copies, T* value) {
  const int64_t first = job * kVerticesOfJob, count = std::min(kVerticesOfJob, l.vertices - first);
  Leaves<T>::gather[leaf](l.begin.get() + first, l.copy.get(), count, copies, value + first * kWidths[leaf]);
}

// A lattice with the normalisation of its kernel in the weights of the pixels.
template <class T>
struct Kernel {
  Lattice<T> lattice;

  T alpha() const { return T(1) / (T(1) + T(1) / T(1 << (lattice.corners - 1))); }  // what slicing multiplies with

  // Takes F(1)^-1/2 into the weights.
  void normalise(const Patches& patches, int threads) {
    const int corners = lattice.corners;
    const bool small = corners == 3;
    const Array<T> copies(lattice.copies.back()), value(lattice.vertices);
    in_parallel(threads, patches.count, [&](int64_t p) {
      const Copies<T> own(lattice, p);
      T ones[kTile];
      std::fill_n(ones, kTile, T(1));
      std::fill_n(&copies[own.first], own.count, T(0));
      for (int64_t t = 0; t < patches.tiles; ++t)
        (small ? Leaves<T>::splat3 : Leaves<T>::splat6)[0](corners_at(lattice, p, t), ones, &copies[own.first]);
    });
    in_parallel(threads, jobs_of(lattice.vertices, kVerticesOfJob),
                [&](int64_t job) { gather_copies(lattice, job, 0, copies.get(), value.get()); });
    for (int axis = 0; axis < corners; ++axis)
      in_parallel(threads, jobs_of(lattice.linked[axis], kLinksOfJob),
                  [&](int64_t job) { blur_axis(lattice, axis, job, 0, value.get()); });
    in_parallel(threads, patches.count, [&](int64_t p) {
      const Copies<T> own(lattice, p);
      Leaves<T>::fetch[0](own.vertex, own.count, value.get(), &copies[own.first]);
      for (int64_t t = 0; t < patches.tiles; ++t) {
        T norm[kTile];
        const Source<T> from{corners_at(lattice, p, t), &copies[own.first], alpha()};
        (small ? Leaves<T>::slice3 : Leaves<T>::slice6)[0](&from, norm);
        for (T& f : norm) f = T(1) / std::sqrt(f + T(1e-20));
        for (int c = 0; c < corners; ++c)
          for (int n = 0; n < kTile; ++n) lattice.weight[lattice.at(p, t) + c * kTile + n] *= norm[n];
      }
    });
  }
};

// f / deviation in float32, as the lattice wants it.
inline std::vector<float> scaled(int64_t n, float deviation) {
  std::vector<float> f(n);
  for (int64_t i = 0; i < n; ++i) f[i] = static_cast<float>(i) / deviation;
  return f;
}

template <class T>
Kernel<T> gaussian_kernel(const DenseCrf& c, const Patches& patches, int threads) {
  Kernel<T> kernel;
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.gaussian_sxy);
  const auto fill = [&](int64_t left, int64_t y, int first, float (&f)[2][kTile]) {
    for (int i = 0; i < kSide; ++i)
      f[0][first + i] = place[std::min(left + i, c.width - 1)], f[1][first + i] = place[y];
  };
  build_lattice(patches, gaussian_shape(c), fill, threads, &kernel.lattice);
  kernel.normalise(patches, threads);
  return kernel;
}

template <class T>
Kernel<T> bilateral_kernel(const DenseCrf& c, const Patches& patches, const uint8_t* image, int threads) {
  Kernel<T> kernel;
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.bilateral_sxy);
  const std::vector<float> colour = scaled(256, c.bilateral_srgb);
  const auto fill = [&](int64_t left, int64_t y, int first, float (&f)[5][kTile]) {
    const uint8_t* line = image + 3 * y * c.width;
    for (int i = 0; i < kSide; ++i) {
      const int64_t x = std::min(left + i, c.width - 1);
      f[0][first + i] = place[x], f[1][first + i] = place[y];
      for (int k = 0; k < 3; ++k) f[2 + k][first + i] = colour[line[3 * x + k]];
    }
  };
  build_lattice(patches, bilateral_shape(c), fill, threads, &kernel.lattice);
  kernel.normalise(patches, threads);
  return kernel;
}

// The Gaussian kernel of places depends on the size of the images alone, and most images of a data set have one of a
// few: those used last are kept, for all threads.
template <class T>
std::shared_ptr<const Kernel<T>> kept_gaussian_kernel(const DenseCrf& c, const Patches& patches, int threads) {
  constexpr int64_t kMostBytes = int64_t{64} << 20;
  struct Kept {
    int64_t height, width;
    float sxy;
    std::shared_ptr<const Kernel<T>> kernel;
  };
  static std::mutex mutex;
  static std::list<Kept> all;  // the one used last first
  const auto fits = [&](const Kept& k) {
    return k.height == c.height && k.width == c.width && k.sxy == c.gaussian_sxy;
  };
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(all.begin(), all.end(), fits);
    if (found != all.end()) {
      all.splice(all.begin(), all, found);
      return found->kernel;
    }
  }
  const auto kernel = std::make_shared<const Kernel<T>>(gaussian_kernel<T>(c, patches, threads));
  const std::lock_guard<std::mutex> lock(mutex);
  if (std::none_of(all.begin(), all.end(), fits)) all.push_front({c.height, c.width, c.gaussian_sxy, kernel});
  int64_t room = kMostBytes;
  all.remove_if([&](const Kept& k) {  // one that is too large alone costs no other its place
    const int64_t bytes = k.kernel->lattice.bytes();
    const bool fits_in = bytes <= room;
    if (fits_in) room -= bytes;
    return !fits_in;
  });
  return kernel;
}
}  // namespace advcam::cpu
