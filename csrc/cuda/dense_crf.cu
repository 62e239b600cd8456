// The lattices are built in a hash table by integer atomics. Who comes first there decides how the vertices are
// numbered, and nothing else: what a vertex sums are integers, fractions of 2^-k, whose sum is the same in any order.
// So there is no float atomic, no sorting, and the same bits every time.
//
// Per step and block of channels, 16 bytes of them a vertex, and with e corners a pixel (3 and 6): the splat reads a
// pixel's probabilities and adds e vectors, each of the e axes of the blur reads three vectors and writes one, the
// slice reads e vectors. The images of a batch run one after another in one workspace.
#include "cuda/common.cuh"
#include "dense_crf.h"
#include "permutohedral.h"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;  // threads then take several items each
using Key = unsigned long long;
using Sum = unsigned long long;  // two's complement
constexpr Key kNoKey = ~Key(0);

__device__ __forceinline__ int64_t first_item() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return int64_t(gridDim.x) * kThreads; }

__device__ __forceinline__ long long to_fixed(float value, float scale) { return __float2ll_rn(value * scale); }
__device__ __forceinline__ long long to_fixed(double value, double scale) { return __double2ll_rn(value * scale); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// A lattice on the device. Arrays of [d + 1, points] hold a value for each corner of each point.
struct Vertices {
  Key* key;     // [slots]
  int* number;  // [slots]  of the vertex in this slot
  int64_t slots;
  int *count, *corner;  // count: of vertices. corner: the slot at first, then the vertex
  float* weight;
  int *lower, *upper;  // [d + 1, corners]  neighbours along each axis, -1: absent
  int64_t points, corners;
};

__device__ __forceinline__ int64_t wanted_slot(const Vertices& v, Key key) {
  return static_cast<int64_t>((key * 0x9e3779b97f4a7c15u) >> 20) & (v.slots - 1);
}

__global__ void __launch_bounds__(kThreads) dense_crf_clear(uint4* memory, int64_t words, unsigned value) {
  const uint4 word{value, value, value, value};
  for (int64_t i = first_item(); i < words; i += item_stride()) store_word(memory + i, word);
}

struct Features {
  const uint8_t* image;  // [height, width, 3]
  int width;
  int64_t pixels;
  float sxy, srgb;
};

// The points behind the last pixel lie at 0, as in Kraehenbuehl's code, which takes four at a time.
template <int d>
__global__ void __launch_bounds__(kThreads) dense_crf_insert(Vertices v, Features from, const LatticeShape<d> shape) {
  for (int64_t n = first_item(); n < v.points; n += item_stride()) {
    float feature[d][1] = {}, weight[d + 1][1];
    int64_t key[d + 1][1];
    if (n < from.pixels) {
      feature[0][0] = static_cast<float>(static_cast<int>(n % from.width)) / from.sxy;
      feature[1][0] = static_cast<float>(static_cast<int>(n / from.width)) / from.sxy;
#pragma unroll
      for (int k = 2; k < d; ++k) feature[k][0] = static_cast<float>(from.image[3 * n + k - 2]) / from.srgb;
    }
    find_simplices<d, 1, int64_t>(shape, feature, weight, key);
#pragma unroll
    for (int c = 0; c <= d; ++c) {
      const Key own = static_cast<Key>(key[c][0]) << 3 | c;
      int64_t slot = wanted_slot(v, own);
      for (Key found; (found = atomicCAS(v.key + slot, kNoKey, own)) != kNoKey && found != own;)
        slot = (slot + 1) & (v.slots - 1);
      v.corner[c * v.points + n] = static_cast<int>(slot);
      v.weight[c * v.points + n] = weight[c][0];
    }
  }
}

__global__ void __launch_bounds__(kThreads) dense_crf_number(Vertices v) {
  for (int64_t slot = first_item(); slot < v.slots; slot += item_stride())
    if (v.key[slot] != kNoKey) v.number[slot] = atomicAdd(v.count, 1);
}

__global__ void __launch_bounds__(kThreads) dense_crf_corners(Vertices v) {
  for (int64_t i = first_item(); i < v.corners; i += item_stride()) v.corner[i] = v.number[v.corner[i]];
}

template <int d>
__global__ void __launch_bounds__(kThreads) dense_crf_link(Vertices v, const LatticeShape<d> shape) {
  for (int64_t i = first_item(); i < v.slots * (d + 1); i += item_stride()) {
    const int64_t slot = i % v.slots;
    const int axis = static_cast<int>(i / v.slots);
    const Key own = v.key[slot];
    if (own == kNoKey) continue;
    const int colour = static_cast<int>(own & 7);
    for (int up = 0; up < 2; ++up) {
      const int other = up ? (colour == d ? 0 : colour + 1) : (colour == 0 ? d : colour - 1);
      const int64_t step = up ? shape.up(axis, colour) : -shape.up(axis, other);
      const Key key = static_cast<Key>(static_cast<int64_t>(own >> 3) + step) << 3 | other;
      int64_t at = wanted_slot(v, key);
      while (v.key[at] != key && v.key[at] != kNoKey) at = (at + 1) & (v.slots - 1);
      (up ? v.upper : v.lower)[axis * v.corners + v.number[slot]] = v.key[at] == key ? v.number[at] : -1;
    }
  }
}

// Channels that are filtered together: `count` of the kWidth that a vertex has room for, [count, pixels].
template <class T>
__global__ void __launch_bounds__(kThreads)
    dense_crf_splat(Vertices v, Sum* __restrict__ sum, const T* __restrict__ from, const T* __restrict__ norm,
                    int channels, int64_t pixels, T scale) {
  constexpr int kWidth = kVector<T>;
  const int64_t items = v.corners / v.points * pixels;
  for (int64_t i = first_item(); i < items; i += item_stride()) {
    const int64_t n = i % pixels, at = i / pixels * v.points + n;
    const T factor = norm ? v.weight[at] * norm[n] : T(v.weight[at]);
    Sum* vertex = sum + int64_t(v.corner[at]) * kWidth;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (k >= channels) break;
      const T value = factor * (from ? from[k * pixels + n] : T(1));
      if (value == value) atomicAdd(vertex + k, static_cast<Sum>(to_fixed(value, scale)));  // a NaN stays at home
    }
  }
}

