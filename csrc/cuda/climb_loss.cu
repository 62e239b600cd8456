// Two launches for all groups. The first passes over the logit maps once: scores, and the gradient of their weighted
// sum. The second, one block a group, reads the group's own class: P, f, R, M, the regulariser, the objective; it
// writes that class's gradient once more, now whole. No result waits in the workspace.
//
// Bytes an element of the logit maps, with e its size: 2 e (fp32: 8, bf16: 4), the minimum: read once, written once.
// The second launch adds about 5 e / classes and 9 to 17 bytes a position of the pair map.
#include "climb_loss.h"
#include "cuda/common.cuh"

namespace advcam {
namespace cuda {
namespace {
constexpr int kRowThreads = 256;
constexpr int kColumnThreads = 512;
constexpr int kColumnBytes = 512;  // of neighbouring classes that a block reads at one position
constexpr int kGroupThreads = 512;
constexpr int kRowBatch = 4, kColumnBatch = 2;  // packs that a thread has in flight

// s(z) = relu(z) or z: whether it passes. A NaN does, so that the score shows it.
template <class A>
__device__ __forceinline__ bool passes(A value, bool rectify) {
  return !(rectify && value <= 0);
}

// Adds s(z) of a pack to sum[...] and returns w s'(z) / (h w); kSums is 1 where the pack runs along the positions.
template <class T, int kWidth, int kSums>
__device__ __forceinline__ Pack<T, kWidth> score_pack(const Pack<T, kWidth>& z, const Acc<T> (&slope)[kSums],
                                                      Acc<T> (&sum)[kSums], bool rectify) {
  Pack<T, kWidth> gradient;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const Acc<T> value = widen(z.v[j]);
    const bool pass = passes(value, rectify);
    sum[j % kSums] += pass ? value : 0;
    gradient.v[j] = narrow<T>(pass ? slope[j % kSums] : 0);
  }
  return gradient;
}

// Scores the packs at positions first, first + step, ... of `pixels`, which lie `stride` elements apart.
template <class T, int kWidth, int kBatch, int kSums>
__device__ __forceinline__ void score_along(const T* __restrict__ logit_map, T* __restrict__ gradient, int first,
                                            int step, int pixels, int64_t stride, const Acc<T> (&slope)[kSums],
                                            Acc<T> (&sum)[kSums], bool rectify) {
  for (; first < pixels; first += kBatch * step) {
    Pack<T, kWidth> z[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {  // all loads before the first store: the compiler leaves them in turns
      const int64_t p = first + b * step;
      if (p < pixels) z[b] = load<kWidth>(logit_map + p * stride);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t p = first + b * step;
      if (p >= pixels) break;
      const Pack<T, kWidth> out = score_pack(z[b], slope, sum, rectify);
      if (gradient) store<kWidth>(gradient + p * stride, out);
    }
  }
}

// Pixels side by side: kLanes threads, a warp or the block, go along one row [h*w] of one item and class.
template <class T, int kWidth, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    climb_loss_rows(const T* __restrict__ logit_map, T* __restrict__ gradient, const ClimbLoss loss,
                    Acc<T> inverse_pixels) {
  using A = Acc<T>;
  const int classes = static_cast<int>(loss.classes), pixels = static_cast<int>(loss.height * loss.width);
  const int64_t row = int64_t(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= loss.groups * loss.members * classes) return;  // whole warps only: a block of one row is never over
  const int item = static_cast<int>(row) / classes, column = static_cast<int>(row) % classes;
  const A slope[1] = {static_cast<const A*>(loss.weight)[int64_t(item / loss.members) * classes + column] *
                      inverse_pixels};
  A sum[1] = {0};
  const int64_t offset = item * loss.stride_item + column * loss.stride_class;
  score_along<T, kWidth, kRowBatch>(logit_map + offset, gradient ? gradient + offset : nullptr,
                                    threadIdx.x % kLanes * kWidth, kLanes * kWidth, pixels, 1, slope, sum,
                                    loss.rectify);
  A total;
  if constexpr (kLanes == 32) {
    total = warp_reduce(sum[0], Sum());
  } else {
    total = block_reduce<kRowThreads>(sum[0], A(0), Sum());
  }
  if (threadIdx.x % kLanes == 0) static_cast<A*>(loss.score)[row] = total * inverse_pixels;
}

// Adds shared[j][row][column] over the rows, in pairs; the sums end in row 0. For all threads of the block.
template <int kWidth, class A>
__device__ __forceinline__ void sum_rows(A* shared, int rows, int columns, bool live) {
  const int row = threadIdx.x / columns;
  for (int count = rows; count > 1;) {
    const int half = (count + 1) / 2;
    __syncthreads();
    if (live && row + half < count) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        A* own = shared + j * kColumnThreads + threadIdx.x;
        *own += own[half * columns];
      }
    }
    count = half;
  }
}

// Classes side by side: thread (row, column) keeps to one pack of classes and takes every `rows`-th position.
template <class T, int kWidth>
__global__ void __launch_bounds__(kColumnThreads, 2)
    climb_loss_columns(const T* __restrict__ logit_map, T* __restrict__ gradient, const ClimbLoss loss,
                       Acc<T> inverse_pixels, int columns, int rows) {
  using A = Acc<T>;
  ADVCAM_SHARED(A, shared, kColumnThreads * kWidth);
  const int classes = static_cast<int>(loss.classes), pixels = static_cast<int>(loss.height * loss.width);
  const int blocks = (classes / kWidth + columns - 1) / columns;  // of an item
  const int64_t item = blockIdx.x / blocks;
  const int column = (blockIdx.x % blocks * columns + threadIdx.x % columns) * kWidth;  // its first class
  const int row = threadIdx.x / columns;
  const bool live = row < rows && column < classes;
  A sum[kWidth] = {}, slope[kWidth];
  if (live) {
    const A* weight = static_cast<const A*>(loss.weight) + item / loss.members * classes + column;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) slope[j] = weight[j] * inverse_pixels;
    const int64_t offset = item * loss.stride_item + column;
    score_along<T, kWidth, kColumnBatch>(logit_map + offset, gradient ? gradient + offset : nullptr, row, rows, pixels,
                                         loss.stride_pixel, slope, sum, loss.rectify);
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) shared[j * kColumnThreads + threadIdx.x] = sum[j];
  sum_rows<kWidth>(shared, rows, columns, live);
  if (!live || row > 0) return;
  A* score = static_cast<A*>(loss.score) + item * classes + column;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) score[j] = shared[j * kColumnThreads + threadIdx.x] * inverse_pixels;
}

