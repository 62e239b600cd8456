// Two launches for all groups: extrema of every group, then the step. A group's maximum must be known before its first
// element moves, so image and gradient pass twice. With x, g, o the bytes of an element of the image, the gradient and
// the network's input: 3 x + 2 g + o bytes an element (fp32: 20; fp32 with a bf16 gradient and input: 18), the minimum
// for two passes; 2 x + g + o (12; 12) reach the memory where a batch fits the cache. Accesses are 128 bits wide, those
// of a narrower tensor 64: a lane keeps to the same elements in all tensors, and every sector it touches is used whole.
#include "climb_step.h"
#include "cuda/common.cuh"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;
constexpr int kBatch = 4;             // packs that a thread has in flight
constexpr int64_t kApplyParts = 256;  // blocks of a group in the second pass

struct Absent {};  // the network's input is not wanted

// Block (group, part) leaves max|g|, min x and max x of its share in partial[group][part].
template <class X, class G, int kWidth>
__global__ void __launch_bounds__(kThreads)
    climb_step_extrema(const X* __restrict__ image, const G* __restrict__ gradient, X* __restrict__ partial,
                       int64_t packs, int parts) {
  const int64_t group = blockIdx.x / parts;
  const int part = blockIdx.x % parts;
  image += group * packs * kWidth;
  gradient += group * packs * kWidth;
  X largest = 0, low = kInfinity<X>, high = -kInfinity<X>;
#pragma unroll 4
  for (int64_t i = part * kThreads + threadIdx.x; i < packs; i += parts * kThreads) {
    const Pack<X, kWidth> x = load<kWidth>(image + i * kWidth);
    const Pack<G, kWidth> g = load<kWidth>(gradient + i * kWidth);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const X slope = widen(g.v[j]);
      largest = NanMax()(largest, slope < 0 ? -slope : slope);
      low = NanMin()(low, x.v[j]);
      high = NanMax()(high, x.v[j]);
    }
  }
  largest = block_reduce<kThreads>(largest, X(0), NanMax());
  low = block_reduce<kThreads>(low, kInfinity<X>, NanMin());
  high = block_reduce<kThreads>(high, -kInfinity<X>, NanMax());
  if (threadIdx.x == 0) {
    partial += (group * kClimbStepParts + part) * kClimbStepFields;
    partial[0] = largest;
    partial[1] = low;
    partial[2] = high;
  }
}

template <class X>
struct Range {
  X scale, low, high;  // step / (max|g| + 1e-12), min x, max x
};

// Every warp reduces the group's partial results for itself: no barrier, and the loads hit the cache.
template <class X>
__device__ __forceinline__ Range<X> group_range(const X* partial, int parts, X step, X* gradient_max) {
  X largest = 0, low = kInfinity<X>, high = -kInfinity<X>;
  for (int i = threadIdx.x % 32; i < parts; i += 32) {
    largest = NanMax()(largest, partial[i * kClimbStepFields]);
    low = NanMin()(low, partial[i * kClimbStepFields + 1]);
    high = NanMax()(high, partial[i * kClimbStepFields + 2]);
  }
  largest = warp_reduce(largest, NanMax());
  low = warp_reduce(low, NanMin());
  high = warp_reduce(high, NanMax());
  if (gradient_max && threadIdx.x == 0) *gradient_max = largest;
  const X scale = step / (largest + X(1e-12));
  return {low != low ? low : scale, low, high};  // a NaN in the image must reach every element, and clamping drops it
}

