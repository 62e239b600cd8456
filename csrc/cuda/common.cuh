// What the kernels share: device guard, packs of up to 128 bits, element conversions, reductions in a fixed order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "dtype.h"

#if defined(ADVCAM_EXECUTOR)
// g++ runs these very sources on the CPU: tests/executor. It brings ADVCAM_SHARED, ADVCAM_LAUNCH and store_word.
#include "executor.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define ADVCAM_SHARED(type, name, count) __shared__ type name[count]
#define ADVCAM_LAUNCH(kernel, grid, block, stream, ...) (kernel)<<<grid, block, 0, stream>>>(__VA_ARGS__)

// The compiler takes a vector apart when it computes with its elements, and may then store them one by one: not these.
// Loads may move across them, so a kernel does not read again what it stores this way.
__device__ __forceinline__ void store_word(uint4* pointer, uint4 word) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(word.x), "r"(word.y), "r"(word.z),
               "r"(word.w));
}
__device__ __forceinline__ void store_word(uint2* pointer, uint2 word) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(pointer), "r"(word.x), "r"(word.y));
}
template <class Word>
__device__ __forceinline__ void store_word(Word* pointer, Word word) {
  *pointer = word;
}
#endif

namespace advcam {
namespace cuda {

// Makes `device` current, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device), error_(cudaGetDevice(&former_)) {
    if (error_ == cudaSuccess && former_ != device_) error_ = cudaSetDevice(device_);
  }
  ~DeviceGuard() {
    if (error_ == cudaSuccess && former_ != device_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int device_, former_ = -1;
  cudaError_t error_;
};

inline const char* error_text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

inline bool fits_int(int64_t value) { return value <= std::numeric_limits<int>::max(); }

// Blocks lie along x, the one axis that takes 2^31 - 1 of them. A larger count becomes 0, which the launch refuses.
inline unsigned grid_size(int64_t blocks) { return fits_int(blocks) ? static_cast<unsigned>(blocks) : 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a float kernel computes in: float for the 16-bit types too.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Device code may use a constant of the host's library, not call its functions.
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kTiny = std::numeric_limits<T>::min();

// kWidth neighbouring elements, moved by one load or store.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T v[kWidth];
};

template <class T>
constexpr int kVector = 16 / sizeof(T);

template <int kWidth, class T>
bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * kWidth) == 0;
}

template <int kBytes>
using Word = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, unsigned, unsigned short>>>;

template <int kWidth, class T>
__device__ __forceinline__ Pack<T, kWidth> load(const T* pointer) {
  using W = Word<sizeof(T) * kWidth>;
  Pack<T, kWidth> pack;
  *reinterpret_cast<W*>(&pack) = *reinterpret_cast<const W*>(pointer);
  return pack;
}

template <int kWidth, class T>
__device__ __forceinline__ void store(T* pointer, const Pack<T, kWidth>& pack) {
  using W = Word<sizeof(T) * kWidth>;
  store_word(reinterpret_cast<W*>(pointer), *reinterpret_cast<const W*>(&pack));
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T narrow(Acc<T> value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(value);
  } else {
    return value;
  }
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// fmaxf drops a NaN operand; these keep it.
struct NanMax {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b || b != b ? b : a;
  }
};

struct NanMin {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a || b != b ? b : a;
  }
};

template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// To be called by all kThreads of the block; all of them get the result.
template <int kThreads, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, T identity, Op op) {
  ADVCAM_SHARED(T, partial, kThreads / 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_reduce(value, op);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = warp_reduce(lane < kThreads / 32 ? partial[lane] : identity, op);
  __syncthreads();  // the next call writes `partial` again
  return value;
}

}  // namespace cuda
}  // namespace advcam
