// sanitizer_driver kernels | few | BUG: the kernels over many shapes, or a few small ones (ThreadSanitizer is slow), or
// one planted bug. Every tensor is a heap block of its exact size, so that a step over its end is seen. Exit code 3: an
// error text; a sanitizer's own otherwise.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cam_accumulate.h"
#include "centroid_walk.h"
#include "climb_loss.h"
#include "climb_step.h"
#include "component_boxes.h"
#include "dense_crf.h"
#include "masked_relu.h"
#include "max_pool.h"
#include "planted_bugs.h"
#include "random_walk.h"
#include "threshold_sweep.h"

namespace {

using advcam::DType;
using Bytes = std::vector<unsigned char>;

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::none:
      return 0;
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    default:
      return 2;
  }
}

// Waves of both signs in any float dtype: bf16 and f16 through the bits of a few exact values.
Bytes waves(DType dtype, int64_t count) {
  static constexpr uint16_t kBfloat16[] = {0x3f80, 0xbf80, 0x3f00, 0xc000}, kHalf[] = {0x3c00, 0xbc00, 0x3800, 0xc000};
  Bytes bytes(count * size_of(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const double wave = std::sin(0.7 * static_cast<double>(i)) + 0.1;
    const float single = static_cast<float>(wave);
    const void* value = dtype == DType::f64    ? static_cast<const void*>(&wave)
                        : dtype == DType::f32  ? static_cast<const void*>(&single)
                        : dtype == DType::bf16 ? &kBfloat16[i % 4]
                                               : &kHalf[i % 4];
    std::memcpy(bytes.data() + i * size_of(dtype), value, size_of(dtype));
  }
  return bytes;
}

bool succeeded(const char* error) {
  if (error) std::printf("error: %s\n", error);
  return !error;
}

// Elements between the beginning of a heap block, which is aligned, and that of the tensor.
struct Shift {
  int64_t first = 0;   // image, logit map, total or x
  int64_t second = 0;  // gradient, map or residual
  int64_t third = 0;   // network's input or bias
};

bool step(int64_t groups, int64_t n, DType image_dtype, DType gradient_dtype, DType network_dtype, Shift shift = {}) {
  Bytes image = waves(image_dtype, groups * n + shift.first),
        gradient = waves(gradient_dtype, groups * n + shift.second);
  Bytes network((groups * n + shift.third) * size_of(network_dtype)), largest(groups * size_of(image_dtype));
  Bytes workspace(groups * advcam::kClimbStepParts * advcam::kClimbStepFields * size_of(image_dtype), 0xff);
  advcam::ClimbStep arguments{};
  arguments.image = image.data() + shift.first * size_of(image_dtype);
  arguments.gradient = gradient.data() + shift.second * size_of(gradient_dtype);
  arguments.network_input =
      network_dtype == DType::none ? nullptr : network.data() + shift.third * size_of(network_dtype);
  arguments.gradient_max = largest.data();
  arguments.image_dtype = image_dtype;
  arguments.gradient_dtype = gradient_dtype;
  arguments.network_dtype = network_dtype;
  arguments.groups = groups;
  arguments.n = n;
  arguments.step = 0.08;
  return succeeded(advcam::cuda::climb_step(arguments, workspace.data(), 0, nullptr));
}

bool loss(int64_t groups, int members, int64_t classes, int64_t height, int64_t width, DType dtype, bool channels_last,
          Shift shift = {}) {
  const DType acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t pixels = height * width, items = groups * members;
  Bytes logit_map = waves(dtype, items * classes * pixels + shift.first);
  Bytes gradient((items * classes * pixels + shift.second) * size_of(dtype));
  Bytes weight = waves(acc, groups * classes), positive = waves(acc, groups), initial = waves(acc, groups * pixels);
  Bytes pair_map(initial.size()), score(items * classes * size_of(acc)), objective(groups * size_of(acc));
  Bytes mask(groups * pixels);
  const std::vector<int64_t> target(groups, classes - 1);
  advcam::ClimbLoss arguments{};
  arguments.logit_map = logit_map.data() + shift.first * size_of(dtype);
  arguments.target = target.data();
  arguments.weight = weight.data();
  arguments.positive = positive.data();
  arguments.initial_map = initial.data();
  arguments.pair_map = pair_map.data();
  arguments.mask = mask.data();
  arguments.score = score.data();
  arguments.objective = objective.data();
  arguments.gradient = gradient.data() + shift.second * size_of(dtype);
  arguments.dtype = dtype;
  arguments.groups = groups;
  arguments.classes = classes;
  arguments.height = height;
  arguments.width = width;
  arguments.members = members;
  arguments.stride_item = classes * pixels;
  arguments.stride_class = channels_last ? 1 : pixels;
  arguments.stride_pixel = channels_last ? classes : 1;
  arguments.suppression = 7;
  arguments.mask_threshold = 0.5;
  arguments.rectify = true;
  return succeeded(advcam::cuda::climb_loss(arguments, nullptr, 0, nullptr));
}

bool accumulate(int64_t count, int64_t height, int64_t width, int64_t rows, int64_t columns, DType dtype,
                Shift shift = {}) {
  Bytes total = waves(dtype, count * height * width + shift.first),
        workspace(count * advcam::cuda::kCamAccumulateParts * 8, 0xff);
  const Bytes same = waves(dtype, count * rows * columns + shift.second), small = waves(dtype, count * 2 * 3);
  advcam::CamAccumulate arguments{};
  arguments.map[0] = same.data() + shift.second * size_of(dtype);
  arguments.map_height[0] = rows;
  arguments.map_width[0] = columns;
  arguments.map[1] = small.data();
  arguments.map_height[1] = 2;
  arguments.map_width[1] = 3;
  arguments.scales = 2;
  arguments.total = total.data() + shift.first * size_of(dtype);
  arguments.count = count;
  arguments.height = height;
  arguments.width = width;
  arguments.rows = rows;
  arguments.columns = columns;
  arguments.dtype = dtype;
  arguments.normalise = true;
  return succeeded(advcam::cuda::cam_accumulate(arguments, workspace.data(), 0, nullptr));
}

// With bias, residual, valid and bits, or with none of them; then backward, which reads the bits.
bool relu(int64_t rows, int64_t channels, DType dtype, bool whole, Shift shift = {}) {
  const DType acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t n = rows * channels, size = size_of(dtype);
  Bytes x = waves(dtype, n + shift.first), residual = waves(dtype, n + shift.second);
  Bytes bias = waves(acc, channels + shift.third), valid(rows), bits((n + 7) / 8);
  for (int64_t row = 0; row < rows; ++row) valid[row] = row % 3 != 1;
  advcam::MaskedRelu arguments{};
  arguments.x = x.data() + shift.first * size;
  arguments.bias = whole ? bias.data() + shift.third * size_of(acc) : nullptr;
  arguments.residual = whole ? residual.data() + shift.second * size : nullptr;
  arguments.valid = whole ? valid.data() : nullptr;
  arguments.bits = whole ? bits.data() : nullptr;
  arguments.dtype = dtype;
  arguments.rows = rows;
  arguments.channels = channels;
  arguments.ceiling = whole ? 0.5 : INFINITY;
  const advcam::MaskedReluBackward backward{arguments.x, bits.data(), dtype, n};
  return succeeded(advcam::cuda::masked_relu(arguments, nullptr, 0, nullptr)) &&
         succeeded(advcam::cuda::masked_relu_backward(backward, nullptr, 0, nullptr));
}

// Windows of 3 x 2 that overlap, then backward, which reads the bytes.
bool pool(int64_t height, int64_t width, int64_t channels, DType dtype, Shift shift = {}) {
  const int64_t rows = (height + 1) / 2, columns = width, size = size_of(dtype);
  const Bytes x = waves(dtype, 2 * height * width * channels + shift.first);
  Bytes y = waves(dtype, 2 * rows * columns * channels + shift.second), at(2 * rows * columns * channels),
        back(x.size());
  const advcam::Pooling pooling{2, height, width, channels, rows, columns, {3, 2}, {2, 1}, {1, 1}, {1, 2}};
  const advcam::MaxPool forward{x.data() + shift.first * size, y.data() + shift.second * size, at.data(), dtype,
                                pooling};
  const advcam::MaxPoolBackward backward{forward.y, at.data(), back.data() + shift.first * size, dtype, pooling};
  return succeeded(advcam::cuda::max_pool(forward, nullptr, 0, nullptr)) &&
         succeeded(advcam::cuda::max_pool_backward(backward, nullptr, 0, nullptr));
}

// kernels: 1 Gaussian, 2 bilateral; 4: two images.
bool crf(int64_t sets, int64_t labels, int64_t height, int64_t width, DType dtype, int kernels) {
  const int64_t batch = kernels & 4 ? 2 : 1, values = batch * sets * labels * height * width;
  const Bytes unary = waves(dtype, values);
  Bytes images(batch * height * width * 3), probability(values * size_of(dtype));
  for (size_t i = 0; i < images.size(); ++i) images[i] = i * 37 % 256;
  advcam::DenseCrf arguments{};
  arguments.images = images.data();
  arguments.unary = unary.data();
  arguments.probability = probability.data();
  arguments.dtype = dtype;
  arguments.batch = batch, arguments.sets = sets, arguments.labels = labels;
  arguments.height = height, arguments.width = width;
  arguments.steps = 1;
  arguments.gaussian_sxy = 3, arguments.gaussian_weight = kernels & 1 ? 3 : 0;
  arguments.bilateral_sxy = 50, arguments.bilateral_srgb = 5, arguments.bilateral_weight = kernels & 2 ? 10 : 0;
  Bytes workspace(advcam::cuda::DenseCrfWorkspace(arguments).bytes, 0xff);
  return succeeded(advcam::cuda::dense_crf(arguments, workspace.data(), 0, nullptr));
}

bool many_crfs() {
  bool good = true;
  const int64_t sizes[][2] = {{1, 1}, {1, 7}, {4, 4}, {9, 13}};
  for (const auto& size : sizes) {
    for (DType dtype : {DType::f32, DType::f64}) {
      good &= crf(1, 1, size[0], size[1], dtype, 3) && crf(2, 3, size[0], size[1], dtype, 7);
      for (int kernels : {0, 1, 2}) good &= crf(1, 5, size[0], size[1], dtype, kernels);
    }
  }
  return good;
}

bool many_relus() {
  bool good = true;
  const int64_t shapes[][2] = {{1, 1}, {1, 8}, {7, 3}, {5, 16}, {33, 21}, {3, 4096}, {300, 24}};
  for (const auto& shape : shapes) {
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
      for (bool whole : {false, true}) good &= relu(shape[0], shape[1], dtype, whole);
      for (Shift shift : {Shift{1, 0, 0}, Shift{0, 1, 0}, Shift{0, 0, 1}}) {
        good &= relu(shape[0], shape[1], dtype, true, shift);
      }
    }
  }
  return good;
}

