// advcam_fast._C: checks what it is given, picks the device, releases the GIL, calls a launcher.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "cam_accumulate.h"
#include "climb_loss.h"
#include "climb_step.h"
#include "dense_crf.h"
#include "dispatch.h"
#include "permutohedral.h"
#include "tensor_view.h"

namespace advcam {
void bind_network(py::module_& m);   // bindings_network.cpp
void bind_walk(py::module_& m);      // bindings_walk.cpp
void bind_evaluate(py::module_& m);  // bindings_evaluate.cpp

namespace {
void climb_step(py::handle image_, py::handle gradient_, py::handle gradient_max_, double step,
                py::handle network_input_, py::handle workspace, Stream stream, int threads) {
  TensorView image("image", image_), gradient("gradient", gradient_), largest("gradient_max", gradient_max_);
  const DType t = image.dtype({DType::f32, DType::f64});
  const DType g =
      t == DType::f64 ? gradient.dtype({DType::f64}) : gradient.dtype({DType::f32, DType::bf16, DType::f16});
  image.writable(), image.dense_items();
  gradient.same_layout_as(image);
  largest.dtype({t}), largest.writable(), largest.contiguous(), largest.on_device_of(image);
  const int64_t groups = largest.numel;
  if (largest.ndim != 1 || image.ndim < 1 || (groups ? image.shape[0] % groups : image.shape[0]) != 0)
    throw py::value_error("gradient_max: shape " + largest.shape_text() + " does not divide the " +
                          std::to_string(image.ndim ? image.shape[0] : 0) + " items of image into groups");
  std::optional<TensorView> network;
  DType o = DType::none;
  if (!network_input_.is_none()) {
    network.emplace("network_input", network_input_);
    o = network->dtype({DType::bf16, DType::f16});
    if (t == DType::f64) throw py::type_error("network_input: a float64 image is its own network input, give None");
    network->writable(), network->same_layout_as(image);
  }
  if (groups == 0) return;
  const ClimbStep call{
      image.data,           gradient.data, network ? network->data : nullptr, largest.data, t, g, o, groups,
      image.numel / groups, step};
  dispatch(call, image, workspace, groups * kClimbStepParts * kClimbStepFields, stream, threads, &cpu::climb_step,
           CUDA_LAUNCHER(climb_step));
}

// Strides of class and pixel in a [B, C, h, w] tensor that is contiguous or channels-last.
void logit_strides(const TensorView& z, ClimbLoss* call) {
  const int64_t pixels = z.shape[2] * z.shape[3], classes = z.shape[1];
  call->stride_item = classes * pixels;
  if (z.dense({0, 1, 2, 3})) {
    call->stride_class = pixels, call->stride_pixel = 1;
  } else if (z.dense({0, 2, 3, 1})) {
    call->stride_class = 1, call->stride_pixel = classes;
  } else {
    throw py::value_error("logit_map: neither contiguous nor channels-last; call .contiguous() first");
  }
}

void check_targets(const TensorView& target, int64_t classes) {
  for (int64_t i = 0; i < target.numel; ++i) {
    const int64_t t = static_cast<const int64_t*>(target.data)[i];
    if (t < 0 || t >= classes)
      throw py::index_error("target: class " + std::to_string(t) + " came, wanted is 0 to " +
                            std::to_string(classes - 1));
  }
}

void climb_loss(py::handle logit_map_, py::handle target_, py::handle weight_, py::handle positive_,
                py::handle initial_, double suppression, double mask_threshold, bool rectify, int members,
                py::handle objective_, py::handle gradient_, py::handle pair_map_, py::handle mask_, py::handle score_,
                Stream stream, int threads) {
  if (members != 1 && members != 2)
    throw py::value_error("members: " + std::to_string(members) + " came, wanted is 1 or 2");
  TensorView z("logit_map", logit_map_), target("target", target_), weight("weight", weight_),
      positive("positive", positive_);
  TensorView objective("objective", objective_), pair_map("pair_map", pair_map_), mask("mask", mask_),
      score("score", score_);
  ClimbLoss call{};
  call.dtype = z.dtype({DType::f32, DType::f64, DType::bf16, DType::f16});
  if (z.ndim != 4 || z.shape[0] % members)
    throw py::value_error("logit_map: shape " + z.shape_text() + " came, wanted is (groups * " +
                          std::to_string(members) + ", classes, height, width)");
  const DType acc = call.dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t groups = z.shape[0] / members, classes = z.shape[1], h = z.shape[2], w = z.shape[3];
  logit_strides(z, &call);
  target.integer64(), mask.byte();
  target.has_shape({groups}), weight.has_shape({groups, classes}), positive.has_shape({groups});
  objective.has_shape({groups}), pair_map.has_shape({groups, h, w}), mask.has_shape({groups, h, w}),
      score.has_shape({z.shape[0], classes});
  for (const TensorView* v : {&weight, &positive, &objective, &pair_map, &score}) v->dtype({acc});
  for (const TensorView* v : {&target, &weight, &positive, &objective, &pair_map, &score, &mask})
    v->contiguous(), v->on_device_of(z);
  for (const TensorView* v : {&objective, &pair_map, &score, &mask}) v->writable();
  std::optional<TensorView> initial, gradient;
  if (!initial_.is_none()) {
    initial.emplace("initial_map", initial_);
    initial->dtype({acc}), initial->has_shape({groups, h, w}), initial->contiguous(), initial->on_device_of(z);
  }
  if (!gradient_.is_none()) {
    gradient.emplace("gradient", gradient_);
    gradient->dtype({call.dtype}), gradient->same_layout_as(z), gradient->writable();
  }
  if (!z.on_cuda()) check_targets(target, classes);
  if (groups == 0 || z.numel == 0) return;
  call.logit_map = z.data, call.target = static_cast<const int64_t*>(target.data), call.weight = weight.data;
  call.positive = positive.data, call.initial_map = initial ? initial->data : nullptr, call.pair_map = pair_map.data;
  call.mask = static_cast<uint8_t*>(mask.data), call.score = score.data, call.objective = objective.data;
  call.gradient = gradient ? gradient->data : nullptr;
  call.groups = groups, call.classes = classes, call.height = h, call.width = w, call.members = members;
  call.suppression = suppression, call.mask_threshold = mask_threshold, call.rectify = rectify;
  dispatch(call, z, py::none(), 0, stream, threads, &cpu::climb_loss, CUDA_LAUNCHER(climb_loss));
}

void cam_accumulate(const std::vector<py::object>& maps, py::handle total_, int64_t rows, int64_t columns,
                    bool normalise, py::handle workspace, Stream stream, int threads) {
  TensorView total("total", total_);
  CamAccumulate call{};
  call.dtype = total.dtype({DType::f32, DType::f64});
  if (total.ndim != 3)
    throw py::value_error("total: shape " + total.shape_text() + " came, wanted is (count, height, width)");
  total.writable(), total.contiguous();
  if (maps.size() > kMaxScales)
    throw py::value_error("maps: " + std::to_string(maps.size()) + " came, wanted are at most 8");
  if (rows < total.shape[1] || columns < total.shape[2])
    throw py::value_error("size: (" + std::to_string(rows) + ", " + std::to_string(columns) +
                          ") came, smaller than total's " + total.shape_text());
  std::vector<std::unique_ptr<TensorView>> views;
  for (const py::object& m : maps) {
    views.push_back(std::make_unique<TensorView>("maps", m));
    const TensorView& v = *views.back();
    v.dtype({call.dtype}), v.contiguous(), v.on_device_of(total);
    if (v.ndim != 3 || v.shape[0] != total.shape[0] || (v.numel == 0 && total.numel != 0))
      throw py::value_error("maps: shape " + v.shape_text() + " came, wanted is (" + std::to_string(total.shape[0]) +
                            ", height, width), not empty");
    call.map[call.scales] = v.data, call.map_height[call.scales] = v.shape[1], call.map_width[call.scales] = v.shape[2];
    ++call.scales;
  }
  if (total.numel == 0) return;
  call.total = total.data, call.count = total.shape[0], call.height = total.shape[1], call.width = total.shape[2];
  call.rows = rows, call.columns = columns, call.normalise = normalise;
  dispatch(call, total, workspace, call.count * cuda::kCamAccumulateParts, stream, threads, &cpu::cam_accumulate,
           CUDA_LAUNCHER(cam_accumulate));
}

void dense_crf(py::handle images_, py::handle unary_, py::handle probability_, int64_t steps,
               std::array<float, 2> gaussian, std::array<float, 3> bilateral, py::handle workspace, Stream stream,
               int threads) {
  TensorView images("images", images_), unary("unary", unary_), probability("probability", probability_);
  DenseCrf call{};
  call.dtype = unary.dtype({DType::f32, DType::f64});
  images.byte();
  if (images.ndim != 4 || images.shape[3] != 3)
    throw py::value_error("images: shape " + images.shape_text() + " came, wanted is (batch, height, width, 3)");
  const int64_t batch = images.shape[0], h = images.shape[1], w = images.shape[2];
  if (unary.ndim != 5 || unary.shape[2] < 1)
    throw py::value_error("unary: shape " + unary.shape_text() + " came, wanted is (batch, sets, labels >= 1, h, w)");
  unary.has_shape({batch, unary.shape[1], unary.shape[2], h, w}), unary.on_device_of(images);
  probability.same_layout_as(unary), probability.dtype({call.dtype}), probability.writable();
  for (const TensorView* v : {&images, &unary}) v->contiguous();
  if (unary.numel == 0) return;
  call.images = static_cast<const uint8_t*>(images.data), call.unary = unary.data;
  call.probability = probability.data, call.batch = batch, call.sets = unary.shape[1], call.labels = unary.shape[2];
  call.height = h, call.width = w, call.steps = steps;
  call.gaussian_sxy = gaussian[0], call.gaussian_weight = gaussian[1];
  call.bilateral_sxy = bilateral[0], call.bilateral_srgb = bilateral[1], call.bilateral_weight = bilateral[2];
  if (const char* error = lattice_error(call)) throw py::value_error(error);
  dispatch(call, images, workspace, cuda::DenseCrfWorkspace(call).bytes, stream, threads, &cpu::dense_crf,
           CUDA_LAUNCHER(dense_crf));
}
}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  m.doc() = "advcam_fast's kernels for any DLPack producer, zero-copy. The public face is advcam_fast.ops.";
  m.attr("cuda_compiled") = kCuda;
  m.attr("climb_step_workspace") = kClimbStepParts * kClimbStepFields;
  m.attr("cam_accumulate_workspace") = cuda::kCamAccumulateParts;
  const py::none none;
  m.def("climb_step", &climb_step,
        "The kernel of advcam_fast.ops.climb_step, into arrays that are given; see csrc/climb_step.h.", arg("image"),
        arg("gradient"), arg("gradient_max"), arg("step"), arg("network_input") = none, arg("workspace") = none,
        arg("stream") = none, arg("num_threads") = 0);
  m.def("climb_loss", &climb_loss,
        "The kernel of advcam_fast.ops.climb_loss, into arrays that are given; see csrc/climb_loss.h.",
        arg("logit_map"), arg("target"), arg("weight"), arg("positive"), arg("initial_map"), arg("suppression"),
        arg("mask_threshold"), arg("rectify"), arg("members"), arg("objective"), arg("gradient"), arg("pair_map"),
        arg("mask"), arg("score"), arg("stream") = none, arg("num_threads") = 0);
  m.def("cam_accumulate", &cam_accumulate,
        "The kernel of advcam_fast.ops.cam_accumulate, into arrays that are given; see csrc/cam_accumulate.h.",
        arg("maps"), arg("total"), arg("rows"), arg("columns"), arg("normalise"), arg("workspace") = none,
        arg("stream") = none, arg("num_threads") = 0);
  bind_network(m);
  bind_walk(m);
  bind_evaluate(m);
  m.def("dense_crf_workspace", [](int64_t sets, int64_t labels, int64_t height, int64_t width, bool f64) {
    DenseCrf call{};
    call.sets = sets, call.labels = labels, call.height = height, call.width = width;
    call.dtype = f64 ? DType::f64 : DType::f32, call.gaussian_weight = call.bilateral_weight = 1;
    return cuda::DenseCrfWorkspace(call).bytes;
  });
  m.def("dense_crf", &dense_crf, "The kernel of advcam_fast.ops.dense_crf, into arrays; see csrc/dense_crf.h.",
        arg("images"), arg("unary"), arg("probability"), arg("steps"), arg("gaussian"), arg("bilateral"),
        arg("workspace") = none, arg("stream") = none, arg("num_threads") = 0);
}
}  // namespace advcam
