// One launch each way. With e the size of an element: 2 e + 1/8 bytes an element, and e more with a residual, the
// minimum; bias and valid come from the cache. A thread takes eight neighbouring elements, so that a byte of bits has
// one writer and no lane waits for another. Accesses are 128 bits wide: one of a 16-bit type, two of fp32, which share
// a sector, so the second one hits the first level cache.
#include "cuda/common.cuh"
#include "masked_relu.h"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;
constexpr int kGroup = 8;  // elements of a thread

template <class T>
struct Group {
  T v[kGroup];
};

// The first `count` elements, then zeros. kWidth: of a pack; 1 for any address.
template <int kWidth, class T>
__device__ __forceinline__ Group<T> load_group(const T* from, int count) {
  Group<T> group;
  if (kWidth > 1 && count == kGroup) {
#pragma unroll
    for (int k = 0; k < kGroup; k += kWidth) {
      const Pack<T, kWidth> pack = load<kWidth>(from + k);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) group.v[k + j] = pack.v[j];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) group.v[j] = j < count ? from[j] : narrow<T>(0);
  }
  return group;
}

template <int kWidth, class T>
__device__ __forceinline__ void store_group(T* to, const Group<T>& group, int count) {
  if (kWidth > 1 && count == kGroup) {
#pragma unroll
    for (int k = 0; k < kGroup; k += kWidth) {
      Pack<T, kWidth> pack;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) pack.v[j] = group.v[k + j];
      store<kWidth>(to + k, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (j < count) to[j] = group.v[j];
    }
  }
}

__device__ __forceinline__ int elements_of(int64_t first, int64_t n) {
  return n - first < kGroup ? static_cast<int>(n - first) : kGroup;
}

// The bias of each element, and one bit for each that is valid.
template <class A>
struct Places {
  Group<A> bias = {};
  unsigned valid = 0xff;
};

template <int kWidth, class A>
__device__ __forceinline__ Places<A> find_places(const A* bias, const uint8_t* valid, int64_t first, int64_t n,
                                                 int64_t channels, int count) {
  Places<A> places;
  if (!bias && !valid) return places;
  // a division of 64 bits takes as long as all the rest
  int64_t row = n <= 0xffffffff ? unsigned(first) / unsigned(channels) : first / channels;
  int64_t channel = first - row * channels;
  if (kWidth > 1 && channels % kGroup == 0) {  // a group lies within its row
    if (bias) places.bias = load_group<kVector<A>>(bias + channel, kGroup);
    if (valid && !valid[row]) places.valid = 0;
    return places;
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j >= count) break;
    if (bias) places.bias.v[j] = bias[channel];
    if (valid && !valid[row]) places.valid &= ~(1u << j);
    if (++channel == channels) channel = 0, ++row;
  }
  return places;
}

template <class T, class Added>
__device__ __forceinline__ void add(Group<T>& group, const Group<Added>& added) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) group.v[j] = narrow<T>(widen(group.v[j]) + widen(added.v[j]));
}

// The element is chosen, not computed: a NaN stays, for no comparison holds.
template <class T>
__device__ __forceinline__ unsigned rectify(Group<T>& group, unsigned valid, Acc<T> ceiling) {
  const T zero = narrow<T>(0), top = narrow<T>(ceiling);
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const Acc<T> value = widen(group.v[j]);
    const bool low = !(valid >> j & 1) || value <= 0, high = value >= ceiling;
    group.v[j] = low ? zero : high ? top : group.v[j];
    bits |= (low || high ? 0u : 1u) << j;
  }
  return bits;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    masked_relu_forward(T* __restrict__ x, const Acc<T>* __restrict__ bias, const T* __restrict__ residual,
                        const uint8_t* __restrict__ valid, uint8_t* __restrict__ bits, int64_t n, int64_t channels,
                        Acc<T> ceiling) {
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x, first = group * kGroup;
  if (first >= n) return;
  const int count = elements_of(first, n);
  Group<T> value = load_group<kWidth>(x + first, count);
  const Places<Acc<T>> places = find_places<kWidth>(bias, valid, first, n, channels, count);
  if (bias) add(value, places.bias);
  if (residual) add(value, load_group<kWidth>(residual + first, count));
  const unsigned kept = rectify(value, places.valid, ceiling);
  store_group<kWidth>(x + first, value, count);
  if (bits) bits[group] = static_cast<uint8_t>(kept);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    masked_relu_keep(T* __restrict__ gradient, const uint8_t* __restrict__ bits, int64_t n) {
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x, first = group * kGroup;
  if (first >= n) return;
  const int count = elements_of(first, n);
  Group<T> value = load_group<kWidth>(gradient + first, count);
  const unsigned kept = bits[group];
  const T zero = narrow<T>(0);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) value.v[j] = kept >> j & 1 ? value.v[j] : zero;
  store_group<kWidth>(gradient + first, value, count);
}

unsigned blocks_of(int64_t n) { return grid_size(ceil_div(ceil_div(n, kGroup), kThreads)); }

template <class T, int kWidth>
void launch(const MaskedRelu& c, cudaStream_t stream) {
  const int64_t n = c.rows * c.channels;
  ADVCAM_LAUNCH((masked_relu_forward<T, kWidth>), blocks_of(n), kThreads, stream, static_cast<T*>(c.x),
                static_cast<const Acc<T>*>(c.bias), static_cast<const T*>(c.residual), c.valid, c.bits, n, c.channels,
                static_cast<Acc<T>>(c.ceiling));
}

template <class T>
void choose_width(const MaskedRelu& c, cudaStream_t stream) {
  constexpr int kWidth = kVector<T>;
  const bool vector = aligned<kWidth>(static_cast<T*>(c.x)) && aligned<kWidth>(static_cast<const T*>(c.residual)) &&
                      aligned<kVector<Acc<T>>>(static_cast<const Acc<T>*>(c.bias));
  auto run = vector ? launch<T, kWidth> : launch<T, 1>;
  run(c, stream);
}

template <class T, int kWidth>
void launch_backward(const MaskedReluBackward& c, cudaStream_t stream) {
  ADVCAM_LAUNCH((masked_relu_keep<T, kWidth>), blocks_of(c.n), kThreads, stream, static_cast<T*>(c.gradient), c.bits,
                c.n);
}

template <class T>
void choose_width_backward(const MaskedReluBackward& c, cudaStream_t stream) {
  auto run = aligned<kVector<T>>(static_cast<T*>(c.gradient)) ? launch_backward<T, kVector<T>> : launch_backward<T, 1>;
  run(c, stream);
}
}  // namespace

const char* masked_relu(const MaskedRelu& c, void*, int device, void* stream) {
  if (c.rows == 0 || c.channels == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = c.dtype == DType::f64    ? choose_width<double>
             : c.dtype == DType::bf16 ? choose_width<__nv_bfloat16>
             : c.dtype == DType::f16  ? choose_width<__half>
                                      : choose_width<float>;
  run(c, static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

const char* masked_relu_backward(const MaskedReluBackward& c, void*, int device, void* stream) {
  if (c.n == 0) return nullptr;
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