bool many_pools() {
  bool good = true;
  const int64_t shapes[][3] = {{1, 1, 1}, {3, 2, 5}, {9, 7, 8}, {6, 5, 24}, {17, 20, 16}};
  for (const auto& shape : shapes) {
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
      for (Shift shift : {Shift{}, Shift{1, 0}, Shift{0, 1}}) {
        good &= pool(shape[0], shape[1], shape[2], dtype, shift);
      }
    }
  }
  return good;
}

// Over a boundary (channels 0) or over colours. Its waves are no probabilities: only memory matters here.
bool walk(int64_t batch, int64_t labels, int64_t height, int64_t width, int64_t channels, int64_t radius, int64_t steps,
          DType dtype) {
  const int64_t pixels = height * width;
  advcam::RandomWalk arguments{};
  arguments.batch = batch;
  arguments.labels = labels;
  arguments.height = height;
  arguments.width = width;
  arguments.channels = channels ? channels : 1;
  arguments.radius = radius;
  arguments.steps = steps;
  arguments.scale = 2;
  arguments.restart = steps % 2 ? 0.25 : 0;
  arguments.dtype = dtype;
  arguments.color = channels > 0;
  Bytes maps = waves(dtype, batch * labels * pixels), guide = waves(dtype, batch * arguments.channels * pixels);
  Bytes out(maps.size()), workspace(advcam::random_walk_workspace(arguments) * size_of(dtype), 0xff);
  arguments.maps = maps.data();
  arguments.guide = guide.data();
  arguments.out = out.data();
  return succeeded(advcam::cuda::random_walk(arguments, workspace.data(), 0, nullptr));
}

