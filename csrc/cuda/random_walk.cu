// Three launches make the affinities, and one more each step: a step needs all of the step before, and launches are
// what orders blocks. A block takes 32 x 8 pixels of up to four labels, whose states (with the neighbours of the edge,
// up to a radius of 5) it brings to shared memory, so that an affinity is read once for all of them, in whole sectors.
// A step moves 2 planes of affinities for each of the half stencil, (2 * 34 + 2 + 2 labels) e bytes a pixel at radius
// 5; at the sizes of maps (94 x 125: 1.6 MB) they come from the second level cache.
#include <cmath>

#include "cuda/common.cuh"
#include "random_walk.h"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;
constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;
constexpr int kHalo = 4;  // of the largest radius whose neighbours go to shared memory, 5
constexpr int kHaloWidth = kTileWidth + 2 * kHalo, kHaloHeight = kTileHeight + 2 * kHalo;

__device__ __forceinline__ float power(float base, float exponent) { return powf(base, exponent); }
__device__ __forceinline__ double power(double base, double exponent) { return pow(base, exponent); }
__device__ __forceinline__ float exponential(float value) { return expf(value); }
__device__ __forceinline__ double exponential(double value) { return exp(value); }

template <class T>
struct Walk {
  const T* maps;   // [batch, labels, pixels]
  const T* guide;  // [batch, channels, pixels]
  T* affinity;     // [batch, planes, pixels]
  T* inverse;      // [batch, pixels]  1 / S
  T* moving;       // [batch, pixels]  (S - 1) / S; (1 - b)^scale before
  int64_t batch, planes;
  int labels, height, width, channels, radius;
  T scale, restart;
  bool color;

  __device__ __forceinline__ int64_t pixels() const { return int64_t(height) * width; }
  __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }

  // The factor of a map's pixel in x0.
  __device__ __forceinline__ T share(int64_t item, int64_t pixel) const {
    return color ? T(1) : T(1) - guide[item * pixels() + pixel];
  }

  // The largest x of the stencil's row y.
  __device__ __forceinline__ int reach(int y) const {
    int x = radius - 1;
    while (x * x + y * y >= radius * radius) --x;
    return x;
  }
};

// A thread's item and pixel, where a thread takes one pixel of one item.
template <class T>
__device__ __forceinline__ bool find_pixel(const Walk<T>& w, int64_t* item, int64_t* pixel) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  *item = i / w.pixels();
  *pixel = i - *item * w.pixels();
  return *item < w.batch;
}

// x0, and (1 - b)^scale where the boundary guides.
template <class T>
__global__ void __launch_bounds__(kThreads) random_walk_start(Walk<T> w, T* __restrict__ state) {
  int64_t item, pixel;
  if (!find_pixel(w, &item, &pixel)) return;
  const T share = w.share(item, pixel);
  for (int l = 0; l < w.labels; ++l) {
    const int64_t at = (item * w.labels + l) * w.pixels() + pixel;
    state[at] = w.maps[at] * share;
  }
  if (!w.color) w.moving[item * w.pixels() + pixel] = power(share, w.scale);
}

// Of a pixel and the neighbour (dy, dx), which is inside: the least on the path.
template <class T>
__device__ __forceinline__ T least_open(const T* open, int width, int dy, int dx) {
  T least = open[0];
  const int length = dy * dy + dx * dx, left = dx < 0 ? dx : 0, right = dx < 0 ? 0 : dx;
  for (int y = 0; y <= dy; ++y) {
    for (int x = left; x <= right; ++x) {
      const int across = y * dx - x * dy;  // the distance to the line, times its length
      if (across * across >= length) continue;
      const T value = open[int64_t(y) * width + x];
      least = value < least ? value : least;
    }
  }
  return least;
}

template <class T>
__device__ __forceinline__ T color_affinity(const Walk<T>& w, const T* color, int64_t neighbour) {
  T distance = 0;
  for (int c = 0; c < w.channels; ++c, color += w.pixels()) {
    const T difference = color[0] - color[neighbour];
    distance += difference * difference;
  }
  return exponential(-w.scale * distance);
}