// The first axis takes the sums, the others the values of the axis before.
template <class T>
__device__ __forceinline__ Pack<T, kVector<T>> vertex_of(const T* value, int64_t vertex, T) {
  return load<kVector<T>>(value + vertex * kVector<T>);
}
template <class T>
__device__ __forceinline__ Pack<T, kVector<T>> vertex_of(const Sum* sum, int64_t vertex, T unit) {
  Pack<T, kVector<T>> pack;
#pragma unroll
  for (int k = 0; k < kVector<T>; k += 2) {
    const Pack<Sum, 2> two = load<2>(sum + vertex * kVector<T> + k);
    pack.v[k] = static_cast<T>(static_cast<long long>(two.v[0])) * unit;
    pack.v[k + 1] = static_cast<T>(static_cast<long long>(two.v[1])) * unit;
  }
  return pack;
}

template <class T, class From>
__global__ void __launch_bounds__(kThreads) dense_crf_blur(Vertices v, int axis, const From* from, T* to, T unit) {
  constexpr int kWidth = kVector<T>;
  const int count = *v.count;
  const int* lower = v.lower + axis * v.corners;
  const int* upper = v.upper + axis * v.corners;
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int low = lower[i], high = upper[i];
    Pack<T, kWidth> here = vertex_of<T>(from, i, unit), around{};
    if (low >= 0) around = vertex_of<T>(from, low, unit);
    if (high >= 0) {
      const Pack<T, kWidth> other = vertex_of<T>(from, high, unit);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) around.v[k] += other.v[k];
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) here.v[k] += around.v[k] * T(0.5);
    store<kWidth>(to + i * kWidth, here);
  }
}

