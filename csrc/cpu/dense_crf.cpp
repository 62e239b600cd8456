// dense_crf on a CPU. What is filtered is each label's probability less the last label's, one channel fewer than there
// are labels: softmax looks at differences alone. A step goes over the patches once: slice from copies of the vertices,
// softmax, and the splat into the copies; then over the vertices, which sum their copies, and along the chains. Nothing
// is added to what another thread writes, so each value is summed in one order whatever the threads.
#include "dense_crf.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/lattice.h"
#include "cpu/lattice_filter.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
// What one job takes on.
constexpr int64_t kVerticesOfJob = 1024, kLinksOfJob = 4096, kPatchesOfJob = 4;

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

int64_t jobs_of(int64_t items, int64_t of_job) { return (items + of_job - 1) / of_job; }

template <class T>
Corners<T> corners_at(const Lattice<T>& lattice, int64_t patch, int64_t tile) {
  const int64_t at = lattice.at(patch, tile);
  return {lattice.corner.get() + at, lattice.weight.get() + at};
}

// Has the corners of the tile after this one fetched: they lie behind these, and no cache has kept them since the last
// step. Inline, or the compiler drops the call of what has no result.
template <class T>
ADVCAM_INLINE void fetch_next(Corners<T> at, int corners) {
  for (int i = corners * kTile; i < 2 * corners * kTile; i += 64 / sizeof(T)) __builtin_prefetch(at.weight + i);
  for (int i = corners * kTile; i < 2 * corners * kTile; i += 32) __builtin_prefetch(at.copy + i);
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

// Channels that are filtered side by side.
struct Block {
  int leaf, width;           // the place of the width in kWidths
  std::vector<int64_t> row;  // [width]  of each channel, in a tile
};

// Labels l < labels - 1 of every set in blocks as wide as they go; what is left over in a block has a row of zeros.
std::vector<Block> blocks_of(int64_t sets, int64_t labels) {
  std::vector<Block> blocks;
  const int64_t channels = sets * (labels - 1);
  for (int64_t first = 0; first < channels; first += blocks.back().width) {
    int leaf = 0;
    while (kWidths[leaf] < kMostChannels && kWidths[leaf] < channels - first) ++leaf;
    Block block{leaf, kWidths[leaf], {}};
    for (int64_t c = first; c < first + block.width; ++c)
      block.row.push_back(c < channels ? c / (labels - 1) * labels + c % (labels - 1) : sets * labels);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

// A lattice and what its kernel multiplies with: the weight of the kernel and the constant of slicing. The
// normalisation is in the weights of the pixels.
template <class T>
struct Kernel {
  Lattice<T> lattice;
  T scale = 0;

  // Takes F(1)^-1/2 into the weights.
  void normalise(const Patches& patches, float kernel_weight, int threads) {
    const int corners = lattice.corners;
    const bool small = corners == 3;
    const T alpha = T(1) / (T(1) + T(1) / T(1 << (corners - 1)));
    scale = T(kernel_weight) * alpha;
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
        const Source<T> from{corners_at(lattice, p, t), &copies[own.first], alpha};
        (small ? Leaves<T>::slice3 : Leaves<T>::slice6)[0](&from, norm);
        for (T& f : norm) f = T(1) / std::sqrt(f + T(1e-20));
        for (int c = 0; c < corners; ++c)
          for (int n = 0; n < kTile; ++n) lattice.weight[lattice.at(p, t) + c * kTile + n] *= norm[n];
      }
    });
  }
};

template <class T>
class MeanField {
 public:
  MeanField(const DenseCrf& c, const Patches& patches, const std::vector<const Kernel<T>*>& kernels, int threads)
      : c_(c),
        patches_(patches),
        kernels_(kernels),
        threads_(threads),
        pixels_(c.height * c.width),
        rows_(c.sets * c.labels + 1),
        blocks_(blocks_of(c.sets, c.labels)) {
    for (const Kernel<T>* kernel : kernels_) {
      int64_t most = 0;
      for (int64_t p = 0; p < patches.count; ++p) most = std::max(most, Copies<T>(kernel->lattice, p).count);
      for (const Block& block : blocks_) {
        most_.push_back(most);
        values_.emplace_back(kernel->lattice.vertices * block.width);
        sums_.emplace_back(alone() ? kernel->lattice.vertices * block.width : 0);
        copies_.emplace_back(alone() ? 0 : kernel->lattice.copies.back() * block.width);
      }
    }
  }

