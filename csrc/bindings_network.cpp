// The part of advcam_fast._C that a network's passes are made of: masked_relu, max_pool and, on CPUs alone,
// pointwise, image_gradient and linear_head; elsewhere a library's own convolutions and product are used for these.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "dispatch.h"
#include "image_gradient.h"
#include "linear_head.h"
#include "masked_relu.h"
#include "max_pool.h"
#include "pointwise.h"

namespace advcam {
namespace {
// [rows, channels] of a dense [B, C, H, W] (channels-last) or [rows, channels] tensor.
int64_t channels_of(const TensorView& x) {
  if (x.ndim == 4 && x.dense({0, 2, 3, 1})) return x.shape[1];
  if (x.ndim == 2 && x.dense({0, 1})) return x.shape[1];
  throw py::value_error(std::string(x.name) + ": shape " + x.shape_text() +
                        " came, wanted is a channels-last (B, C, H, W) or a contiguous (rows, channels)");
}

void masked_relu(py::handle x_, py::handle bias_, py::handle residual_, double ceiling, py::handle valid_,
                 py::handle bits_, Stream stream, int threads) {
  TensorView x("x", x_);
  MaskedRelu call{};
  call.dtype = x.dtype({DType::f32, DType::f64, DType::bf16, DType::f16});
  x.writable();
  call.channels = channels_of(x), call.ceiling = ceiling;
  call.rows = x.ndim == 2 ? x.shape[0] : x.shape[0] * x.shape[2] * x.shape[3];
  if (!(ceiling > 0)) throw py::value_error("ceiling: " + std::to_string(ceiling) + " came, wanted is a number > 0");
  std::optional<TensorView> bias, residual, valid, bits;
  if (!bias_.is_none()) {
    bias.emplace("bias", bias_);
    bias->dtype({call.dtype == DType::f64 ? DType::f64 : DType::f32}), bias->has_shape({call.channels});
    bias->contiguous(), bias->on_device_of(x);
  }
  if (!residual_.is_none()) {
    residual.emplace("residual", residual_);
    residual->dtype({call.dtype}), residual->same_layout_as(x);
  }
  if (!valid_.is_none()) {
    valid.emplace("valid", valid_);
    valid->byte(), valid->contiguous(), valid->on_device_of(x);
    if (valid->numel != call.rows)
      throw py::value_error("valid: " + std::to_string(valid->numel) + " elements came, wanted are " +
                            std::to_string(call.rows));
  }
  if (!bits_.is_none()) {
    bits.emplace("bits", bits_);
    bits->byte(), bits->contiguous(), bits->writable(), bits->on_device_of(x), bits->has_shape({(x.numel + 7) / 8});
  }
  if (x.numel == 0) return;
  call.x = x.data, call.bias = bias ? bias->data : nullptr, call.residual = residual ? residual->data : nullptr;
  call.valid = valid ? static_cast<const uint8_t*>(valid->data) : nullptr;
  call.bits = bits ? static_cast<uint8_t*>(bits->data) : nullptr;
  dispatch(call, x, py::none(), 0, stream, threads, &cpu::masked_relu, CUDA_LAUNCHER(masked_relu));
}

void masked_relu_backward(py::handle gradient_, py::handle bits_, Stream stream, int threads) {
  TensorView gradient("gradient", gradient_), bits("bits", bits_);
  const DType t = gradient.dtype({DType::f32, DType::f64, DType::bf16, DType::f16});
  gradient.writable(), channels_of(gradient);
  bits.byte(), bits.contiguous(), bits.on_device_of(gradient), bits.has_shape({(gradient.numel + 7) / 8});
  if (gradient.numel == 0) return;
  const MaskedReluBackward call{gradient.data, static_cast<const uint8_t*>(bits.data), t, gradient.numel};
  dispatch(call, gradient, py::none(), 0, stream, threads, &cpu::masked_relu_backward,
           CUDA_LAUNCHER(masked_relu_backward));
}

using Sides = std::array<int64_t, 2>;  // vertical, horizontal

// x: what the windows pass over; y: one element for each window. Both channels-last.
Pooling pooling_of(const TensorView& x, const TensorView& y, Sides kernel, Sides stride, Sides padding,
                   Sides dilation) {
  for (const TensorView* v : {&x, &y}) {
    if (v->ndim != 4)
      throw py::value_error(std::string(v->name) + ": shape " + v->shape_text() +
                            " came, wanted is a channels-last (B, C, H, W)");
    channels_of(*v);
  }
  y.has_shape({x.shape[0], x.shape[1], y.shape[2], y.shape[3]}), y.on_device_of(x);
  Pooling p{x.shape[0], x.shape[2], x.shape[3], x.shape[1], y.shape[2], y.shape[3], {}, {}, {}, {}};
  for (int side : {0, 1}) {
    p.kernel[side] = kernel[side], p.stride[side] = stride[side];
    p.padding[side] = padding[side], p.dilation[side] = dilation[side];
    if (kernel[side] < 1 || stride[side] < 1 || padding[side] < 0 || dilation[side] < 1)
      throw py::value_error("kernel, stride, dilation: wanted are 1 or more, and padding 0 or more");
  }
  if (kernel[0] * kernel[1] > 256)
    throw py::value_error("kernel: " + std::to_string(kernel[0]) + " x " + std::to_string(kernel[1]) +
                          " came, wanted are at most 256 elements");
  return p;
}

void max_pool(py::handle x_, py::handle y_, py::handle at_, Sides kernel, Sides stride, Sides padding, Sides dilation,
              Stream stream, int threads) {
  TensorView x("x", x_), y("y", y_);
  MaxPool call{};
  call.dtype = x.dtype({DType::f32, DType::f64, DType::bf16, DType::f16});
  y.dtype({call.dtype}), y.writable();
  call.pooling = pooling_of(x, y, kernel, stride, padding, dilation);
  std::optional<TensorView> at;
  if (!at_.is_none()) at.emplace("at", at_), at->byte(), at->same_layout_as(y), at->writable();
  if (y.numel == 0) return;
  call.x = x.data, call.y = y.data, call.at = at ? static_cast<uint8_t*>(at->data) : nullptr;
  dispatch(call, x, py::none(), 0, stream, threads, &cpu::max_pool, CUDA_LAUNCHER(max_pool));
}

void max_pool_backward(py::handle gradient_, py::handle at_, py::handle x_gradient_, Sides kernel, Sides stride,
                       Sides padding, Sides dilation, Stream stream, int threads) {
  TensorView gradient("gradient", gradient_), at("at", at_), x_gradient("x_gradient", x_gradient_);
  MaxPoolBackward call{};
  call.dtype = gradient.dtype({DType::f32, DType::f64, DType::bf16, DType::f16});
  x_gradient.dtype({call.dtype}), x_gradient.writable();
  call.pooling = pooling_of(x_gradient, gradient, kernel, stride, padding, dilation);
  at.byte(), at.same_layout_as(gradient);
  if (x_gradient.numel == 0) return;
  call.gradient = gradient.data, call.at = static_cast<const uint8_t*>(at.data), call.x_gradient = x_gradient.data;
  dispatch(call, gradient, py::none(), 0, stream, threads, &cpu::max_pool_backward, CUDA_LAUNCHER(max_pool_backward));
}

// The features' gradient, or they themselves: [B, K, h, w], channels-last; z or its gradient [B, C, h, w] alike.
template <class Call>
Call head_of(const TensorView& features, const TensorView& weight, const TensorView& logits) {
  Call c{};
  c.dtype = features.dtype({DType::f32, DType::bf16});
  weight.dtype({DType::f32}), logits.dtype({DType::f32}), weight.contiguous();
  for (const TensorView* v : {&features, &logits}) {
    if (v->on_cuda() || v->ndim != 4)
      throw py::value_error(std::string(v->name) + ": shape " + v->shape_text() +
                            " came, wanted is a channels-last (B, C, h, w) on a CPU");
    channels_of(*v), v->on_device_of(weight);
  }
  c.batch = features.shape[0], c.channels = features.shape[1], c.classes = logits.shape[1];
  c.positions = features.shape[2] * features.shape[3], c.own_weights = weight.ndim == 3;
  logits.has_shape({c.batch, c.classes, features.shape[2], features.shape[3]});
  if (c.own_weights)
    weight.has_shape({c.batch, c.classes, c.channels});
  else
    weight.has_shape({c.classes, c.channels});
  c.weight = static_cast<const float*>(weight.data);
  return c;
}

void linear_head(py::handle features_, py::handle weight_, py::handle logits_, int threads) {
  TensorView features("features", features_), weight("weight", weight_), logits("logits", logits_);
  auto call = head_of<LinearHead>(features, weight, logits);
  logits.writable();
  call.features = features.data, call.logits = static_cast<float*>(logits.data);
  dispatch(call, features, py::none(), 0, std::nullopt, threads, &cpu::linear_head, nullptr);  // refused on CUDA above
}

void linear_head_backward(py::handle gradient_, py::handle weight_, py::handle feature_gradient_, int threads) {
  TensorView gradient("gradient", gradient_), weight("weight", weight_);
  TensorView feature_gradient("feature_gradient", feature_gradient_);
  auto call = head_of<LinearHeadBackward>(feature_gradient, weight, gradient);
  feature_gradient.writable();
  call.gradient = static_cast<const float*>(gradient.data), call.feature_gradient = feature_gradient.data;
  dispatch(call, gradient, py::none(), 0, std::nullopt, threads, &cpu::linear_head_backward,
           nullptr);  // refused on CUDA above
}

void image_gradient(py::handle gradient_, py::handle weight_, py::handle x_gradient_, Sides padding, int threads) {
  TensorView gradient("gradient", gradient_), weight("weight", weight_), x("x_gradient", x_gradient_);
  ImageGradient c{};
  c.dtype = gradient.dtype({DType::f32, DType::bf16});
  weight.dtype({c.dtype}), x.dtype({c.dtype}), x.writable(), weight.contiguous();
  for (const TensorView* v : {&gradient, &x}) channels_of(*v);
  if (gradient.on_cuda() || gradient.ndim != 4 || x.ndim != 4 || x.shape[1] != 3 || weight.ndim != 4)
    throw py::value_error(
        "image_gradient: wanted are gradient (B, M, h, w), weight (M, 3, kernel) and x_gradient (B, 3, H, W), all on a "
        "CPU");
  c.batch = x.shape[0], c.height = x.shape[2], c.width = x.shape[3], c.channels = weight.shape[0];
  int64_t sides[2];
  for (int side : {0, 1}) {
    c.kernel[side] = weight.shape[2 + side], c.padding[side] = padding[side];
    const int64_t spare = x.shape[2 + side] + 2 * padding[side] - c.kernel[side];
    if (c.kernel[side] < 1 || c.kernel[side] > cpu::kImageGradientKernel || padding[side] < 0 || spare < 0)
      throw py::value_error(
          "image_gradient: wanted are a kernel of 1 to 16 by 1 to 16 and a padding >= 0 that let it lie in x");
    sides[side] = spare / 2 + 1;
  }
  c.rows = sides[0], c.columns = sides[1];
  gradient.has_shape({c.batch, c.channels, c.rows, c.columns}),
      weight.has_shape({c.channels, 3, c.kernel[0], c.kernel[1]});
  gradient.on_device_of(x), weight.on_device_of(x);
  if (x.numel == 0) return;
  c.gradient = gradient.data, c.weight = weight.data, c.x_gradient = x.data;
  dispatch(c, gradient, py::none(), 0, std::nullopt, threads, &cpu::image_gradient, nullptr);  // refused on CUDA above
}

// How far apart in `whole` the positions of a grid are that has every so many of its rows and columns.
void steps_of(const TensorView& whole, Sides stride, int64_t step[3]) {
  step[0] = whole.shape[1] * whole.shape[2] * whole.shape[3];
  step[1] = stride[0] * whole.shape[3] * whole.shape[1], step[2] = stride[1] * whole.shape[1];
}

void pointwise(py::handle x_, py::handle weight_, py::handle bias_, py::handle residual_, py::handle y_,
               std::optional<double> ceiling, py::handle bits_, py::handle kept_, Sides stride, bool transposed,
               int threads) {
  TensorView x("x", x_), weight("weight", weight_), y("y", y_);
  Pointwise c{};
  c.dtype = x.dtype({DType::f32, DType::bf16});
  weight.dtype({c.dtype}), weight.contiguous(), y.dtype({c.dtype}), y.writable();
  for (const TensorView* v : {&x, &y}) {
    if (v->on_cuda() || v->ndim != 4)
      throw py::value_error(std::string(v->name) + ": shape " + v->shape_text() +
                            " came, wanted is a channels-last (B, C, H, W) on a CPU");
    channels_of(*v), v->on_device_of(weight);
  }
  const TensorView &whole = transposed ? y : x, &part = transposed ? x : y;
  if (stride[0] < 1 || stride[1] < 1) throw py::value_error("stride: wanted are two numbers >= 1");
  c.batch = part.shape[0], c.rows = part.shape[2], c.columns = part.shape[3];
  for (int side : {0, 1})
    if (whole.shape[0] != c.batch || part.shape[2 + side] != (whole.shape[2 + side] + stride[side] - 1) / stride[side])
      throw py::value_error(std::string(part.name) + ": shape " + part.shape_text() + " came beside " + whole.name +
                            "'s " + whole.shape_text() + ", wanted are all positions at the stride");
  c.inputs = x.shape[1], c.outputs = y.shape[1];
  if (weight.numel != c.inputs * c.outputs)
    throw py::value_error("weight: " + std::to_string(weight.numel) + " elements came, wanted are " +
                          std::to_string(c.inputs * c.outputs) + ", packed");
  steps_of(x, transposed ? Sides{1, 1} : stride, c.x_step);
  steps_of(y, transposed ? stride : Sides{1, 1}, c.y_step);
  std::optional<TensorView> bias, residual, bits, kept;
  if (!bias_.is_none()) {
    bias.emplace("bias", bias_);
    bias->dtype({DType::f32}), bias->has_shape({c.outputs}), bias->contiguous(), bias->on_device_of(x);
    c.bias = static_cast<const float*>(bias->data);
  }
  if (!residual_.is_none()) {
    residual.emplace("residual", residual_);
    residual->dtype({c.dtype}), residual->same_layout_as(y);
    c.residual = residual->data;
  }
  const auto bits_of_y = [&](std::optional<TensorView>& view, const char* name, py::handle given) {
    view.emplace(name, given);
    view->byte(), view->has_shape({(y.numel + 7) / 8}), view->contiguous(), view->on_device_of(x);
    return static_cast<uint8_t*>(view->data);
  };
  if (!bits_.is_none()) {
    c.bits = bits_of_y(bits, "bits", bits_), bits->writable();
    if (!ceiling || (transposed && stride != Sides{1, 1}))
      throw py::value_error("bits: they are those of a rectifier, which has to see all of y");
  }
  if (!kept_.is_none()) c.kept = bits_of_y(kept, "kept", kept_);
  c.rectify = ceiling.has_value(), c.ceiling = ceiling.value_or(0);
  if (ceiling && !(*ceiling > 0))
    throw py::value_error("ceiling: " + std::to_string(*ceiling) + " came, wanted is a number > 0");
  if (part.numel == 0) return;
  c.x = x.data, c.weight = weight.data, c.y = y.data;
  dispatch(c, x, py::none(), 0, std::nullopt, threads, &cpu::pointwise, nullptr);  // refused on CUDA above
}

void pointwise_pack(py::handle weight_, py::handle packed_) {
  TensorView weight("weight", weight_), packed("packed", packed_);
  const DType dtype = weight.dtype({DType::f32, DType::bf16});
  if (weight.on_cuda() || weight.ndim != 2) throw py::value_error("weight: wanted is (outputs, inputs) on a CPU");
  packed.dtype({dtype}), packed.writable(), packed.contiguous(), weight.contiguous(), packed.on_device_of(weight);
  packed.has_shape({weight.numel});
  if (!cpu::pointwise_serves(dtype, weight.shape[1], weight.shape[0]))
    throw py::value_error("weight: shape " + weight.shape_text() + " is none that pointwise serves here");
  cpu::pointwise_pack(dtype, weight.data, packed.data, weight.shape[1], weight.shape[0]);
}
}  // namespace

void bind_network(py::module_& m) {
  using py::arg;
  const py::none none;
  m.attr("image_gradient_kernel") = cpu::kImageGradientKernel;
  m.def("masked_relu", &masked_relu,
        "The kernel of advcam_fast.ops.masked_relu, into arrays that are given; see csrc/masked_relu.h.", arg("x"),
        arg("bias"), arg("residual"), arg("ceiling"), arg("valid"), arg("bits"), arg("stream") = none,
        arg("num_threads") = 0);
  m.def("masked_relu_backward", &masked_relu_backward, "The gradient of masked_relu, in place; see csrc/masked_relu.h.",
        arg("gradient"), arg("bits"), arg("stream") = none, arg("num_threads") = 0);
  m.def("max_pool", &max_pool, "The kernel of advcam_fast.ops.max_pool, into arrays; see csrc/max_pool.h.", arg("x"),
        arg("y"), arg("at"), arg("kernel"), arg("stride"), arg("padding"), arg("dilation"), arg("stream") = none,
        arg("num_threads") = 0);
  m.def("max_pool_backward", &max_pool_backward, "The gradient of max_pool, into an array; see csrc/max_pool.h.",
        arg("gradient"), arg("at"), arg("x_gradient"), arg("kernel"), arg("stride"), arg("padding"), arg("dilation"),
        arg("stream") = none, arg("num_threads") = 0);
  m.def("image_gradient_serves", [](bool bf16, int64_t channels) {
    return cpu::image_gradient_serves(bf16 ? DType::bf16 : DType::f32, channels);
  });
  m.def("image_gradient", &image_gradient, "The gradient of images through a convolution; see csrc/image_gradient.h.",
        arg("gradient"), arg("weight"), arg("x_gradient"), arg("padding"), arg("num_threads") = 0);
  m.def("linear_head_serves",
        [](bool bf16, int64_t channels) { return cpu::linear_head_serves(bf16 ? DType::bf16 : DType::f32, channels); });
  m.def("linear_head", &linear_head, "The logits of a linear head; see csrc/linear_head.h.", arg("features"),
        arg("weight"), arg("logits"), arg("num_threads") = 0);
  m.def("linear_head_backward", &linear_head_backward, "The gradient of its features; see csrc/linear_head.h.",
        arg("gradient"), arg("weight"), arg("feature_gradient"), arg("num_threads") = 0);
  m.def("pointwise_serves", [](bool bf16, int64_t inputs, int64_t outputs) {
    return cpu::pointwise_serves(bf16 ? DType::bf16 : DType::f32, inputs, outputs);
  });
  m.def("pointwise_pack", &pointwise_pack, "Weights as pointwise reads them; see csrc/pointwise.h.", arg("weight"),
        arg("packed"));
  m.def("pointwise", &pointwise, "A convolution with a kernel of one element, fused; see csrc/pointwise.h.", arg("x"),
        arg("weight"), arg("bias"), arg("residual"), arg("y"), arg("ceiling") = none, arg("bits") = none,
        arg("kept") = none, arg("stride") = Sides{1, 1}, arg("transposed") = false, arg("num_threads") = 0);
}
}  // namespace advcam
