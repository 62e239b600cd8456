// One launch each way. A thread writes a pack of neighbouring channels of one pixel, 128 bits where channels and
// addresses allow it; what windows share comes from the cache, so memory moves every element once.
#include "cuda/common.cuh"
#include "max_pool.h"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;

struct Place {
  int64_t item;
  int row, column, channel;
};

// Of pack `index` of [batch, rows, columns, channels]. Divisions of 64 bits take long.
template <int kWidth>
__device__ __forceinline__ Place place_of(int64_t index, int64_t packs, int64_t rows, int64_t columns,
                                          int64_t channels) {
  const int64_t each = channels / kWidth;
  const bool small = packs <= 0xffffffff;
  const int64_t pixel = small ? unsigned(index) / unsigned(each) : index / each;
  const int64_t line = small ? unsigned(pixel) / unsigned(columns) : pixel / columns;
  const int64_t item = small ? unsigned(line) / unsigned(rows) : line / rows;
  return {item, static_cast<int>(line - item * rows), static_cast<int>(pixel - line * columns),
          static_cast<int>(index - pixel * each) * kWidth};
}

template <int kWidth, class T>
__device__ __forceinline__ Pack<T, kWidth> load_pack(const T* from) {
  if constexpr (kWidth > 1) return load<kWidth>(from);
  return {{*from}};
}

template <int kWidth, class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kWidth>& pack) {
  if constexpr (kWidth > 1) {
    store<kWidth>(to, pack);
  } else {
    *to = pack.v[0];
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    max_pool_forward(const T* __restrict__ x, T* __restrict__ y, uint8_t* __restrict__ at, Pooling p, int64_t packs) {
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= packs) return;
  const Place place = place_of<kWidth>(index, packs, p.rows, p.columns, p.channels);
  const int top = place.row * static_cast<int>(p.stride[0]) - static_cast<int>(p.padding[0]);
  const int left = place.column * static_cast<int>(p.stride[1]) - static_cast<int>(p.padding[1]);
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  Pack<T, kWidth> best;
  Pack<uint8_t, kWidth> which;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) best.v[j] = narrow<T>(-kInfinity<Acc<T>>), which.v[j] = 0;
  int element = 0;
  for (int k = 0; k < static_cast<int>(p.kernel[0]); ++k) {
    const int row = top + k * static_cast<int>(p.dilation[0]);
    for (int l = 0; l < static_cast<int>(p.kernel[1]); ++l, ++element) {
      const int column = left + l * static_cast<int>(p.dilation[1]);
      if (row < 0 || row >= height || column < 0 || column >= width) continue;
      const int64_t pixel = (place.item * height + row) * width + column;
      const Pack<T, kWidth> value = load_pack<kWidth>(x + pixel * p.channels + place.channel);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Acc<T> v = widen(value.v[j]);
        const bool larger = v > widen(best.v[j]) || v != v;
        best.v[j] = larger ? value.v[j] : best.v[j];
        which.v[j] = larger ? static_cast<uint8_t>(element) : which.v[j];
      }
    }
  }
  store_pack(y + index * kWidth, best);
  if (at) store_pack(at + index * kWidth, which);
}

