// The part of advcam_fast._C that follows pixels: random_walk and its gradient.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

#include "centroid_walk.h"
#include "dispatch.h"
#include "random_walk.h"
#include "tensor_view.h"

namespace advcam {
namespace {
constexpr int64_t kMostRadius = 64;

// A boundary lies in 0..1, colours are finite. Looked at on a CPU only: on a GPU it would cost a synchronisation.
template <class T>
void check_values(const TensorView& guide, bool color) {
  const T* values = static_cast<const T*>(guide.data);
  for (int64_t i = 0; i < guide.numel; ++i)
    if (color ? !std::isfinite(values[i]) : !(values[i] >= 0 && values[i] <= 1))
      throw py::value_error(std::string(guide.name) + ": " + std::to_string(values[i]) +
                            (color ? " came, wanted are finite colours" : " came, wanted are probabilities, 0 to 1"));
}

// `like` is what out, or the gradient by the maps, goes to.
RandomWalk walk_of(const TensorView& maps, const TensorView& guide, const TensorView& like, int64_t radius,
                   double scale, int64_t steps, double restart, bool color) {
  RandomWalk call{};
  call.dtype = maps.dtype({DType::f32, DType::f64});
  if (maps.ndim != 4)
    throw py::value_error("maps: shape " + maps.shape_text() + " came, wanted is (batch, labels, height, width)");
  call.batch = maps.shape[0], call.labels = maps.shape[1], call.height = maps.shape[2], call.width = maps.shape[3];
  guide.dtype({call.dtype}), like.dtype({call.dtype});
  call.channels = color && guide.ndim == 4 ? guide.shape[1] : 1;
  color ? guide.has_shape({call.batch, call.channels, call.height, call.width})
        : guide.has_shape({call.batch, call.height, call.width});
  like.has_shape({call.batch, call.labels, call.height, call.width}), like.writable();
  for (const TensorView* v : {&maps, &guide, &like}) v->contiguous(), v->on_device_of(maps);
  if (radius < 1 || radius > kMostRadius)
    throw py::value_error("radius: " + std::to_string(radius) + " came, wanted is 1 to " + std::to_string(kMostRadius));
  if (steps < 0) throw py::value_error("steps: " + std::to_string(steps) + " came, wanted is 0 or more");
  if (!(scale >= 0 && std::isfinite(scale)))
    throw py::value_error("scale: " + std::to_string(scale) + " came, wanted is a finite number, 0 or more");
  if (!(restart >= 0 && restart <= 1))
    throw py::value_error("restart: " + std::to_string(restart) + " came, wanted is 0 to 1");
  if (!maps.on_cuda())
    call.dtype == DType::f64 ? check_values<double>(guide, color) : check_values<float>(guide, color);
  call.maps = maps.data, call.guide = guide.data, call.out = like.data, call.color = color;
  call.radius = radius, call.scale = scale, call.steps = steps, call.restart = restart;
  return call;
}

void random_walk(py::handle maps_, py::handle guide_, py::handle out_, int64_t radius, double scale, int64_t steps,
                 double restart, bool color, py::handle workspace, Stream stream, int threads) {
  TensorView maps("maps", maps_), guide(color ? "images" : "boundary", guide_), out("out", out_);
  const RandomWalk call = walk_of(maps, guide, out, radius, scale, steps, restart, color);
  if (maps.numel == 0) return;
  dispatch(call, maps, workspace, random_walk_workspace(call), stream, threads, &cpu::random_walk,
           CUDA_LAUNCHER(random_walk));
}

void random_walk_backward(py::handle gradient_, py::handle maps_, py::handle guide_, py::handle maps_gradient_,
                          py::handle guide_gradient_, int64_t radius, double scale, int64_t steps, double restart,
                          bool color, int threads) {
  TensorView gradient("gradient", gradient_), maps("maps", maps_), guide(color ? "images" : "boundary", guide_);
  TensorView maps_gradient("maps_gradient", maps_gradient_), guide_gradient("guide_gradient", guide_gradient_);
  RandomWalkBackward call{};
  call.walk = walk_of(maps, guide, maps_gradient, radius, scale, steps, restart, color);
  gradient.dtype({call.walk.dtype}), gradient.contiguous(), gradient.on_device_of(maps);
  gradient.has_shape({call.walk.batch, call.walk.labels, call.walk.height, call.walk.width});
  guide_gradient.dtype({call.walk.dtype}), guide_gradient.same_layout_as(guide), guide_gradient.writable();
  if (maps.on_cuda()) throw py::value_error("gradient: a CUDA tensor came, wanted is a CPU tensor");
  if (maps.numel == 0) return;
  call.gradient = gradient.data, call.maps_gradient = maps_gradient.data, call.guide_gradient = guide_gradient.data;
  dispatch(call, maps, py::none(), 0, {}, threads, &cpu::random_walk_backward, nullptr);
}

void centroid_walk(py::handle displacement_, py::handle centroids_, py::handle labels_, int64_t steps, double threshold,
                   py::handle workspace, Stream stream, int threads) {
  TensorView displacement("displacement", displacement_), centroids("centroids", centroids_), labels("labels", labels_);
  CentroidWalk call{};
  call.dtype = displacement.dtype({DType::f32, DType::f64});
  if (displacement.ndim != 4 || displacement.shape[1] != 2)
    throw py::value_error("displacement: shape " + displacement.shape_text() +
                          " came, wanted is (batch, 2, height, width)");
  call.batch = displacement.shape[0], call.height = displacement.shape[2], call.width = displacement.shape[3];
  if (call.height * call.width >= int64_t(1) << 31)
    throw py::value_error("displacement: shape " + displacement.shape_text() +
                          " came, wanted are fewer than 2^31 pixels");
  displacement.contiguous(), centroids.dtype({call.dtype}), centroids.same_layout_as(displacement);
  labels.integer64(), labels.has_shape({call.batch, call.height, call.width});
  labels.contiguous(), labels.on_device_of(displacement), labels.writable(), centroids.writable();
  if (steps < 0) throw py::value_error("steps: " + std::to_string(steps) + " came, wanted is 0 or more");
  if (displacement.numel == 0) return;
  call.displacement = displacement.data, call.centroids = centroids.data;
  call.labels = static_cast<int64_t*>(labels.data), call.steps = steps, call.threshold = threshold;
  dispatch(call, displacement, workspace, call.batch * cuda::kCentroidWalkParts * call.height * call.width, stream,
           threads, &cpu::centroid_walk, CUDA_LAUNCHER(centroid_walk));
}
}  // namespace

void bind_walk(py::module_& m) {
  using py::arg;
  const py::none none;
  m.def("random_walk_workspace", [](int64_t batch, int64_t labels, int64_t height, int64_t width, int64_t radius) {
    RandomWalk call{};
    call.batch = batch, call.labels = labels, call.height = height, call.width = width, call.radius = radius;
    return random_walk_workspace(call);
  });
  m.def("random_walk", &random_walk,
        "The kernel of advcam_fast.ops.random_walk and color_walk, into arrays that are given; see csrc/random_walk.h.",
        arg("maps"), arg("guide"), arg("out"), arg("radius"), arg("scale"), arg("steps"), arg("restart"), arg("color"),
        arg("workspace") = none, arg("stream") = none, arg("num_threads") = 0);
  m.def("random_walk_backward", &random_walk_backward,
        "The gradient of random_walk, into arrays that are given; CPU only; see csrc/random_walk.h.", arg("gradient"),
        arg("maps"), arg("guide"), arg("maps_gradient"), arg("guide_gradient"), arg("radius"), arg("scale"),
        arg("steps"), arg("restart"), arg("color"), arg("num_threads") = 0);
  m.attr("centroid_walk_workspace") = cuda::kCentroidWalkParts;
  m.def("centroid_walk", &centroid_walk,
        "The kernel of advcam_fast.ops.centroid_walk, into arrays that are given; see csrc/centroid_walk.h.",
        arg("displacement"), arg("centroids"), arg("labels"), arg("steps"), arg("threshold"), arg("workspace") = none,
        arg("stream") = none, arg("num_threads") = 0);
}
}  // namespace advcam