// Position q of the pair map in member n: itself, or its mirror image.
template <int kMember>
__device__ __forceinline__ int mirrored(int q, int width) {
  return kMember == 0 ? q : q + width - 1 - 2 * (q % width);
}

template <class T, int kMembers>
struct OwnClass {
  const T* logit[kMembers];
  Acc<T> share[kMembers];  // f_n
};

// f_n: each member's share of the positions where the own class is positive, over the head's positive weights.
template <class T, int kMembers>
__device__ __forceinline__ void count_positive(OwnClass<T, kMembers>& own, int pixels, int64_t stride,
                                               Acc<T> positive) {
  int count[kMembers] = {};
#pragma unroll 4
  for (int p = threadIdx.x; p < pixels; p += kGroupThreads) {
#pragma unroll
    for (int n = 0; n < kMembers; ++n) count[n] += widen(own.logit[n][p * stride]) > 0;
  }
  Acc<T> total = 0;
#pragma unroll
  for (int n = 0; n < kMembers; ++n) {
    own.share[n] = static_cast<Acc<T>>(block_reduce<kGroupThreads>(count[n], 0, Sum()));
    total += own.share[n];
  }
  const Acc<T> whole = positive * total, divisor = whole < kTiny<Acc<T>> ? kTiny<Acc<T>> : whole;
#pragma unroll
  for (int n = 0; n < kMembers; ++n) own.share[n] /= divisor;
}