// The window whose element k lies at i, or -1.
__device__ __forceinline__ int window_at(const Pooling& p, int side, int i, int k, int windows) {
  const int first = i + static_cast<int>(p.padding[side]) - k * static_cast<int>(p.dilation[side]);
  const int stride = static_cast<int>(p.stride[side]), window = first / stride;
  return first >= 0 && window * stride == first && window < windows ? window : -1;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    max_pool_gather(const T* __restrict__ gradient, const uint8_t* __restrict__ at, T* __restrict__ x_gradient,
                    Pooling p, int64_t packs) {
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= packs) return;
  const Place place = place_of<kWidth>(index, packs, p.height, p.width, p.channels);
  Acc<T> sum[kWidth] = {};
  int element = 0;
  for (int k = 0; k < static_cast<int>(p.kernel[0]); ++k) {
    const int row = window_at(p, 0, place.row, k, static_cast<int>(p.rows));
    for (int l = 0; l < static_cast<int>(p.kernel[1]); ++l, ++element) {
      const int column = window_at(p, 1, place.column, l, static_cast<int>(p.columns));
      if (row < 0 || column < 0) continue;
      const int64_t pixel = (place.item * p.rows + row) * p.columns + column;
      const int64_t from = pixel * p.channels + place.channel;
      const Pack<T, kWidth> value = load_pack<kWidth>(gradient + from);
      const Pack<uint8_t, kWidth> taken = load_pack<kWidth>(at + from);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] += taken.v[j] == element ? widen(value.v[j]) : Acc<T>(0);
    }
  }
  Pack<T, kWidth> found;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) found.v[j] = narrow<T>(sum[j]);
  store_pack(x_gradient + index * kWidth, found);
}

template <class T, int kWidth>
void launch(const MaxPool& c, cudaStream_t stream) {
  const Pooling& p = c.pooling;
  const int64_t packs = p.batch * p.rows * p.columns * p.channels / kWidth;
  ADVCAM_LAUNCH((max_pool_forward<T, kWidth>), grid_size(ceil_div(packs, kThreads)), kThreads, stream,
                static_cast<const T*>(c.x), static_cast<T*>(c.y), c.at, p, packs);
}

template <class T>
void choose_width(const MaxPool& c, cudaStream_t stream) {
  constexpr int kWidth = kVector<T>;
  const bool vector = c.pooling.channels % kWidth == 0 && aligned<kWidth>(static_cast<const T*>(c.x)) &&
                      aligned<kWidth>(static_cast<T*>(c.y)) && aligned<kWidth>(c.at);
  auto run = vector ? launch<T, kWidth> : launch<T, 1>;
  run(c, stream);
}

template <class T, int kWidth>
void launch_backward(const MaxPoolBackward& c, cudaStream_t stream) {
  const Pooling& p = c.pooling;
  const int64_t packs = p.batch * p.height * p.width * p.channels / kWidth;
  ADVCAM_LAUNCH((max_pool_gather<T, kWidth>), grid_size(ceil_div(packs, kThreads)), kThreads, stream,
                static_cast<const T*>(c.gradient), c.at, static_cast<T*>(c.x_gradient), p, packs);
}

template <class T>
void choose_width_backward(const MaxPoolBackward& c, cudaStream_t stream) {
  constexpr int kWidth = kVector<T>;
  const bool vector = c.pooling.channels % kWidth == 0 && aligned<kWidth>(static_cast<const T*>(c.gradient)) &&
                      aligned<kWidth>(static_cast<T*>(c.x_gradient)) && aligned<kWidth>(c.at);
  auto run = vector ? launch_backward<T, kWidth> : launch_backward<T, 1>;
  run(c, stream);
}
}  // namespace

const char* max_pool(const MaxPool& c, void*, int device, void* stream) {
  const Pooling& p = c.pooling;
  if (p.batch * p.rows * p.columns * p.channels == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = c.dtype == DType::f64    ? choose_width<double>
             : c.dtype == DType::bf16 ? choose_width<__nv_bfloat16>
             : c.dtype == DType::f16  ? choose_width<__half>
                                      : choose_width<float>;
  run(c, static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

const char* max_pool_backward(const MaxPoolBackward& c, void*, int device, void* stream) {
  const Pooling& p = c.pooling;
  if (p.batch * p.height * p.width * p.channels == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = c.dtype == DType::f64    ? choose_width_backward<double>
             : c.dtype == DType::bf16 ? choose_width_backward<__nv_bfloat16>
             : c.dtype == DType::f16  ? choose_width_backward<__half>
                                      : choose_width_backward<float>;
  run(c, static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
