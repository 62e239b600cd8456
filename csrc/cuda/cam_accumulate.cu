// One launch for all maps and scales, a second one if they are normalised. With e the size of an element: each one of
// total is read and written once, 2 e, and each one of the maps read once, e (the memory's view; a resized map is read
// up to four times from the cache): adding one map of equal size moves 3 e (fp32: 12), the minimum. Normalising needs
// each map's maximum first: 2 e more, the minimum again.
#include "cam_accumulate.h"
#include "cuda/common.cuh"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;

template <class T>
struct Scales {
  const T* map[kMaxScales];
  int height[kMaxScales], width[kMaxScales];
  int count, rows, columns;  // the size resized to
};

// Where output `i` of `outputs` lies between two neighbours of `inputs`. The coordinate (i + 0.5) inputs / outputs -
// 0.5 is a fraction of integers: exact, where float arithmetic loses the digits that the weight consists of.
template <class T>
struct Between {
  int below, above;
  T weight;  // of `above`

  __device__ __forceinline__ Between(unsigned i, int inputs, int outputs) {
    const unsigned ahead = (2u * i + 1) * inputs, denominator = 2u * outputs;
    const unsigned numerator = ahead < unsigned(outputs) ? 0 : ahead - outputs;
    below = static_cast<int>(numerator / denominator);
    above = below + 1 < inputs ? below + 1 : below;
    weight = static_cast<T>(numerator % denominator) / static_cast<T>(denominator);
  }
};

// Adds the bilinear samples of map [height, width] for outputs (y, x .. x + kWidth - 1).
template <class T, int kWidth>
__device__ __forceinline__ void add_resized(Pack<T, kWidth>& value, const T* map, int height, int width, int rows,
                                            int columns, unsigned y, unsigned x) {
  const Between<T> row(y, height, rows);
  const T* upper = map + int64_t(row.below) * width;
  const T* lower = map + int64_t(row.above) * width;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const Between<T> column(x + j, width, columns);
    const T left = T(1) - column.weight;
    const T above = left * upper[column.below] + column.weight * upper[column.above];
    const T below = left * lower[column.below] + column.weight * lower[column.above];
    value.v[j] += (T(1) - row.weight) * above + row.weight * below;
  }
}

// Block (map, part); leaves the maximum of its share in partial[map][part] if partial is given.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cam_accumulate_add(T* __restrict__ total, T* __restrict__ partial, const Scales<T> scales, int height, int width,
                       int parts) {
  const int64_t map = blockIdx.x / parts;
  const unsigned part = blockIdx.x % parts, pixels = height * width, stride = parts * kThreads * kWidth;
  const bool whole = height == scales.rows && width == scales.columns;
  total += map * pixels;
  T largest = -kInfinity<T>;
  for (unsigned i = (part * kThreads + threadIdx.x) * kWidth; i < pixels; i += stride) {
    Pack<T, kWidth> value = load<kWidth>(total + i);
    for (int s = 0; s < scales.count; ++s) {
      const T* source = scales.map[s] + map * scales.height[s] * scales.width[s];
      if (whole && scales.height[s] == height && scales.width[s] == width) {
        const Pack<T, kWidth> added = load<kWidth>(source + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) value.v[j] += added.v[j];
      } else {
        add_resized(value, source, scales.height[s], scales.width[s], scales.rows, scales.columns, i / width,
                    i % width);
      }
    }
    store<kWidth>(total + i, value);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) largest = NanMax()(largest, value.v[j]);
  }
  if (!partial) return;
  largest = block_reduce<kThreads>(largest, -kInfinity<T>, NanMax());
  if (threadIdx.x == 0) partial[map * kCamAccumulateParts + part] = largest;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cam_accumulate_normalise(T* __restrict__ total, const T* __restrict__ partial, unsigned pixels, int parts) {
  const int64_t map = blockIdx.x / parts;
  const unsigned part = blockIdx.x % parts, stride = parts * kThreads * kWidth;
  T largest = -kInfinity<T>;
  for (int i = threadIdx.x % 32; i < parts; i += 32) {
    largest = NanMax()(largest, partial[map * kCamAccumulateParts + i]);
  }
  const T divisor = warp_reduce(largest, NanMax()) + T(1e-5);
  total += map * pixels;
  for (unsigned i = (part * kThreads + threadIdx.x) * kWidth; i < pixels; i += stride) {
    Pack<T, kWidth> value = load<kWidth>(total + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) value.v[j] /= divisor;
    store<kWidth>(total + i, value);
  }
}

template <class T, int kWidth>
void launch(const CamAccumulate& cam, const Scales<T>& scales, T* partial, cudaStream_t stream) {
  const int64_t pixels = cam.height * cam.width, wanted = ceil_div(pixels, kThreads * kWidth);
  const int parts = static_cast<int>(std::min<int64_t>(wanted, kCamAccumulateParts));
  const unsigned grid = grid_size(cam.count * parts);
  auto* total = static_cast<T*>(cam.total);
  ADVCAM_LAUNCH((cam_accumulate_add<T, kWidth>), grid, kThreads, stream, total, cam.normalise ? partial : nullptr,
                scales, static_cast<int>(cam.height), static_cast<int>(cam.width), parts);
  if (!cam.normalise) return;
  ADVCAM_LAUNCH((cam_accumulate_normalise<T, kWidth>), grid, kThreads, stream, total, partial, pixels, parts);
}

template <class T>
const char* choose_width(const CamAccumulate& cam, void* workspace, cudaStream_t stream) {
  constexpr int kWidth = kVector<T>;
  Scales<T> scales{};
  scales.count = cam.scales;
  scales.rows = static_cast<int>(cam.rows);
  scales.columns = static_cast<int>(cam.columns);
  bool fits = fits_int(cam.rows * cam.columns), equal = cam.height == cam.rows && cam.width == cam.columns;
  bool vector = aligned<kWidth>(static_cast<T*>(cam.total));
  for (int s = 0; s < cam.scales; ++s) {
    scales.map[s] = static_cast<const T*>(cam.map[s]);
    scales.height[s] = static_cast<int>(cam.map_height[s]);
    scales.width[s] = static_cast<int>(cam.map_width[s]);
    fits = fits && fits_int(cam.rows * cam.map_height[s]) && fits_int(cam.columns * cam.map_width[s]);
    equal = equal && cam.map_height[s] == cam.height && cam.map_width[s] == cam.width;
    vector = vector && aligned<kWidth>(scales.map[s]);
  }
  if (!fits) return "cam_accumulate: a map, or the product of two of its sides before and after, is over 2^31 - 1";
  // A pack of a plain addition may run over the end of a row; one of a resize may not.
  vector = vector && (equal ? cam.height * cam.width : cam.width) % kWidth == 0;
  auto run = vector ? launch<T, kWidth> : launch<T, 1>;
  run(cam, scales, static_cast<T*>(workspace), stream);
  return error_text(cudaGetLastError());
}
}  // namespace

const char* cam_accumulate(const CamAccumulate& cam, void* workspace, int device, void* stream) {
  if (cam.count == 0 || cam.height == 0 || cam.width == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = cam.dtype == DType::f64 ? choose_width<double> : choose_width<float>;
  return run(cam, workspace, static_cast<cudaStream_t>(stream));
}

}  // namespace cuda
}  // namespace advcam
