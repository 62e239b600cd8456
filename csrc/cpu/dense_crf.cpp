// dense_crf on a CPU. What is filtered is each label's probability less the last label's, one channel fewer than there
// are labels: softmax looks at differences alone. A step goes over the pixels once: slice, softmax and the next splat
// of a tile that stays in first-level cache. With several threads the splat waits for the softmax of all pixels and is
// cut by the colours of the vertices, since a pixel has one vertex of each; a vertex then sums the same values in the
// same order.
#include "dense_crf.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/lattice.h"
#include "cpu/lattice_filter.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int64_t kTilesOfJob = 32;

// A lattice as the filter sees it, with its normalisation.
template <class T>
struct Kernel {
  int corners = 0;
  int64_t stride = 0, vertices = 0;
  const int32_t* vertex = nullptr;
  const float* weight = nullptr;
  const uint32_t* chains = nullptr;
  T scale = 0;    // the kernel's weight and the constant of slicing
  Array<T> norm;  // [pixels]

  template <int d>
  void look_at(const Lattice<d>& lattice, float kernel_weight) {
    corners = d + 1, stride = lattice.stride, vertices = lattice.vertices;
    vertex = lattice.vertex.get(), weight = lattice.weight.get(), chains = lattice.chains.get();
    scale = T(kernel_weight) / (T(1) + T(1) / T(1 << d));
  }
  Corners at(int64_t pixel, int64_t colour = 0) const {
    return {vertex + colour * stride + pixel, weight + colour * stride + pixel, stride};
  }
};

// Channels that are filtered side by side.
struct Block {
  int width, log_width;
  std::vector<int64_t> row;  // [width]  of each channel, in a tile
};

