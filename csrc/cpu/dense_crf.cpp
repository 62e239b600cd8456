// dense_crf on a CPU. What is filtered is each label's probability less the last label's, one channel fewer than there
// are labels: softmax looks at differences alone. A step goes over the patches once: slice from copies of the vertices,
// softmax, and the splat into the copies; then over the vertices, which sum their copies, and along the chains. Nothing
// is added to what another thread writes, so each value is summed in one order whatever the threads.
#include "dense_crf.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/crf_kernel.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kPatchesOfJob = 4;  // what one job takes on

// Has the corners of the tile after this one fetched: they lie behind these, and no cache has kept them since the last
// step. Inline, or the compiler drops the call of what has no result.
template <class T>
ADVCAM_INLINE void fetch_next(Corners<T> at, int corners) {
  for (int i = corners * kTile; i < 2 * corners * kTile; i += 64 / sizeof(T)) __builtin_prefetch(at.weight + i);
  for (int i = corners * kTile; i < 2 * corners * kTile; i += 32) __builtin_prefetch(at.copy + i);
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

template <class T>
struct Weighted {
  const Lattice<T>& lattice;
  T scale;  // of what is sliced
  Weighted(const Kernel<T>& kernel, float weight) : lattice(kernel.lattice), scale(T(weight) * kernel.alpha()) {}
};

template <class T>
class MeanField {
 public:
  MeanField(const DenseCrf& c, const Patches& patches, const std::vector<Weighted<T>>& kernels, int threads)
      : c_(c),
        patches_(patches),
        kernels_(kernels),
        threads_(threads),
        pixels_(c.height * c.width),
        rows_(c.sets * c.labels + 1),
        energies_(c.labels == 2 ? 1 : c.labels),
        blocks_(blocks_of(c.sets, c.labels)),
        energy_(patches.count * patches.slots() * c.sets * energies_) {
    for (const Weighted<T>& kernel : kernels_) {
      int64_t most = 0;
      for (int64_t p = 0; p < patches.count; ++p) most = std::max(most, Copies<T>(kernel.lattice, p).count);
      for (const Block& block : blocks_) {
        most_.push_back(most);
        values_.emplace_back(kernel.lattice.vertices * block.width);
        sums_.emplace_back(alone() ? kernel.lattice.vertices * block.width : 0);
        copies_.emplace_back(alone() ? 0 : kernel.lattice.copies.back() * block.width);
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
  const std::vector<Weighted<T>>& kernels_;
  const int threads_;
  const int64_t pixels_, rows_, energies_;
  const std::vector<Block> blocks_;
  // [patches, tiles, sets, energies, kTile]  the unary energies in the order in which they are read; for two labels the
  // last one's less the first one's, for nothing else counts.
  const Array<T> energy_;
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

  const Lattice<T>& lattice(size_t v) const { return kernels_[v / blocks_.size()].lattice; }
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
        good &= order(p, t, unary, scratch.padded.get()), std::fill_n(scratch.rows.get(), rows_ * kTile, T(0));
      update(p, t, last, scratch.rows.get());
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
        const Lattice<T>& l = kernels_[k].lattice;
        from[k] = {corners_at(l, patch, tile), scratch.value[k * blocks_.size() + b].get(), kernels_[k].scale};
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

  T* energy(int64_t patch, int64_t tile) const {
    return &energy_[(patch * patches_.tiles + tile) * c_.sets * energies_ * kTile];
  }

  // Orders a tile's unary energies. Returns false if those of a pixel are no distribution.
  bool order(int64_t patch, int64_t tile, const T* unary, T* padded) const {
    T* to = energy(patch, tile);
    bool good = true;
    std::fill_n(padded, c_.labels * kTile, T(0));  // outside the image
    for (int64_t s = 0; s < c_.sets; ++s, to += energies_ * kTile) {
      each_line(patch, tile, [&](int64_t at, int64_t pixel, int64_t count) {
        for (int64_t l = 0; l < c_.labels; ++l)
          std::copy_n(unary + (s * c_.labels + l) * pixels_ + pixel, count, padded + l * kTile + at);
      });
      good &= distributions(padded, c_.labels);
      if (c_.labels == 2)
        for (int n = 0; n < kTile; ++n) to[n] = padded[kTile + n] - padded[n];
      else
        std::copy_n(padded, c_.labels * kTile, to);
    }
    return good;
  }

  // Turns the messages of a tile into probabilities, in its rows.
  void update(int64_t patch, int64_t tile, bool last, T* rows) const {
    for (int64_t s = 0; s < c_.sets; ++s)
      normalise_(rows + s * c_.labels * kTile, c_.labels, energy(patch, tile) + s * energies_ * kTile, !last);
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

// How many sets go side by side: those that one block has room for. More would only crowd the cache.
int64_t sets_of_field(int64_t labels) { return std::max<int64_t>(1, kMostChannels / std::max<int64_t>(1, labels - 1)); }

template <class T>
void run(const DenseCrf& c, int threads) {
  const int64_t pixels = c.height * c.width;
  const int image_threads = c.batch >= threads ? 1 : threads;  // images side by side, or the threads within an image
  const Patches patches(c.height, c.width);
  std::shared_ptr<const Kernel<T>> gaussian;
  if (c.gaussian_weight != 0) gaussian = kept_gaussian_kernel<T>(c, patches, threads);
  std::vector<uint8_t> good(c.batch, 1);
  in_parallel(image_threads > 1 ? 1 : threads, c.batch, [&](int64_t b) {
    Kernel<T> bilateral;
    std::vector<Weighted<T>> kernels;
    if (gaussian) kernels.push_back({*gaussian, c.gaussian_weight});
    if (c.bilateral_weight != 0) {
      bilateral = bilateral_kernel<T>(c, patches, c.images + b * pixels * 3, image_threads);
      kernels.push_back({bilateral, c.bilateral_weight});
    }
    DenseCrf part = c;
    for (int64_t s = 0; s < c.sets; s += part.sets) {
      part.sets = std::min(c.sets - s, sets_of_field(c.labels));
      const int64_t at = (b * c.sets + s) * c.labels * pixels;
      MeanField<T> field(part, patches, kernels, image_threads);
      good[b] &= field.run(static_cast<const T*>(c.unary) + at, static_cast<T*>(c.probability) + at);
    }
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