  bool run(const T* unary, T* out) {
    std::vector<uint8_t> good(patches_.count, 1);
    for (int64_t step = 0; step <= c_.steps; ++step) {
      const bool last = step == c_.steps;
      if (step) sum_copies(), blur();
      const int64_t of_job = alone() ? patches_.count : kPatchesOfJob;
      in_parallel(threads_, jobs_of(patches_.count, of_job), [&](int64_t job) {
        const Scratch scratch(*this);
        for (int64_t p = job * of_job; p < std::min(patches_.count, (job + 1) * of_job); ++p)
          good[p] = work(p, step > 0, last, scratch, unary, out);
      });
      if (std::find(good.begin(), good.end(), 0) != good.end()) return false;
    }
    return true;
  }

 private:
  const DenseCrf& c_;
  const Patches& patches_;
  const std::vector<const Kernel<T>*>& kernels_;
  const int threads_;
  const int64_t pixels_, rows_;
  const std::vector<Block> blocks_;
  // [kernels, blocks] of [vertices, width] and [copies, width]. One thread adds what a patch has to the sums at once;
  // several leave it in the copies, which the vertices then add in the same order.
  std::vector<Array<T>> values_, sums_, copies_;
  std::vector<int64_t> most_;  // [kernels, blocks]  copies of a patch

  // What patches are worked on with.
  struct Scratch {
    Array<T> rows, points, padded;
    std::vector<Array<T>> value, copies;  // [kernels, blocks] of [most, width]
    explicit Scratch(const MeanField& of)
        : rows(of.rows_ * kTile), points(kMostChannels * kTile), padded(of.c_.labels * kTile) {
      std::fill_n(&rows[(of.rows_ - 1) * kTile], kTile, T(0));  // of no channel
      for (size_t v = 0; v < of.values_.size(); ++v) {
        value.emplace_back(of.most_[v] * of.block(v).width);
        copies.emplace_back(of.alone() ? of.most_[v] * of.block(v).width : 0);
      }
    }
  };

  const Lattice<T>& lattice(size_t v) const { return kernels_[v / blocks_.size()]->lattice; }
  const Block& block(size_t v) const { return blocks_[v % blocks_.size()]; }
  bool alone() const { return threads_ == 1; }
  T* copies(size_t v, int64_t patch, const Scratch& scratch) const {
    return alone() ? scratch.copies[v].get() : &copies_[v][Copies<T>(lattice(v), patch).first * block(v).width];
  }

  // A step of a patch; there are messages but before the first.
  bool work(int64_t p, bool messages, bool last, const Scratch& scratch, const T* unary, T* out) {
    bool good = true;
    for (size_t v = 0; v < values_.size(); ++v) {
      if (messages) fetch(v, p, scratch.value[v].get());
      if (!last) std::fill_n(copies(v, p, scratch), Copies<T>(lattice(v), p).count * block(v).width, T(0));
    }
    for (int64_t t = 0; t < patches_.tiles; ++t) {
      if (messages)
        slice(p, t, scratch);
      else
        std::fill_n(scratch.rows.get(), rows_ * kTile, T(0));
      good &= update(p, t, last, unary, scratch.rows.get(), scratch.padded.get());
      last ? give(p, t, scratch.rows.get(), out) : splat(p, t, scratch);
    }
    if (alone() && !last) scatter(p, scratch);
    return good;
  }

  // Calls each(values, job) for all values, as many jobs as count says for their lattice.
  template <class Count, class Each>
  void for_values(const Count& count, const Each& each) {
    std::vector<std::pair<size_t, int64_t>> jobs;
    for (size_t v = values_.size(); v-- > 0;)
      for (int64_t job = 0; job < count(lattice(v)); ++job) jobs.emplace_back(v, job);
    in_parallel(threads_, jobs.size(), [&](int64_t i) { each(jobs[i].first, jobs[i].second); });
  }