bool centroids(int64_t batch, int64_t height, int64_t width, int64_t steps, double threshold, DType dtype) {
  const int64_t pixels = height * width;
  Bytes displacement = waves(dtype, batch * 2 * pixels), centroids(displacement.size());
  Bytes workspace(batch * advcam::cuda::kCentroidWalkParts * pixels * 4, 0xff);
  std::vector<int64_t> labels(batch * pixels);
  advcam::CentroidWalk arguments{};
  arguments.displacement = displacement.data();
  arguments.centroids = centroids.data();
  arguments.labels = labels.data();
  arguments.batch = batch;
  arguments.height = height;
  arguments.width = width;
  arguments.steps = steps;
  arguments.threshold = threshold;
  arguments.dtype = dtype;
  return succeeded(advcam::cuda::centroid_walk(arguments, workspace.data(), 0, nullptr));
}

bool many_walks() {
  bool good = true;
  for (DType dtype : {DType::f32, DType::f64}) {
    good &= centroids(2, 1, 1, 3, 1, dtype) && centroids(1, 9, 33, 40, 0.9, dtype) &&
            centroids(3, 40, 41, 5, 0.8, dtype) && centroids(1, 1, 70, 2, 0, dtype);
    for (int64_t channels : {0, 3}) {
      good &= walk(1, 1, 1, 1, channels, 5, 3, dtype) && walk(2, 2, 9, 33, channels, 5, 2, dtype) &&
              walk(1, 3, 17, 5, channels, 3, 1, dtype) && walk(1, 5, 8, 40, channels, 7, 2, dtype) &&
              walk(2, 1, 1, 70, channels, 1, 2, dtype) && walk(1, 2, 12, 12, channels, 6, 0, dtype) &&
              walk(1, 1, 12, 12, channels, 8, 3, dtype) && walk(1, 2, 5, 6, channels, 9, 1, dtype);
    }
  }
  return good;
}