// Groups go from last to first: what the first pass read last is still in the cache.
template <class X, class G, class N, int kWidth>
__global__ void __launch_bounds__(kThreads)
    climb_step_apply(X* __restrict__ image, const G* __restrict__ gradient, N* __restrict__ network_input,
                     X* __restrict__ gradient_max, const X* __restrict__ partial, int64_t groups, int64_t packs,
                     int partial_count, int parts, X step) {
  const int64_t group = groups - 1 - blockIdx.x / parts;
  const int part = blockIdx.x % parts;
  const Range<X> range = group_range<X>(partial + group * kClimbStepParts * kClimbStepFields, partial_count, step,
                                        part == 0 ? gradient_max + group : nullptr);
  image += group * packs * kWidth;
  gradient += group * packs * kWidth;
  if constexpr (!std::is_same_v<N, Absent>) network_input += group * packs * kWidth;

  const int64_t stride = parts * kThreads;
  for (int64_t first = part * kThreads + threadIdx.x; first < packs; first += kBatch * stride) {
    Pack<X, kWidth> x[kBatch];
    Pack<G, kWidth> g[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {  // all loads before the first store, which might overwrite what follows
      const int64_t i = first + b * stride;
      if (i < packs) {
        x[b] = load<kWidth>(image + i * kWidth);
        g[b] = load<kWidth>(gradient + i * kWidth);
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = first + b * stride;
      if (i >= packs) break;
      [[maybe_unused]] Pack<N, kWidth> rounded;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        X moved = x[b].v[j] + range.scale * widen(g[b].v[j]);
        moved = moved < range.low ? range.low : moved;  // a NaN stays: no comparison holds
        moved = moved > range.high ? range.high : moved;
        x[b].v[j] = moved;
        if constexpr (!std::is_same_v<N, Absent>) rounded.v[j] = narrow<N>(moved);
      }
      store<kWidth>(image + i * kWidth, x[b]);
      if constexpr (!std::is_same_v<N, Absent>) store<kWidth>(network_input + i * kWidth, rounded);
    }
  }
}

template <class X, class G, class N, int kWidth>
void launch(const ClimbStep& step, X* partial, cudaStream_t stream) {
  const int64_t packs = step.n / kWidth, wanted = std::max<int64_t>(1, ceil_div(packs, kThreads * kBatch));
  const int parts = static_cast<int>(std::min<int64_t>(wanted, kClimbStepParts));
  const int apply_parts = static_cast<int>(std::min(wanted, kApplyParts));
  auto* image = static_cast<X*>(step.image);
  const auto* gradient = static_cast<const G*>(step.gradient);
  ADVCAM_LAUNCH((climb_step_extrema<X, G, kWidth>), grid_size(step.groups * parts), kThreads, stream, image, gradient,
                partial, packs, parts);
  ADVCAM_LAUNCH((climb_step_apply<X, G, N, kWidth>), grid_size(step.groups * apply_parts), kThreads, stream, image,
                gradient, static_cast<N*>(step.network_input), static_cast<X*>(step.gradient_max), partial, step.groups,
                packs, parts, apply_parts, static_cast<X>(step.step));
}

template <class X, class G, class N>
void choose_width(const ClimbStep& step, void* workspace, cudaStream_t stream) {
  constexpr int kWidth = kVector<X>;
  const bool vector = step.n % kWidth == 0 && aligned<kWidth>(static_cast<X*>(step.image)) &&
                      aligned<kWidth>(static_cast<const G*>(step.gradient)) &&
                      aligned<kWidth>(static_cast<N*>(step.network_input));
  auto run = vector ? launch<X, G, N, kWidth> : launch<X, G, N, 1>;
  run(step, static_cast<X*>(workspace), stream);
}

template <class G>
void choose_network(const ClimbStep& step, void* workspace, cudaStream_t stream) {
  auto run = step.network_dtype == DType::bf16  ? choose_width<float, G, __nv_bfloat16>
             : step.network_dtype == DType::f16 ? choose_width<float, G, __half>
                                                : choose_width<float, G, Absent>;
  run(step, workspace, stream);
}
}  // namespace

const char* climb_step(const ClimbStep& step, void* workspace, int device, void* stream) {
  if (step.groups == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = step.image_dtype == DType::f64       ? choose_width<double, double, Absent>
             : step.gradient_dtype == DType::bf16 ? choose_network<__nv_bfloat16>
             : step.gradient_dtype == DType::f16  ? choose_network<__half>
                                                  : choose_network<float>;
  run(step, workspace, static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