// message = (or +=) weight * norm * what the pixel's corners have; without norm the normalisation itself, 1 / root.
template <class T, int kCorners>
__global__ void __launch_bounds__(kThreads)
    dense_crf_slice(Vertices v, const T* __restrict__ value, const T* __restrict__ norm, T weight, int channels,
                    int64_t pixels, bool add, T* __restrict__ message) {
  constexpr int kWidth = kVector<T>;
  for (int64_t n = first_item(); n < pixels; n += item_stride()) {
    Pack<T, kWidth> sum{};
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      const int64_t at = c * v.points + n;
      const T share = v.weight[at];
      const Pack<T, kWidth> corner = load<kWidth>(value + int64_t(v.corner[at]) * kWidth);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum.v[k] += share * corner.v[k];
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (k >= channels) break;
      T& out = message[k * pixels + n];
      out = norm ? weight * norm[n] * sum.v[k] + (add ? out : T(0)) : T(1) / root(weight * sum.v[k] + T(1e-20));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dense_crf_softmax(const T* __restrict__ unary, const T* __restrict__ message, T* __restrict__ probability,
                      int64_t items, int labels, int64_t pixels) {
  for (int64_t i = first_item(); i < items; i += item_stride()) {
    const int64_t first = i / pixels * labels * pixels + i % pixels;
    T most = -kInfinity<T>, sum = 0;
    for (int l = 0; l < labels; ++l) {
      const int64_t at = first + l * pixels;
      most = NanMax()(most, (message ? message[at] : T(0)) - unary[at]);
    }
    for (int l = 0; l < labels; ++l) {
      const int64_t at = first + l * pixels;
      const T e = exponential((message ? message[at] : T(0)) - unary[at] - most);
      probability[at] = e;
      sum += e;
    }
    for (int l = 0; l < labels; ++l) probability[first + l * pixels] /= sum;
  }
}

unsigned blocks_of(int64_t items) {
  return static_cast<unsigned>(std::min(std::max<int64_t>(ceil_div(items, kThreads), 1), kMostBlocks));
}

// Everything about one image. `memory` is the workspace.
template <class T>
class MeanField {
 public:
  MeanField(const DenseCrf& c, const DenseCrfWorkspace& space, char* memory, cudaStream_t stream)
      : c_(c), space_(space), memory_(memory), stream_(stream), pixels_(c.height * c.width) {
    int bits = 0;  // sums stay below 2^61: what a pixel gives a vertex is below 4, for its normalisation is below 3
    while ((int64_t(1) << bits) < 4 * pixels_) ++bits;
    unit_ = std::ldexp(T(1), bits - 61);
    for (int k = 0; k < 2; ++k) {
      const DenseCrfWorkspace::Part& p = space.part[k];
      lattice_[k] = {at<Key>(space.key),
                     at<int>(p.number),
                     p.slots,
                     at<int>(space.count + 256 * k),
                     at<int>(p.corner),
                     at<float>(p.weight),
                     at<int>(p.lower),
                     at<int>(p.upper),
                     p.points,
                     p.corners};
      norm_[k] = at<T>(p.norm);
      weight_[k] = k ? c.bilateral_weight : c.gaussian_weight;
    }
  }

  template <int d>
  void build(const uint8_t* image, const LatticeShape<d>& shape) {
    const Vertices& v = lattice_[d == 5];
    const Features from{image, static_cast<int>(c_.width), pixels_, d == 5 ? c_.bilateral_sxy : c_.gaussian_sxy,
                        c_.bilateral_srgb};
    clear(v.key, v.slots * sizeof(Key), 0xffffffffu);
    clear(v.count, sizeof(int), 0);
    ADVCAM_LAUNCH(dense_crf_insert<d>, blocks_of(v.points), kThreads, stream_, v, from, shape);
    ADVCAM_LAUNCH(dense_crf_number, blocks_of(v.slots), kThreads, stream_, v);
    ADVCAM_LAUNCH(dense_crf_corners, blocks_of(v.corners), kThreads, stream_, v);
    ADVCAM_LAUNCH(dense_crf_link<d>, blocks_of(v.slots * (d + 1)), kThreads, stream_, v, shape);
    const T* none = nullptr;
    filter<d + 1>(none, none, T(1), 1, false, norm_[d == 5]);
  }

  void run(const T* unary, T* probability) {
    T* message = at<T>(space_.message);
    const int64_t channels = c_.sets * c_.labels;
    const bool kernels = weight_[0] != 0 || weight_[1] != 0;
    softmax(unary, nullptr, probability);
    for (int64_t step = 0; kernels && step < c_.steps; ++step) {
      for (int64_t k = 0; k < channels; k += kVector<T>) {
        const int count = static_cast<int>(std::min<int64_t>(channels - k, kVector<T>));
        const T* from = probability + k * pixels_;
        if (weight_[0] != 0) filter<3>(from, norm_[0], weight_[0], count, false, message + k * pixels_);
        if (weight_[1] != 0) filter<6>(from, norm_[1], weight_[1], count, weight_[0] != 0, message + k * pixels_);
      }
      softmax(unary, message, probability);
    }
  }

 private:
  const DenseCrf& c_;
  const DenseCrfWorkspace& space_;
  char* memory_;
  cudaStream_t stream_;
  int64_t pixels_;
  T unit_, weight_[2];
  Vertices lattice_[2];
  T* norm_[2];

  template <class U>
  U* at(int64_t offset) const {
    return reinterpret_cast<U*>(memory_ + offset);
  }

  void clear(void* memory, int64_t bytes, unsigned value) {
    const int64_t words = ceil_div(bytes, 16);  // parts of the workspace end at multiples of 256
    ADVCAM_LAUNCH(dense_crf_clear, blocks_of(words), kThreads, stream_, static_cast<uint4*>(memory), words, value);
  }

  void softmax(const T* unary, const T* message, T* probability) {
    const int64_t items = c_.sets * pixels_;
    ADVCAM_LAUNCH(dense_crf_softmax<T>, blocks_of(items), kThreads, stream_, unary, message, probability, items,
                  static_cast<int>(c_.labels), pixels_);
  }

  template <int kCorners>
  void filter(const T* from, const T* norm, T weight, int channels, bool add, T* message) {
    const Vertices& v = lattice_[kCorners == 6];
    Sum* sum = at<Sum>(space_.sum);
    T* value = at<T>(space_.value);
    T* other = at<T>(space_.sum);  // the sums are read by the first axis alone
    clear(sum, v.corners * kVector<T> * int64_t(sizeof(Sum)), 0);
    ADVCAM_LAUNCH(dense_crf_splat<T>, blocks_of(pixels_ * kCorners), kThreads, stream_, v, sum, from, norm, channels,
                  pixels_, T(1) / unit_);
    const Sum* sums = sum;
    ADVCAM_LAUNCH((dense_crf_blur<T, Sum>), blocks_of(v.corners), kThreads, stream_, v, 0, sums, value, unit_);
    for (int axis = 1; axis < kCorners; ++axis) {
      const T* before = value;
      ADVCAM_LAUNCH((dense_crf_blur<T, T>), blocks_of(v.corners), kThreads, stream_, v, axis, before, other, unit_);
      std::swap(value, other);
    }
    const T* blurred = value;
    const T alpha = weight / (T(1) + T(1) / T(1 << (kCorners - 1)));
    ADVCAM_LAUNCH((dense_crf_slice<T, kCorners>), blocks_of(pixels_), kThreads, stream_, v, blurred, norm, alpha,
                  channels, pixels_, add, message);
  }
};

template <class T>
void run(const DenseCrf& c, char* memory, cudaStream_t stream) {
  const DenseCrfWorkspace space(c);
  const int64_t pixels = c.height * c.width, size = c.sets * c.labels * pixels;
  MeanField<T> field(c, space, memory, stream);
  if (c.gaussian_weight != 0) field.template build<2>(nullptr, gaussian_shape(c));
  for (int64_t b = 0; b < c.batch; ++b) {
    if (c.bilateral_weight != 0) field.template build<5>(c.images + b * pixels * 3, bilateral_shape(c));
    field.run(static_cast<const T*>(c.unary) + b * size, static_cast<T*>(c.probability) + b * size);
  }
}
}  // namespace

const char* dense_crf(const DenseCrf& c, void* workspace, int device, void* stream) {
  if (c.batch * c.sets * c.height * c.width == 0) return nullptr;
  if (const char* error = lattice_error(c)) return error;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  auto launch = c.dtype == DType::f64 ? run<double> : run<float>;
  launch(c, static_cast<char*>(workspace), static_cast<cudaStream_t>(stream));
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