bool sweep(int64_t count, int64_t pixels, int64_t steps, int64_t num_classes, DType dtype, Shift shift = {}) {
  const int64_t sides = num_classes + 1;
  Bytes maps = waves(dtype, count * pixels + shift.first), truth(pixels), thresholds(steps * size_of(dtype));
  std::vector<int64_t> classes(count, num_classes - 1), confusion(steps * sides * sides), faults(2);
  for (int64_t i = 0; i < pixels; ++i) truth[i] = i % 7 ? i % sides : 255 - i % 2;
  advcam::ThresholdSweep arguments{};
  arguments.maps = maps.data() + shift.first * size_of(dtype);
  arguments.classes = classes.data();
  arguments.truth = truth.data();
  arguments.thresholds = thresholds.data();
  arguments.confusion = confusion.data();
  arguments.faults = faults.data();
  arguments.count = count, arguments.pixels = pixels, arguments.steps = steps, arguments.num_classes = num_classes;
  arguments.dtype = dtype;
  Bytes workspace(advcam::threshold_sweep_workspace(arguments) * 8, 0xff);
  return succeeded(advcam::cuda::threshold_sweep(arguments, workspace.data(), 0, nullptr));
}

bool outlines(int64_t batch, int64_t height, int64_t width, std::vector<int64_t> levels, int64_t capacity) {
  Bytes maps(batch * height * width);
  for (size_t i = 0; i < maps.size(); ++i) maps[i] = i * i * 37 % 251;
  const auto steps = static_cast<int64_t>(levels.size());
  std::vector<int64_t> boxes(capacity * 4), offsets(batch * steps + 1);
  std::vector<double> areas(capacity);
  advcam::ComponentBoxes arguments{maps.data(), levels.data(), boxes.data(), areas.data(), offsets.data(),
                                   batch,       height,        width,        steps,        capacity};
  Bytes workspace(advcam::component_boxes_workspace(arguments) * 4, 0xff);
  return succeeded(advcam::cuda::component_boxes(arguments, workspace.data(), 0, nullptr));
}