// Writes R; returns its maximum.
template <class T, int kMembers>
__device__ __forceinline__ Acc<T> write_pair_map(const OwnClass<T, kMembers>& own, Acc<T>* __restrict__ pair_map,
                                                 int pixels, int width, int64_t stride) {
  using A = Acc<T>;
  A largest = 0;
#pragma unroll 4
  for (int q = threadIdx.x; q < pixels; q += kGroupThreads) {
    const A first = widen(own.logit[0][q * stride]);
    A value = own.share[0] * (first <= 0 ? 0 : first);
    if constexpr (kMembers == 2) {
      const A second = widen(own.logit[1][mirrored<1>(q, width) * stride]);
      value += own.share[1] * (second <= 0 ? 0 : second);
    }
    pair_map[q] = value;
    largest = NanMax()(largest, value);
  }
  return block_reduce<kGroupThreads>(largest, A(0), NanMax());
}

// dJ/dz of the own class at one position; push = lambda M sign(R - R0).
template <class T>
__device__ __forceinline__ T own_gradient(T logit, Acc<T> slope, Acc<T> push, Acc<T> share, bool rectify) {
  const Acc<T> value = widen(logit);
  return narrow<T>((passes(value, rectify) ? slope : 0) - (value > 0 ? push * share : 0));
}

// Writes M and the own class's gradient; returns this thread's part of lambda * sum_p M |R - R0|.
template <class T, int kMembers>
__device__ __forceinline__ Acc<T> suppress(const OwnClass<T, kMembers>& own, const Acc<T>* pair_map, Acc<T> threshold,
                                           Acc<T> suppression, Acc<T> slope, T* const (&gradient)[kMembers],
                                           const ClimbLoss& loss) {
  using A = Acc<T>;
  const int width = static_cast<int>(loss.width), pixels = static_cast<int>(loss.height) * width;
  const int64_t start = int64_t(blockIdx.x) * pixels, stride = loss.stride_pixel;
  const A* initial_map = loss.initial_map ? static_cast<const A*>(loss.initial_map) + start : pair_map;
  uint8_t* mask = loss.mask + start;
  A penalty = 0;
  for (int q = threadIdx.x; q < pixels; q += kGroupThreads) {
    const A value = pair_map[q], change = value - initial_map[q];
    const bool masked = value > threshold;
    mask[q] = masked;
    penalty += masked ? suppression * (change < 0 ? -change : change) : 0;
    if (!loss.gradient) continue;
    const A push = masked && change != 0 ? (change < 0 ? -suppression : suppression) : A(0);
    const int64_t here = q * stride;
    gradient[0][here] = own_gradient(own.logit[0][here], slope, push, own.share[0], loss.rectify);
    if constexpr (kMembers == 2) {
      const int64_t there = mirrored<1>(q, width) * stride;
      gradient[1][there] = own_gradient(own.logit[1][there], slope, push, own.share[1], loss.rectify);
    }
  }
  return penalty;
}

template <class T, int kMembers>
__global__ void __launch_bounds__(kGroupThreads)
    climb_loss_groups(const T* __restrict__ logit_map, T* __restrict__ gradient, const ClimbLoss loss,
                      Acc<T> inverse_pixels, Acc<T> suppression, Acc<T> mask_threshold) {
  using A = Acc<T>;
  const int64_t group = blockIdx.x, column = loss.target[group];
  const int width = static_cast<int>(loss.width), pixels = static_cast<int>(loss.height) * width;
  OwnClass<T, kMembers> own;
  T* own_gradient_map[kMembers];
#pragma unroll
  for (int n = 0; n < kMembers; ++n) {
    const int64_t offset = (group * kMembers + n) * loss.stride_item + column * loss.stride_class;
    own.logit[n] = logit_map + offset;
    own_gradient_map[n] = gradient ? gradient + offset : nullptr;
  }
  count_positive(own, pixels, loss.stride_pixel, static_cast<const A*>(loss.positive)[group]);

  A* pair_map = static_cast<A*>(loss.pair_map) + group * pixels;
  const A largest = write_pair_map(own, pair_map, pixels, width, loss.stride_pixel);
  const A* weight = static_cast<const A*>(loss.weight) + group * loss.classes;
  A sum = -suppress(own, pair_map, mask_threshold * largest, suppression, weight[column] * inverse_pixels,
                    own_gradient_map, loss);

  const A* score = static_cast<const A*>(loss.score) + group * kMembers * loss.classes;
  for (int64_t k = threadIdx.x; k < loss.classes; k += kGroupThreads) {
    A both = score[k];
    if constexpr (kMembers == 2) both += score[loss.classes + k];
    sum += weight[k] * both;
  }
  sum = block_reduce<kGroupThreads>(sum, A(0), Sum());
  if (threadIdx.x == 0) static_cast<A*>(loss.objective)[group] = sum;
}

