// Three launches: counters to zero; every pixel counted once, in a block's shared memory where the counters fit; sums.
#include "cuda/common.cuh"
#include "threshold_sweep.h"

namespace advcam {
namespace cuda {
namespace {
using Counter = unsigned long long;
constexpr int kThreads = 256;
constexpr int kShared = 6144;  // counters of a block: 24 KB
constexpr int kRounds = 8;     // packs of a thread

__global__ void __launch_bounds__(kThreads) threshold_sweep_clear(Counter* counters, int64_t size, int64_t* faults) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) counters[i] = 0;
  if (i < 2) faults[i] = 0;
}

// The thresholds below a value, of `steps` ascending ones.
template <class T>
__device__ __forceinline__ int below(Acc<T> value, const T* __restrict__ thresholds, int steps) {
  int first = 0, count = steps;
  while (count > 0) {
    const int half = count / 2;
    const bool right = widen(thresholds[first + half]) < value;
    first = right ? first + half + 1 : first;
    count = right ? count - half - 1 : half;
  }
  return first;
}

template <int kWidth, class T>
__device__ __forceinline__ Pack<T, kWidth> take(const T* pointer) {
  if constexpr (kWidth == 1) {
    return {{*pointer}};
  } else {
    return load<kWidth>(pointer);
  }
}

template <class T, int kWidth, bool kInShared>
__global__ void __launch_bounds__(kThreads)
    threshold_sweep_count(const T* __restrict__ maps, const uint8_t* __restrict__ truth,
                          const T* __restrict__ thresholds, Counter* __restrict__ counters, int64_t* faults,
                          int64_t pixels, int count, int steps, int num_classes) {
  ADVCAM_SHARED(unsigned, shared, (kInShared ? kShared : 1));
  const int row = steps + 1, of_truth = (count > 0 ? count : 1) * row, size = (num_classes + 1) * of_truth;
  if (kInShared) {
    for (int i = threadIdx.x; i < size; i += kThreads) shared[i] = 0;
    __syncthreads();
  }
  Counter nans = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = ((int64_t(blockIdx.x) * kRounds + round) * kThreads + threadIdx.x) * kWidth;
    if (at >= pixels) break;
    Acc<T> best[kWidth];
    int which[kWidth];
#pragma unroll
    for (int w = 0; w < kWidth; ++w) best[w] = -kInfinity<Acc<T>>, which[w] = 0;
    for (int k = 0; k < count; ++k) {
      const Pack<T, kWidth> values = take<kWidth>(maps + k * pixels + at);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        const Acc<T> value = widen(values.v[w]);
        nans += value != value;
        if (value > best[w]) best[w] = value, which[w] = k;
      }
    }
    const Pack<uint8_t, kWidth> labels = take<kWidth>(truth + at);
#pragma unroll
    for (int w = 0; w < kWidth; ++w) {
      const int label = labels.v[w];
      if (label > num_classes) {
        if (label != 255) atomicMax(reinterpret_cast<long long*>(faults) + 1, static_cast<long long>(label));
        continue;
      }
      const int place = label * of_truth + which[w] * row + below<T>(best[w], thresholds, steps);
      if (kInShared) {
        atomicAdd(&shared[place], 1u);
      } else {
        atomicAdd(&counters[place], Counter(1));
      }
    }
  }
  if (nans) atomicAdd(reinterpret_cast<Counter*>(faults), nans);
  if (!kInShared) return;
  __syncthreads();
  for (int i = threadIdx.x; i < size; i += kThreads)
    if (shared[i]) atomicAdd(&counters[i], Counter(shared[i]));
}

// A thread writes the row of one label at one threshold.
__global__ void __launch_bounds__(kThreads)
    threshold_sweep_sum(const Counter* __restrict__ counters, const int64_t* __restrict__ classes,
                        int64_t* __restrict__ confusion, int64_t rows, int count, int steps, int num_classes) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows) return;
  const int sides = num_classes + 1, label = static_cast<int>(i % sides), step = static_cast<int>(i / sides);
  int64_t* out = confusion + i * sides;
  for (int c = 0; c < sides; ++c) out[c] = 0;
  const int maps = count > 0 ? count : 1;
  for (int k = 0; k < maps; ++k) {
    const Counter* from = counters + (int64_t(label) * maps + k) * (steps + 1);
    int64_t under = 0, above = 0;
    for (int r = 0; r <= steps; ++r) (r > step ? above : under) += static_cast<int64_t>(from[r]);
    out[0] += under;
    if (k < count && classes[k] >= 0 && classes[k] < num_classes) out[classes[k] + 1] += above;
  }
}

template <class T, int kWidth>
void launch_count(const ThresholdSweep& c, Counter* counters, int64_t size, cudaStream_t stream) {
  const auto* maps = static_cast<const T*>(c.maps);
  const auto* thresholds = static_cast<const T*>(c.thresholds);
  const unsigned grid = grid_size(ceil_div(c.pixels, int64_t(kThreads) * kRounds * kWidth));
  const int count = static_cast<int>(c.count), steps = static_cast<int>(c.steps);
  const int classes = static_cast<int>(c.num_classes);
  if (size <= kShared) {
    ADVCAM_LAUNCH((threshold_sweep_count<T, kWidth, true>), grid, kThreads, stream, maps, c.truth, thresholds, counters,
                  c.faults, c.pixels, count, steps, classes);
  } else {
    ADVCAM_LAUNCH((threshold_sweep_count<T, kWidth, false>), grid, kThreads, stream, maps, c.truth, thresholds,
                  counters, c.faults, c.pixels, count, steps, classes);
  }
}

template <class T>
void launch(const ThresholdSweep& c, Counter* counters, cudaStream_t stream) {
  const int64_t size = threshold_sweep_workspace(c), rows = c.steps * (c.num_classes + 1);
  ADVCAM_LAUNCH(threshold_sweep_clear, grid_size(ceil_div(size + 1, kThreads)), kThreads, stream, counters, size,
                c.faults);
  constexpr int kWidth = kVector<T>;
  const bool packs =
      c.pixels % kWidth == 0 && aligned<kWidth>(static_cast<const T*>(c.maps)) && aligned<kWidth>(c.truth);
  if (c.pixels)
    packs ? launch_count<T, kWidth>(c, counters, size, stream) : launch_count<T, 1>(c, counters, size, stream);
  if (rows)
    ADVCAM_LAUNCH(threshold_sweep_sum, grid_size(ceil_div(rows, kThreads)), kThreads, stream, counters, c.classes,
                  c.confusion, rows, static_cast<int>(c.count), static_cast<int>(c.steps),
                  static_cast<int>(c.num_classes));
}
}  // namespace

const char* threshold_sweep(const ThresholdSweep& c, void* workspace, int device, void* stream) {
  if (!fits_int(threshold_sweep_workspace(c))) return "threshold_sweep takes fewer than 2^31 counters";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  const auto s = static_cast<cudaStream_t>(stream);
  auto* counters = static_cast<Counter*>(workspace);
  c.dtype == DType::f64   ? launch<double>(c, counters, s)
  : c.dtype == DType::f16 ? launch<__half>(c, counters, s)
                          : launch<float>(c, counters, s);
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