bool many_evaluations() {
  bool good = outlines(2, 1, 1, {0, 255}, 9) && outlines(1, 9, 33, {0, 100, 200}, 500) &&
              outlines(2, 30, 7, {125}, 20) && outlines(1, 1, 40, {50}, 0) && outlines(1, 4, 4, {}, 2);
  for (DType dtype : {DType::f32, DType::f64, DType::f16}) {
    good &= sweep(0, 5, 3, 2, dtype) && sweep(1, 1, 1, 1, dtype) && sweep(2, 2048, 20, 20, dtype) &&
            sweep(3, 999, 300, 20, dtype) && sweep(2, 64, 2, 3, dtype, Shift{1}) && sweep(1, 16, 0, 0, dtype);
  }
  return good;
}

bool many_shapes() {
  bool good = true;
  for (int64_t n : {1, 3, 1023, 4096, 4100, 9001}) {
    for (DType gradient : {DType::f32, DType::bf16, DType::f16}) {
      for (DType network : {DType::none, DType::bf16, DType::f16}) good &= step(2, n, DType::f32, gradient, network);
    }
    good &= step(2, n, DType::f64, DType::f64, DType::none);
  }
  const int64_t maps[][3] = {{1, 1, 1}, {5, 3, 5}, {8, 4, 6}, {21, 7, 9}, {2, 50, 70}, {136, 6, 4}};
  for (const auto& map : maps) {
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
      for (int members : {1, 2}) {
        for (bool last : {false, true}) good &= loss(2, members, map[0], map[1], map[2], dtype, last);
      }
    }
  }
  for (DType dtype : {DType::f32, DType::f64}) {
    good &= accumulate(2, 1, 1, 1, 1, dtype) && accumulate(2, 7, 9, 7, 9, dtype) && accumulate(2, 8, 12, 8, 12, dtype);
    for (Shift shift : {Shift{1, 0}, Shift{0, 1}}) {
      good &= step(2, 4096, dtype, dtype, DType::none, shift) && accumulate(2, 8, 12, 8, 12, dtype, shift) &&
              loss(2, 2, 8, 4, 6, dtype, false, shift) && loss(2, 2, 8, 4, 6, dtype, true, shift);
    }
    good &= accumulate(2, 15, 17, 16, 32, dtype) && accumulate(1, 40, 64, 48, 64, dtype);
  }
  return good && step(2, 4096, DType::f32, DType::f32, DType::bf16, Shift{0, 0, 1}) && many_relus() && many_pools() &&
         many_walks() && many_crfs() && many_evaluations();
}

// Every kernel in its vector and its scalar variant.
bool few_shapes() {
  return step(2, 4100, DType::f32, DType::bf16, DType::f16) && step(1, 33, DType::f64, DType::f64, DType::none) &&
         loss(1, 2, 8, 4, 6, DType::f32, false) && loss(1, 2, 3, 19, 27, DType::f32, false) &&
         loss(1, 2, 8, 4, 6, DType::f32, true) && loss(1, 1, 5, 3, 5, DType::bf16, true) &&
         accumulate(1, 8, 12, 8, 12, DType::f32) && accumulate(1, 7, 9, 8, 10, DType::f32) &&
         relu(130, 16, DType::f32, true) && relu(13, 21, DType::bf16, true) &&
         relu(13, 21, DType::f64, true, Shift{1, 0, 0}) && pool(7, 6, 8, DType::f32) && pool(5, 3, 5, DType::bf16) &&
         walk(1, 2, 9, 34, 0, 5, 2, DType::f32) && walk(1, 1, 5, 6, 3, 7, 1, DType::f64) &&
         centroids(1, 7, 9, 4, 0.9, DType::f32) && crf(1, 3, 3, 5, DType::f32, 3) && crf(2, 2, 3, 5, DType::f64, 3) &&
         sweep(2, 64, 3, 2, DType::f32) && sweep(1, 33, 300, 20, DType::f64) && outlines(1, 5, 6, {100}, 9);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count == 2 ? arguments[1] : "";
  if (what == "kernels" || what == "few") {
    if (!(what == "kernels" ? many_shapes() : few_shapes())) return 3;
  } else if (!succeeded(run_planted_bug(what))) {
    return 3;
  }
  std::printf("finished\n");
  return 0;
}