  void sum_copies() {
    if (alone()) return std::swap(values_, sums_);
    for_values([](const Lattice<T>& l) { return jobs_of(l.vertices, kVerticesOfJob); },
               [&](size_t v, int64_t job) {
                 gather_copies(lattice(v), job, block(v).leaf, copies_[v].get(), values_[v].get());
               });
  }

  void scatter(int64_t patch, const Scratch& scratch) {
    for (size_t v = 0; v < values_.size(); ++v) {
      const Lattice<T>& l = lattice(v);
      const Copies<T> own(l, patch);
      const int width = block(v).width, *first = &l.first[patch];
      std::fill_n(&sums_[v][int64_t{first[0]} * width], int64_t{first[1] - first[0]} * width, T(0));
      Leaves<T>::scatter[block(v).leaf](own.vertex, own.count, scratch.copies[v].get(), sums_[v].get());
    }
  }

  void blur() {
    for (int axis = 0; axis < 6; ++axis)
      for_values([&](const Lattice<T>& l) { return axis < l.corners ? jobs_of(l.linked[axis], kLinksOfJob) : 0; },
                 [&](size_t v, int64_t job) { blur_axis(lattice(v), axis, job, block(v).leaf, values_[v].get()); });
  }

  void fetch(size_t v, int64_t patch, T* value) const {
    const Copies<T> own(lattice(v), patch);
    Leaves<T>::fetch[block(v).leaf](own.vertex, own.count, values_[v].get(), value);
  }

  // The messages of a tile, into its rows.
  void slice(int64_t patch, int64_t tile, const Scratch& scratch) const {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const Block& block = blocks_[b];
      Source<T> from[2];
      int corners = 0;
      for (size_t k = 0; k < kernels_.size(); ++k) {
        const Lattice<T>& l = kernels_[k]->lattice;
        from[k] = {corners_at(l, patch, tile), scratch.value[k * blocks_.size() + b].get(), kernels_[k]->scale};
        corners += l.corners;
        if (b == 0) fetch_next(from[k].at, l.corners);
      }
      if (corners)
        (corners == 3   ? Leaves<T>::slice3
         : corners == 6 ? Leaves<T>::slice6
                        : Leaves<T>::slice9)[block.leaf](from, scratch.points.get());
      else
        std::fill_n(scratch.points.get(), block.width * kTile, T(0));
      T* row[kMostChannels];
      for (int k = 0; k < block.width; ++k) row[k] = &scratch.rows[block.row[k] * kTile];
      Leaves<T>::to_rows[block.leaf](scratch.points.get(), row);
    }
  }

  // Calls each(place in the tile, pixel, count) for the lines of a tile that are in the image.
  template <class Each>
  void each_line(int64_t patch, int64_t tile, const Each& each) const {
    const int64_t x = patches_.left(patch), top = patches_.top(patch, tile);
    for (int64_t y = top; y < std::min(top + kTile / kSide, patches_.height); ++y)
      each((y - top) * kSide, y * patches_.width + x, std::min<int64_t>(kSide, patches_.width - x));
  }

  // Turns the messages of a tile into probabilities, in its rows.
  bool update(int64_t patch, int64_t tile, bool last, const T* unary, T* rows, T* padded) {
    const int64_t x = patches_.left(patch), y = patches_.top(patch, tile);
    const bool whole = patches_.inside(x + kSide - 1, y + kTile / kSide - 1);
    bool good = true;
    for (int64_t s = 0; s < c_.sets; ++s) {
      const T* energy = unary + s * c_.labels * pixels_;
      if (!whole) {
        std::fill_n(padded, c_.labels * kTile, T(0));
        each_line(patch, tile, [&](int64_t at, int64_t pixel, int64_t count) {
          for (int64_t l = 0; l < c_.labels; ++l)
            std::copy_n(energy + l * pixels_ + pixel, count, padded + l * kTile + at);
        });
      }
      T* const to = rows + s * c_.labels * kTile;
      good &= whole ? normalise_(to, c_.labels, energy + y * patches_.width + x, pixels_, patches_.width, !last)
                    : normalise_(to, c_.labels, padded, kTile, kSide, !last);
    }
    return good;
  }

  void give(int64_t patch, int64_t tile, const T* rows, T* out) const {
    each_line(patch, tile, [&](int64_t at, int64_t pixel, int64_t count) {
      for (int64_t row = 0; row < rows_ - 1; ++row)
        std::copy_n(rows + row * kTile + at, count, out + row * pixels_ + pixel);
    });
  }

  void splat(int64_t patch, int64_t tile, const Scratch& scratch) const {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const Block& block = blocks_[b];
      const T* row[kMostChannels];
      for (int k = 0; k < block.width; ++k) row[k] = &scratch.rows[block.row[k] * kTile];
      Leaves<T>::to_points[block.leaf](row, scratch.points.get());
      for (size_t v = b; v < values_.size(); v += blocks_.size())
        (lattice(v).corners == 3 ? Leaves<T>::splat3 : Leaves<T>::splat6)[block.leaf](
            corners_at(lattice(v), patch, tile), scratch.points.get(), copies(v, patch, scratch));
    }
  }
};

