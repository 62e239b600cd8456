// Two launches. In the first a thread moves one pixel, through fields that the caches hold, until it stands still. In
// the second a block numbers the components of one image: the least index of a neighbour and then of the pixel that
// this index names, in turns between two arrays, until nothing changes; the barriers of a block are all that it needs,
// and the numbers are those of any order.
#include "centroid_walk.h"
#include "cuda/common.cuh"

namespace advcam {
namespace cuda {
namespace {
constexpr int kMoveThreads = 128;
constexpr int kLabelThreads = 512;

// Rounded each by itself: the compiler would contract a product and a sum.
#if defined(ADVCAM_EXECUTOR)
template <class T>
T times(T a, T b) {
  return a * b;
}
template <class T>
T plus(T a, T b) {
  return a + b;
}
#else
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }
#endif

template <class T>
__device__ __forceinline__ T within(T value, T last) {  // a NaN stays
  value = value < T(0) ? T(0) : value;
  return value > last ? last : value;
}

template <class T>
__device__ __forceinline__ int index_of(T value) {
  return static_cast<int>(value >= T(0) ? value : T(0));
}

// The four corners, in the order of the contract.
template <class T>
__device__ __forceinline__ T between(const T* field, int below, int beside, T up, T across) {
  const T down = T(1) - up, back = T(1) - across;
  const T first = times(times(field[below + beside], up), across), second = times(times(field[beside], down), across);
  const T third = times(times(field[below], up), back), fourth = times(times(field[0], down), back);
  return plus(plus(plus(first, second), third), fourth);
}

template <class T>
__global__ void __launch_bounds__(kMoveThreads)
    centroid_walk_move(const T* __restrict__ displacement, T* __restrict__ centroids, int64_t batch, int height,
                       int width, int64_t steps) {
  const int64_t pixels = int64_t(height) * width, i = int64_t(blockIdx.x) * kMoveThreads + threadIdx.x;
  const int64_t item = i / pixels, pixel = i - item * pixels;
  if (item >= batch) return;
  const T *dy = displacement + 2 * item * pixels, *dx = dy + pixels;
  const T bottom = static_cast<T>(height - 1), right = static_cast<T>(width - 1);
  T y = static_cast<T>(static_cast<int>(pixel / width)), x = static_cast<T>(static_cast<int>(pixel % width));
  for (int64_t s = 0; s < steps; ++s) {
    const int row = index_of(y), column = index_of(x);
    const T up = y - static_cast<T>(row), across = x - static_cast<T>(column);
    const int here = row * width + column, below = up > T(0) ? width : 0, beside = across > T(0) ? 1 : 0;
    const T next_y = within(plus(y, between(dy + here, below, beside, up, across)), bottom);
    const T next_x = within(plus(x, between(dx + here, below, beside, up, across)), right);
    const bool still = next_y == y && next_x == x;
    y = next_y, x = next_x;
    if (still) break;
  }
  centroids[2 * item * pixels + pixel] = y;
  centroids[(2 * item + 1) * pixels + pixel] = x;
}

__device__ __forceinline__ int lesser(int best, const int* least, int i) {
  const int other = least[i];
  return other >= 0 && other < best ? other : best;
}

// `least`: of each weak pixel the least index of its component, else -1. Both arrays are [pixels].
__device__ __forceinline__ void find_components(int* least, int* next, int height, int width) {
  const int pixels = height * width;
  int changed = 1;
  while (changed) {
    for (int i = threadIdx.x; i < pixels; i += kLabelThreads) {
      int best = least[i];
      if (best >= 0) {
        const int column = i % width;
        if (column > 0) best = lesser(best, least, i - 1);
        if (column + 1 < width) best = lesser(best, least, i + 1);
        if (i >= width) best = lesser(best, least, i - width);
        if (i + width < pixels) best = lesser(best, least, i + width);
      }
      next[i] = best;
    }
    __syncthreads();
    changed = 0;
    for (int i = threadIdx.x; i < pixels; i += kLabelThreads) {
      const int best = next[i], jumped = best >= 0 ? next[best] : -1;
      if (jumped != least[i]) changed = 1;
      least[i] = jumped;
    }
    changed = block_reduce<kLabelThreads>(changed, 0, NanMax());
  }
}

// `number` of each component's first pixel, from 1 in raster order.
__device__ __forceinline__ void number_components(const int* least, int* number, int pixels) {
  ADVCAM_SHARED(int, before, kLabelThreads + 1);
  const int share = pixels / kLabelThreads + 1, from = threadIdx.x * share;
  const int first = from < pixels ? from : pixels, end = from + share < pixels ? from + share : pixels;
  int count = 0;
  for (int i = first; i < end; ++i) count += least[i] == i;
  before[threadIdx.x + 1] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    before[0] = 0;
    for (int t = 1; t < kLabelThreads; ++t) before[t] += before[t - 1];
  }
  __syncthreads();
  count = before[threadIdx.x];
  for (int i = first; i < end; ++i) {
    if (least[i] == i) number[i] = ++count;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kLabelThreads)
    centroid_walk_label(const T* __restrict__ displacement, const T* __restrict__ centroids,
                        int64_t* __restrict__ labels, int* workspace, int height, int width, T threshold) {
  const int pixels = height * width;
  const int64_t item = blockIdx.x;
  const T *dy = displacement + 2 * item * pixels, *dx = dy + pixels;
  const T *y = centroids + 2 * item * pixels, *x = y + pixels;
  int *least = workspace + 2 * item * pixels, *next = least + pixels;
  for (int i = threadIdx.x; i < pixels; i += kLabelThreads)
    least[i] = sqrt(plus(times(dx[i], dx[i]), times(dy[i], dy[i]))) < threshold ? i : -1;
  __syncthreads();
  find_components(least, next, height, width);
  number_components(least, next, pixels);
  for (int i = threadIdx.x; i < pixels; i += kLabelThreads) {
    int label = 0;
    if (y[i] >= T(0) && x[i] >= T(0)) {  // not a NaN
      const int first = least[static_cast<int>(rint(y[i])) * width + static_cast<int>(rint(x[i]))];
      if (first >= 0) label = next[first];
    }
    labels[item * pixels + i] = label;
  }
}

template <class T>
void launch(const CentroidWalk& c, void* workspace, cudaStream_t stream) {
  const int height = static_cast<int>(c.height), width = static_cast<int>(c.width);
  const auto* displacement = static_cast<const T*>(c.displacement);
  auto* centroids = static_cast<T*>(c.centroids);
  ADVCAM_LAUNCH((centroid_walk_move<T>), grid_size(ceil_div(c.batch * c.height * c.width, kMoveThreads)), kMoveThreads,
                stream, displacement, centroids, c.batch, height, width, c.steps);
  ADVCAM_LAUNCH((centroid_walk_label<T>), grid_size(c.batch), kLabelThreads, stream, displacement,
                static_cast<const T*>(centroids), c.labels, static_cast<int*>(workspace), height, width,
                static_cast<T>(c.threshold));
}
}  // namespace

const char* centroid_walk(const CentroidWalk& c, void* workspace, int device, void* stream) {
  if (c.batch * c.height * c.width == 0) return nullptr;
  if (!fits_int(c.height * c.width + kLabelThreads)) return "centroid_walk takes fields of fewer than 2^31 pixels";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  const auto s = static_cast<cudaStream_t>(stream);
  c.dtype == DType::f64 ? launch<double>(c, workspace, s) : launch<float>(c, workspace, s);
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