template <class T>
Acc<T> inverse_pixels(const ClimbLoss& loss) {
  return 1 / static_cast<Acc<T>>(loss.height * loss.width);
}

template <class T, int kWidth>
void launch_rows(const ClimbLoss& loss, cudaStream_t stream) {
  const int64_t rows = loss.groups * loss.members * loss.classes, packs = loss.height * loss.width / kWidth;
  const bool long_rows = packs > kRowThreads;
  auto kernel = long_rows ? climb_loss_rows<T, kWidth, kRowThreads> : climb_loss_rows<T, kWidth, 32>;
  const int64_t blocks = long_rows ? rows : ceil_div(rows, kRowThreads / 32);
  ADVCAM_LAUNCH(kernel, grid_size(blocks), kRowThreads, stream, static_cast<const T*>(loss.logit_map),
                static_cast<T*>(loss.gradient), loss, inverse_pixels<T>(loss));
}

template <class T, int kWidth>
void launch_columns(const ClimbLoss& loss, cudaStream_t stream) {
  const int64_t packs = loss.classes / kWidth;
  const int columns = static_cast<int>(std::min<int64_t>(packs, kColumnBytes / (sizeof(T) * kWidth)));
  const int rows = static_cast<int>(std::min<int64_t>(kColumnThreads / columns, loss.height * loss.width));
  const int threads = static_cast<int>(ceil_div(rows * columns, 32)) * 32;
  const int64_t blocks = loss.groups * loss.members * ceil_div(packs, columns);
  ADVCAM_LAUNCH((climb_loss_columns<T, kWidth>), grid_size(blocks), threads, stream,
                static_cast<const T*>(loss.logit_map), static_cast<T*>(loss.gradient), loss, inverse_pixels<T>(loss),
                columns, rows);
}

template <class T>
void launch(const ClimbLoss& loss, cudaStream_t stream) {
  constexpr int kWidth = kVector<T>;
  const auto* logit_map = static_cast<const T*>(loss.logit_map);
  auto* gradient = static_cast<T*>(loss.gradient);
  const bool rows = loss.stride_pixel == 1;
  const int64_t line = rows ? loss.height * loss.width : loss.classes;
  const bool vector =
      line % kWidth == 0 && loss.stride_item % kWidth == 0 && aligned<kWidth>(logit_map) && aligned<kWidth>(gradient);
  auto run = rows ? (vector ? launch_rows<T, kWidth> : launch_rows<T, 1>)
                  : (vector ? launch_columns<T, kWidth> : launch_columns<T, 1>);
  run(loss, stream);
  auto groups = loss.members == 2 ? climb_loss_groups<T, 2> : climb_loss_groups<T, 1>;
  ADVCAM_LAUNCH(groups, grid_size(loss.groups), kGroupThreads, stream, logit_map, gradient, loss,
                inverse_pixels<T>(loss), static_cast<Acc<T>>(loss.suppression),
                static_cast<Acc<T>>(loss.mask_threshold));
}
}  // namespace

const char* climb_loss(const ClimbLoss& loss, void*, int device, void* stream) {
  if (loss.groups == 0 || loss.classes == 0 || loss.height == 0 || loss.width == 0) return nullptr;
  if (!fits_int(loss.height * loss.width) || !fits_int(loss.groups * loss.members * loss.classes)) {
    return "climb_loss: a map has over 2^31 - 1 positions, or the batch as many scores";
  }
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto run = loss.dtype == DType::f64    ? launch<double>
             : loss.dtype == DType::bf16 ? launch<__nv_bfloat16>
             : loss.dtype == DType::f16  ? launch<__half>
                                         : launch<float>;
  run(loss, static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