template <class T>
__global__ void __launch_bounds__(kThreads) random_walk_affinity(Walk<T> w) {
  int64_t item, pixel;
  if (!find_pixel(w, &item, &pixel)) return;
  const int row = static_cast<int>(pixel / w.width), column = static_cast<int>(pixel - int64_t(row) * w.width);
  const T* open = w.moving + item * w.pixels() + pixel;
  const T* color = w.guide + item * w.channels * w.pixels() + pixel;
  T* affinity = w.affinity + item * w.planes * w.pixels() + pixel;
  for (int dy = 0; dy < w.radius; ++dy) {
    const int reach = w.reach(dy);
    for (int dx = dy ? -reach : 1; dx <= reach; ++dx, affinity += w.pixels()) {
      T value = 0;
      if (w.inside(row + dy, column + dx))
        value = w.color ? color_affinity(w, color, int64_t(dy) * w.width + dx) : least_open(open, w.width, dy, dx);
      affinity[0] = value;
    }
  }
}

// Summed with the rounding errors kept: one in S would be made again by every step.
template <class T>
struct Compensated {
  T sum = 0, excess = 0;

  __device__ __forceinline__ void add(T value) {
    const T due = value - excess, next = sum + due;
    excess = (next - sum) - due;
    sum = next;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) random_walk_sums(Walk<T> w) {
  int64_t item, pixel;
  if (!find_pixel(w, &item, &pixel)) return;
  const int row = static_cast<int>(pixel / w.width), column = static_cast<int>(pixel - int64_t(row) * w.width);
  const T* affinity = w.affinity + item * w.planes * w.pixels() + pixel;
  Compensated<T> total;
  for (int dy = 0; dy < w.radius; ++dy) {
    const int reach = w.reach(dy);
    for (int dx = dy ? -reach : 1; dx <= reach; ++dx, affinity += w.pixels()) {
      total.add(affinity[0]);
      if (w.inside(row - dy, column - dx)) total.add(affinity[-(int64_t(dy) * w.width + dx)]);
    }
  }
  const T inverse = T(1) / (T(1) + total.sum);
  w.inverse[item * w.pixels() + pixel] = inverse;
  w.moving[item * w.pixels() + pixel] = total.sum * inverse;
}

// kTile: the radius is at most kHalo + 1, and the states come from shared memory.
template <class T, int kLabels, bool kTile>
__global__ void __launch_bounds__(kThreads)
    random_walk_step(Walk<T> w, const T* __restrict__ from, T* __restrict__ to, int across, int down) {
  ADVCAM_SHARED(T, tile, (kTile ? kLabels * kHaloHeight * kHaloWidth : 1));
  int64_t block = blockIdx.x;
  const int left = static_cast<int>(block % across) * kTileWidth;
  block /= across;
  const int top = static_cast<int>(block % down) * kTileHeight;
  block /= down;
  const int groups = (w.labels + kLabels - 1) / kLabels;
  const int64_t item = block / groups;
  const int label = static_cast<int>(block % groups) * kLabels;
  const int count = w.labels - label < kLabels ? w.labels - label : kLabels;
  from += (item * w.labels + label) * w.pixels();
  if (kTile) {
    for (int i = threadIdx.x; i < kLabels * kHaloHeight * kHaloWidth; i += kThreads) {
      const int l = i / (kHaloHeight * kHaloWidth), place = i % (kHaloHeight * kHaloWidth);
      const int y = top + place / kHaloWidth - kHalo, x = left + place % kHaloWidth - kHalo;
      tile[i] = l < count && w.inside(y, x) ? from[l * w.pixels() + int64_t(y) * w.width + x] : T(0);
    }
    __syncthreads();
  }
  const int ty = threadIdx.x / kTileWidth, tx = threadIdx.x % kTileWidth, row = top + ty, column = left + tx;
  if (!w.inside(row, column)) return;
  const int64_t pixel = int64_t(row) * w.width + column;
  const T* middle = tile + (ty + kHalo) * kHaloWidth + tx + kHalo;
  const T* affinity = w.affinity + item * w.planes * w.pixels() + pixel;
  T sum[kLabels] = {}, other[kLabels] = {};  // of the neighbours after and before: half as many roundings
  for (int dy = 0; dy < w.radius; ++dy) {
    const int reach = w.reach(dy);
#pragma unroll 1  // more of them do not fit the 32 registers of a full multiprocessor
    for (int dx = dy ? -reach : 1; dx <= reach; ++dx, affinity += w.pixels()) {
      const int64_t neighbour = int64_t(dy) * w.width + dx;
      const bool has_next = w.inside(row + dy, column + dx), has_last = w.inside(row - dy, column - dx);
      const T next = affinity[0], last = has_last ? affinity[-neighbour] : T(0);
#pragma unroll
      for (int l = 0; l < kLabels; ++l) {
        if (kTile) {
          const T* state = middle + l * kHaloHeight * kHaloWidth;
          sum[l] += next * state[dy * kHaloWidth + dx];
          other[l] += last * state[-(dy * kHaloWidth + dx)];
        } else if (l < count) {
          const T* state = from + l * w.pixels() + pixel;
          if (has_next) sum[l] += next * state[neighbour];
          if (has_last) other[l] += last * state[-neighbour];
        }
      }
    }
  }
  const T inverse = w.inverse[item * w.pixels() + pixel], moving = w.moving[item * w.pixels() + pixel];
#pragma unroll
  for (int l = 0; l < kLabels; ++l) {
    if (l >= count) break;
    const int64_t at = (item * w.labels + label + l) * w.pixels() + pixel;
    const T state = from[l * w.pixels() + pixel];
    T result = (sum[l] + other[l]) * inverse - state * moving + state;
    if (w.restart != T(0)) result = result * (T(1) - w.restart) + w.maps[at] * w.share(item, pixel) * w.restart;
    to[at] = result;
  }
}

template <class T>
using Step = void (*)(Walk<T>, const T*, T*, int, int);

template <class T>
void launch(const RandomWalk& c, T* workspace, cudaStream_t stream) {
  const int64_t pixels = c.height * c.width, planes = half_stencil(c.radius);
  Walk<T> w{};
  w.maps = static_cast<const T*>(c.maps), w.guide = static_cast<const T*>(c.guide);
  w.affinity = workspace, w.inverse = workspace + c.batch * planes * pixels, w.moving = w.inverse + c.batch * pixels;
  w.batch = c.batch, w.planes = planes, w.labels = static_cast<int>(c.labels), w.height = static_cast<int>(c.height);
  w.width = static_cast<int>(c.width), w.channels = static_cast<int>(c.channels), w.color = c.color;
  w.radius = static_cast<int>(c.radius), w.scale = static_cast<T>(c.scale), w.restart = static_cast<T>(c.restart);
  T *out = static_cast<T*>(c.out), *other = w.moving + c.batch * pixels;
  T *from = c.steps % 2 ? other : out, *to = c.steps % 2 ? out : other;
  const unsigned blocks = grid_size(ceil_div(c.batch * pixels, kThreads));
  ADVCAM_LAUNCH((random_walk_start<T>), blocks, kThreads, stream, w, from);
  if (c.steps == 0) return;
  ADVCAM_LAUNCH((random_walk_affinity<T>), blocks, kThreads, stream, w);
  ADVCAM_LAUNCH((random_walk_sums<T>), blocks, kThreads, stream, w);
  const bool tile = c.radius <= kHalo + 1;
  const int together = tile && c.labels >= 3 ? 4 : c.labels >= 2 ? 2 : 1;
  const Step<T> step = together == 4   ? random_walk_step<T, 4, true>
                       : together == 2 ? (tile ? random_walk_step<T, 2, true> : random_walk_step<T, 2, false>)
                                       : (tile ? random_walk_step<T, 1, true> : random_walk_step<T, 1, false>);
  const int across = (w.width + kTileWidth - 1) / kTileWidth, down = (w.height + kTileHeight - 1) / kTileHeight;
  const unsigned tiles = grid_size(c.batch * ceil_div(c.labels, together) * across * down);
  for (int64_t s = 0; s < c.steps; ++s) {
    ADVCAM_LAUNCH(step, tiles, kThreads, stream, w, static_cast<const T*>(from), to, across, down);
    T* const last = from;
    from = to, to = last;
  }
}
}  // namespace

const char* random_walk(const RandomWalk& c, void* workspace, int device, void* stream) {
  if (c.batch * c.labels * c.height * c.width == 0) return nullptr;
  if (!fits_int(c.height + c.radius) || !fits_int(c.width + c.radius) || !fits_int(c.labels) || !fits_int(c.channels))
    return "random_walk takes sides, labels and channels below 2^31";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  const auto s = static_cast<cudaStream_t>(stream);
  c.dtype == DType::f64 ? launch(c, static_cast<double*>(workspace), s) : launch(c, static_cast<float*>(workspace), s);
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