// Labels l < labels - 1 of every set in blocks as wide as they go; what is left over in a block has a row of zeros.
std::vector<Block> blocks_of(int64_t sets, int64_t labels) {
  std::vector<Block> blocks;
  const int64_t channels = sets * (labels - 1);
  for (int64_t first = 0; first < channels; first += blocks.back().width) {
    Block block{1, 0, {}};
    while (block.width < kMostChannels && block.width < channels - first) block.width *= 2, ++block.log_width;
    for (int64_t c = first; c < first + block.width; ++c)
      block.row.push_back(c < channels ? c / (labels - 1) * labels + c % (labels - 1) : sets * labels);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

// The values of one block at the vertices of one lattice: being read, and being summed.
template <class T>
struct Values {
  Array<T> now, next;
  explicit Values(int64_t n) : now(n), next(n) {}
};

template <class T>
void blur_all(const Kernel<T>& kernel, int log_width, T* value, int threads) {
  const int64_t parts = kernel.vertices > 4096 ? 4 * threads : 1;
  for (int axis = 0; axis < kernel.corners; ++axis) {
    const uint32_t* chains = kernel.chains + axis * (kernel.vertices + 1);
    const auto start = [&](int64_t part) {  // of the first chain that begins in this part or behind it
      const uint32_t* at = chains + kernel.vertices * part / parts;
      while (!(*at & kStart)) ++at;
      return at;
    };
    in_parallel(threads, parts, [&](int64_t part) { Leaves<T>::blur[log_width](start(part), start(part + 1), value); });
  }
}

template <class T>
class MeanField {
 public:
  MeanField(const DenseCrf& c, std::vector<Kernel<T>>& kernels, int threads)
      : c_(c),
        kernels_(kernels),
        threads_(threads),
        pixels_(c.height * c.width),
        tiles_((pixels_ + kTile - 1) / kTile),
        rows_(c.sets * c.labels + 1),
        blocks_(blocks_of(c.sets, c.labels)),
        tile_rows_((threads > 1 ? tiles_ : 1) * rows_ * kTile) {}

  // The normalisation of a kernel, F(1)^-1/2.
  void add_norm(Kernel<T>& kernel) {
    const Array<T> value(kernel.vertices), ones(pixels_);
    std::fill_n(ones.get(), pixels_, T(1));
    kernel.norm = Array<T>(pixels_);
    filter_one(kernel, ones.get(), value.get(), kernel.norm.get());
    for (int64_t i = 0; i < pixels_; ++i) kernel.norm[i] = T(1) / std::sqrt(kernel.norm[i] + T(1e-20));
  }

  bool run(const T* unary, T* out) {
    for (const Kernel<T>& kernel : kernels_)
      for (const Block& block : blocks_) values_.emplace_back(kernel.vertices * block.width);
    std::vector<uint8_t> good((tiles_ + kTilesOfJob - 1) / kTilesOfJob, 1);
    for (int64_t step = 0; step <= c_.steps; ++step) {
      const bool last = step == c_.steps;
      if (step) blur_now();
      if (!last) clear_next();
      for_tiles([&](int64_t t) {
        good[t / kTilesOfJob] &= update(t, step > 0, last, unary);
        if (last) give(t, out);
        if (!last && threads_ == 1) splat_tile(t);
      });
      if (std::find(good.begin(), good.end(), 0) != good.end()) return false;
      if (!last && threads_ > 1) splat_all();
      for (Values<T>& v : values_) std::swap(v.now, v.next);
    }
    return true;
  }

 private:
  const DenseCrf& c_;
  std::vector<Kernel<T>>& kernels_;
  const int threads_;
  const int64_t pixels_, tiles_, rows_;
  const std::vector<Block> blocks_;
  std::vector<Values<T>> values_;  // [kernels, blocks]
  const Array<T> tile_rows_;       // [tiles, rows, kTile], one tile if it stays in cache

  int count(int64_t tile) const { return static_cast<int>(std::min<int64_t>(kTile, pixels_ - tile * kTile)); }
  template <class Each>
  void for_tiles(const Each& each) const {
    in_parallel(threads_, (tiles_ + kTilesOfJob - 1) / kTilesOfJob, [&](int64_t job) {
      for (int64_t t = job * kTilesOfJob; t < std::min(tiles_, (job + 1) * kTilesOfJob); ++t) each(t);
    });
  }
  T* tile_at(int64_t tile) const { return tile_rows_.get() + (threads_ > 1 ? tile * rows_ * kTile : 0); }

  void filter_one(const Kernel<T>& kernel, const T* ones, T* value, T* out) {
    const bool small = kernel.corners == 3;
    const T alpha = T(1) / (T(1) + T(1) / T(1 << (kernel.corners - 1)));
    std::fill_n(value, kernel.vertices, T(0));
    std::fill_n(out, pixels_, T(0));
    for (int64_t t = 0; t < tiles_; ++t)
      (small ? Leaves<T>::splat3 : Leaves<T>::splat6)[0](kernel.at(t * kTile), count(t), ones, &ones, value);
    blur_all(kernel, 0, value, threads_);
    for_tiles([&](int64_t t) {
      T* row = out + t * kTile;
      (small ? Leaves<T>::slice3 : Leaves<T>::slice6)[0](kernel.at(t * kTile), count(t), ones, alpha, value, &row);
    });
  }

  void blur_now() {
    size_t v = 0;
    for (const Kernel<T>& kernel : kernels_)
      for (const Block& block : blocks_) blur_all(kernel, block.log_width, values_[v++].now.get(), threads_);
  }

  void clear_next() {
    size_t v = 0;
    for (const Kernel<T>& kernel : kernels_)
      for (const Block& block : blocks_) std::fill_n(values_[v++].next.get(), kernel.vertices * block.width, T(0));
  }

  // Slices the tile and turns its messages into probabilities, in its rows.
  bool update(int64_t tile, bool sliced, bool last, const T* unary) {
    T* rows = tile_at(tile);
    std::fill_n(rows, rows_ * kTile, T(0));
    size_t v = 0;
    for (const Kernel<T>& kernel : kernels_) {
      for (const Block& block : blocks_) {
        const T* value = values_[v++].now.get();
        if (!sliced) continue;
        T* row[kMostChannels];
        for (int k = 0; k < block.width; ++k) row[k] = rows + block.row[k] * kTile;
        (kernel.corners == 3 ? Leaves<T>::slice3 : Leaves<T>::slice6)[block.log_width](
            kernel.at(tile * kTile), count(tile), &kernel.norm[tile * kTile], kernel.scale, value, row);
      }
    }
    bool good = true;
    for (int64_t s = 0; s < c_.sets; ++s)
      good &= normalise_(rows + s * c_.labels * kTile, c_.labels, unary + s * c_.labels * pixels_ + tile * kTile,
                         pixels_, count(tile), !last);
    return good;
  }

  void give(int64_t tile, T* out) {
    for (int64_t row = 0; row < rows_ - 1; ++row)
      std::copy_n(tile_at(tile) + row * kTile, count(tile), out + row * pixels_ + tile * kTile);
  }

  void splat_tile(int64_t tile) {
    size_t v = 0;
    for (const Kernel<T>& kernel : kernels_)
      for (const Block& block : blocks_)
        splat_block(tile, kernel, block, kernel.corners == 3 ? Leaves<T>::splat3 : Leaves<T>::splat6, 0,
                    values_[v++].next.get());
  }

  void splat_block(int64_t tile, const Kernel<T>& kernel, const Block& block, const Splat<T>* leaves, int64_t colour,
                   T* value) {
    const T* row[kMostChannels];
    for (int k = 0; k < block.width; ++k) row[k] = tile_at(tile) + block.row[k] * kTile;
    leaves[block.log_width](kernel.at(tile * kTile, colour), count(tile), &kernel.norm[tile * kTile], row, value);
  }

  // One job a colour of a lattice and a block: no two write to one vertex.
  void splat_all() {
    std::vector<std::pair<size_t, int>> jobs;  // number of the values, colour
    for (size_t v = values_.size(); v-- > 0;)
      for (int colour = 0; colour < kernels_[v / blocks_.size()].corners; ++colour) jobs.emplace_back(v, colour);
    in_parallel(threads_, jobs.size(), [&](int64_t job) {
      const auto [v, colour] = jobs[job];
      const Kernel<T>& kernel = kernels_[v / blocks_.size()];
      for (int64_t t = 0; t < tiles_; ++t)
        splat_block(t, kernel, blocks_[v % blocks_.size()], Leaves<T>::splat1, colour, values_[v].next.get());
    });
  }
};

// f / deviation in float32, as the lattice wants it.
std::vector<float> scaled(int64_t n, float deviation) {
  std::vector<float> f(n);
  for (int64_t i = 0; i < n; ++i) f[i] = static_cast<float>(i) / deviation;
  return f;
}

// Calls with (i, x, y) for the pixels of a tile.
template <class Each>
void each_pixel(const DenseCrf& c, int64_t first, int64_t count, const Each& each) {
  int64_t x = first % c.width, y = first / c.width;
  for (int64_t i = 0; i < count; ++i) {
    each(i, x, y);
    if (++x == c.width) x = 0, ++y;
  }
}

void build(const DenseCrf& c, Lattice<2>* lattice, int threads) {
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.gaussian_sxy);
  const auto fill = [&](int64_t first, int64_t count, float (&f)[2][kTile]) {
    each_pixel(c, first, count, [&](int64_t i, int64_t x, int64_t y) { f[0][i] = place[x], f[1][i] = place[y]; });
  };
  lattice->build(c.height * c.width, gaussian_shape(c), fill, threads);
}

void build(const DenseCrf& c, const uint8_t* image, Lattice<5>* lattice, int threads) {
  const std::vector<float> place = scaled(std::max(c.height, c.width), c.bilateral_sxy);
  const std::vector<float> colour = scaled(256, c.bilateral_srgb);
  const auto fill = [&](int64_t first, int64_t count, float (&f)[5][kTile]) {
    const uint8_t* pixel = image + 3 * first;
    each_pixel(c, first, count, [&](int64_t i, int64_t x, int64_t y) {
      f[0][i] = place[x], f[1][i] = place[y];
      for (int k = 0; k < 3; ++k) f[2 + k][i] = colour[pixel[3 * i + k]];
    });
  };
  lattice->build(c.height * c.width, bilateral_shape(c), fill, threads);
}

template <class T>
void run(const DenseCrf& c, int threads) {
  const int64_t pixels = c.height * c.width, size = c.sets * c.labels * pixels;
  const int image_threads = c.batch >= threads ? 1 : threads;  // images side by side, or the threads within an image
  Lattice<2> gaussian;
  Kernel<T> gaussian_kernel;
  if (c.gaussian_weight != 0) build(c, &gaussian, threads), gaussian_kernel.look_at(gaussian, c.gaussian_weight);
  std::vector<uint8_t> good(c.batch, 1);
  in_parallel(image_threads > 1 ? 1 : threads, c.batch, [&](int64_t b) {
    Lattice<5> bilateral;
    std::vector<Kernel<T>> kernels(c.gaussian_weight != 0);
    if (c.gaussian_weight != 0) kernels[0].look_at(gaussian, c.gaussian_weight);
    if (c.bilateral_weight != 0) {
      build(c, c.images + b * pixels * 3, &bilateral, image_threads);
      kernels.emplace_back();
      kernels.back().look_at(bilateral, c.bilateral_weight);
    }
    MeanField<T> field(c, kernels, image_threads);
    for (Kernel<T>& kernel : kernels) field.add_norm(kernel);
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
