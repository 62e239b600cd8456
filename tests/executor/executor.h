// In place of the CUDA headers: g++ -DADVCAM_EXECUTOR compiles the kernels' own sources and runs them on the CPU.
// Holds the words, built-in variables and calls that the kernels use; a kernel that needs another adds it here.
#pragma once
#include <cmath>

#include "number_types.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define threadIdx (::executor::current->index)
#define blockIdx (::executor::state.block_index)
#define gridDim (::executor::state.grid)
#define ADVCAM_SHARED(type, name, count) \
  static char name##_tag;                \
  type* const name = static_cast<type*>(::executor::shared_memory(&name##_tag, sizeof(type) * (count)))
#define ADVCAM_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), ::executor::launch(kernel, grid, block, __VA_ARGS__))

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

template <class Word>
void store_word(Word* pointer, Word word) {
  *pointer = word;
}

inline void __syncthreads() { executor::block_barrier(); }

inline void __syncwarp() {
  void* meeting_point = &executor::state.warps[executor::current->number / 32];
  executor::release(meeting_point);
  executor::meet(executor::kAllLanes, 0, "__syncwarp");
  executor::acquire(meeting_point);
}

// Orders no memory: a shuffle is not a barrier.
template <class T>
ADVCAM_UNSEEN T __shfl_xor_sync(uint32_t mask, T value, int lane_mask) {
  const executor::Unseen unseen;
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const unsigned source = (executor::current->number % 32) ^ lane_mask;
  const executor::Meeting& meeting = executor::meet(mask, bits, "__shfl_xor_sync");
  if (!(mask >> source & 1)) executor::fail("__shfl_xor_sync: the source lane is not in the mask");
  std::memcpy(&value, &meeting.taken[source], sizeof value);
  return value;
}

template <class T>
T atomicAdd(T* pointer, T value) {
  return __atomic_fetch_add(pointer, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicMax(T* pointer, T value) {
  T seen = __atomic_load_n(pointer, __ATOMIC_RELAXED);
  while (seen < value &&
         !__atomic_compare_exchange_n(pointer, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return seen;
}

template <class T>
T atomicMin(T* pointer, T value) {
  T seen = __atomic_load_n(pointer, __ATOMIC_RELAXED);
  while (seen > value &&
         !__atomic_compare_exchange_n(pointer, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return seen;
}

template <class T>
T atomicCAS(T* pointer, T expected, T wanted) {
  __atomic_compare_exchange_n(pointer, &expected, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// A NaN becomes whatever the machine likes: no kernel asks for that.
inline long long __double2ll_rn(double value) {
  if (value != value) executor::fail("__double2ll_rn: a NaN");
  return std::llrint(value);
}
inline long long __float2ll_rn(float value) { return __double2ll_rn(value); }

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline std::string reported_error;  // lives on behind the text that a launcher returns

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) { return 101; }  // there is but one device, 0

inline cudaError_t cudaGetLastError() {
  reported_error = std::exchange(executor::last_error, {});
  return reported_error.empty() ? cudaSuccess : 1;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == 101 ? "invalid device ordinal" : reported_error.c_str();
}
