// The part of advcam_fast._C that evaluates: threshold_sweep and component_boxes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "component_boxes.h"
#include "dispatch.h"
#include "tensor_view.h"
#include "threshold_sweep.h"

namespace advcam {
namespace {
constexpr int64_t kMostClasses = 254;  // 255 of a truth is ignored
constexpr int64_t kMostSide = 32767;   // of a map with boxes

void threshold_sweep(py::handle maps_, py::handle classes_, py::handle truth_, py::handle thresholds_,
                     py::handle confusion_, py::handle faults_, int64_t num_classes, Stream stream, int threads) {
  TensorView maps("maps", maps_), classes("classes", classes_), truth("truth", truth_);
  TensorView thresholds("thresholds", thresholds_), confusion("confusion", confusion_), faults("faults", faults_);
  ThresholdSweep call{};
  call.dtype = maps.dtype({DType::f32, DType::f64, DType::f16});
  if (maps.ndim != 3)
    throw py::value_error("maps: shape " + maps.shape_text() + " came, wanted is (count, height, width)");
  if (num_classes < 0 || num_classes > kMostClasses)
    throw py::value_error("num_classes: " + std::to_string(num_classes) + " came, wanted is 0 to " +
                          std::to_string(kMostClasses));
  truth.byte(), truth.has_shape({maps.shape[1], maps.shape[2]});
  classes.integer64(), classes.has_shape({maps.shape[0]});
  thresholds.dtype({call.dtype});
  if (thresholds.ndim != 1)
    throw py::value_error("thresholds: shape " + thresholds.shape_text() + " came, wanted is (steps,)");
  call.steps = thresholds.numel;
  confusion.integer64(), confusion.has_shape({call.steps, num_classes + 1, num_classes + 1});
  faults.integer64(), faults.has_shape({2});
  for (const TensorView* v : {&maps, &classes, &truth, &thresholds, &confusion, &faults})
    v->contiguous(), v->on_device_of(maps);
  confusion.writable(), faults.writable();
  call.maps = maps.data, call.classes = static_cast<const int64_t*>(classes.data);
  call.truth = static_cast<const uint8_t*>(truth.data), call.thresholds = thresholds.data;
  call.confusion = static_cast<int64_t*>(confusion.data), call.faults = static_cast<int64_t*>(faults.data);
  call.count = maps.shape[0], call.pixels = truth.numel, call.num_classes = num_classes;
  if (!maps.on_cuda())
    for (int64_t k = 0; k < call.count; ++k)
      if (call.classes[k] < 0 || call.classes[k] >= num_classes)
        throw py::value_error("classes: " + std::to_string(call.classes[k]) + " came, wanted is 0 to " +
                              std::to_string(num_classes - 1));
  dispatch(call, maps, py::none(), 0, stream, threads, &cpu::threshold_sweep, CUDA_LAUNCHER(threshold_sweep));
}

void component_boxes(py::handle maps_, py::handle levels_, py::handle boxes_, py::handle areas_, py::handle offsets_,
                     py::handle workspace, Stream stream, int threads) {
  TensorView maps("maps", maps_), levels("levels", levels_);
  TensorView boxes("boxes", boxes_), areas("areas", areas_), offsets("offsets", offsets_);
  ComponentBoxes call{};
  maps.byte(), levels.integer64(), boxes.integer64(), areas.dtype({DType::f64}), offsets.integer64();
  if (maps.ndim != 3 || maps.shape[1] > kMostSide || maps.shape[2] > kMostSide)
    throw py::value_error("maps: shape " + maps.shape_text() +
                          " came, wanted is (batch, height, width), sides of at most " + std::to_string(kMostSide));
  if (levels.ndim != 1) throw py::value_error("levels: shape " + levels.shape_text() + " came, wanted is (steps,)");
  call.batch = maps.shape[0], call.height = maps.shape[1], call.width = maps.shape[2], call.steps = levels.numel;
  call.capacity = areas.numel;
  areas.has_shape({call.capacity}), boxes.has_shape({call.capacity, 4});
  offsets.has_shape({call.batch * call.steps + 1});
  for (const TensorView* v : {&maps, &levels, &boxes, &areas, &offsets}) v->contiguous(), v->on_device_of(maps);
  for (const TensorView* v : {&boxes, &areas, &offsets}) v->writable();
  call.maps = static_cast<const uint8_t*>(maps.data), call.levels = static_cast<const int64_t*>(levels.data);
  call.boxes = static_cast<int64_t*>(boxes.data), call.areas = static_cast<double*>(areas.data);
  call.offsets = static_cast<int64_t*>(offsets.data);
  if (!maps.on_cuda())
    for (int64_t t = 0; t < call.steps; ++t)
      if (call.levels[t] < 0 || call.levels[t] > 255)
        throw py::value_error("levels: " + std::to_string(call.levels[t]) + " came, wanted is 0 to 255");
  dispatch(call, maps, workspace, 0, stream, threads, &cpu::component_boxes, nullptr);
}
}  // namespace

void bind_evaluate(py::module_& m) {
  using py::arg;
  const py::none none;
  m.def("threshold_sweep", &threshold_sweep,
        "The kernel of advcam_fast.ops.threshold_sweep, into arrays that are given; see csrc/threshold_sweep.h.",
        arg("maps"), arg("classes"), arg("truth"), arg("thresholds"), arg("confusion"), arg("faults"),
        arg("num_classes"), arg("stream") = none, arg("num_threads") = 0);
  m.def("component_boxes", &component_boxes,
        "The kernel of advcam_fast.ops.component_boxes, into arrays that are given; see csrc/component_boxes.h.",
        arg("maps"), arg("levels"), arg("boxes"), arg("areas"), arg("offsets"), arg("workspace") = none,
        arg("stream") = none, arg("num_threads") = 0);
}
}  // namespace advcam