// f / deviation in float32, as the lattice wants it.
std::vector<float> scaled(int64_t n, float deviation) {
  std::vector<float> f(n);
  for (int64_t i = 0; i < n; ++i) f[i] = static_cast<float>(i) / deviation;
  return f;
}

template <class T>
void build(const DenseCrf& c, const Patches& patches, Lattice<T>* lattice, int threads) {
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.gaussian_sxy);
  const auto fill = [&](int64_t x, int64_t y, int n, float (&f)[2][kTile]) { f[0][n] = place[x], f[1][n] = place[y]; };
  build_lattice(patches, gaussian_shape(c), fill, threads, lattice);
}

template <class T>
void build(const DenseCrf& c, const Patches& patches, const uint8_t* image, Lattice<T>* lattice, int threads) {
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.bilateral_sxy);
  const std::vector<float> colour = scaled(256, c.bilateral_srgb);
  const auto fill = [&](int64_t x, int64_t y, int n, float (&f)[5][kTile]) {
    f[0][n] = place[x], f[1][n] = place[y];
    for (int k = 0; k < 3; ++k) f[2 + k][n] = colour[image[3 * (y * c.width + x) + k]];
  };
  build_lattice(patches, bilateral_shape(c), fill, threads, lattice);
}

template <class T>
void run(const DenseCrf& c, int threads) {
  const int64_t pixels = c.height * c.width, size = c.sets * c.labels * pixels;
  const int image_threads = c.batch >= threads ? 1 : threads;  // images side by side, or the threads within an image
  const Patches patches(c.height, c.width);
  Kernel<T> gaussian;
  if (c.gaussian_weight != 0) {
    build(c, patches, &gaussian.lattice, threads);
    gaussian.normalise(patches, c.gaussian_weight, threads);
  }
  std::vector<uint8_t> good(c.batch, 1);
  in_parallel(image_threads > 1 ? 1 : threads, c.batch, [&](int64_t b) {
    Kernel<T> bilateral;
    std::vector<const Kernel<T>*> kernels;
    if (c.gaussian_weight != 0) kernels.push_back(&gaussian);
    if (c.bilateral_weight != 0) {
      build(c, patches, c.images + b * pixels * 3, &bilateral.lattice, image_threads);
      bilateral.normalise(patches, c.bilateral_weight, image_threads);
      kernels.push_back(&bilateral);
    }
    MeanField<T> field(c, patches, kernels, image_threads);
    good[b] = field.run(static_cast<const T*>(c.unary) + b * size, static_cast<T*>(c.probability) + b * size);
  });
  if (std::find(good.begin(), good.end(), 0) != good.end())
    throw std::invalid_argument(
        "unary: a NaN, a minus infinity or a pixel of nothing but infinities came, wanted is -log p");
}
}  // namespace

void dense_crf(const DenseCrf& c, int threads) {
  if (c.batch * c.sets * c.height * c.width == 0) return;
  c.dtype == DType::f64 ? run<double>(c, threads) : run<float>(c, threads);
}
}  // namespace advcam::cpu
