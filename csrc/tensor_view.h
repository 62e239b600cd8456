// TensorView: a borrowed, zero-copy look at any DLPack producer (torch, NumPy, CuPy, JAX). Knows Python, not torch.
#pragma once
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "dlpack_abi.h"
#include "dtype.h"

namespace advcam {
namespace py = pybind11;

inline const char* name_of(DType t) {
  switch (t) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    default:
      return "none";
  }
}

class TensorView {
 public:
  static constexpr int kMaxDim = 8;
  const char* name;
  void* data = nullptr;
  dlpack::Device device{};
  int ndim = 0;
  int64_t shape[kMaxDim]{}, strides[kMaxDim]{};
  int64_t numel = 1;

  TensorView(const char* name, py::handle object) : name(name) { acquire(object); }
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;

  bool on_cuda() const { return device.type == dlpack::kCUDA || device.type == dlpack::kCUDAManaged; }

  std::string dtype_name() const {
    if (dtype_.code == dlpack::kBool) return "bool";
    const char* code = dtype_.code == dlpack::kInt      ? "int"
                       : dtype_.code == dlpack::kUInt   ? "uint"
                       : dtype_.code == dlpack::kFloat  ? "float"
                       : dtype_.code == dlpack::kBfloat ? "bfloat"
                                                        : "dlpack type ";
    return code + std::to_string(dtype_.bits);
  }

  DType dtype(std::initializer_list<DType> allowed) const {
    const DType t = kind();
    std::string wanted;
    for (DType a : allowed) {
      if (a == t) return t;
      wanted += (wanted.empty() ? "" : ", ") + std::string(name_of(a));
    }
    throw py::type_error(std::string(name) + ": dtype " + dtype_name() + " came, wanted is " + wanted);
  }
  void integer64() const { require_type(dtype_.code == dlpack::kInt && dtype_.bits == 64, "int64"); }
  void byte() const {
    require_type(dtype_.bits == 8 && (dtype_.code == dlpack::kBool || dtype_.code == dlpack::kUInt), "bool or uint8");
  }

  void writable() const {
    if (read_only_)
      throw py::value_error(std::string(name) + ": the array is read-only and cannot be written in place");
  }

  std::string shape_text() const { return text(shape); }

  void has_shape(std::initializer_list<int64_t> wanted) const {
    bool same = static_cast<size_t>(ndim) == wanted.size();
    std::string w;
    int i = 0;
    for (int64_t d : wanted) {
      same = same && shape[i] == d;
      w += (i++ ? ", " : "") + std::to_string(d);
    }
    if (!same) throw py::value_error(std::string(name) + ": shape " + shape_text() + " came, wanted is (" + w + ")");
  }

  void on_device_of(const TensorView& o) const {
    if (device.type != o.device.type || device.id != o.device.id)
      throw py::value_error(std::string(name) + " and " + o.name + " are on different devices");
  }

  // Steps from one element to the next along `order` (outermost first) leave no gap.
  bool dense(std::initializer_list<int> order) const {
    if (numel == 0) return true;  // NumPy gives empty arrays strides of 0
    int64_t inner = 1;
    for (auto d = order.end(); d != order.begin();) {
      --d;
      if (shape[*d] > 1 && strides[*d] != inner) return false;
      inner *= shape[*d];
    }
    return true;
  }
  void contiguous() const {
    int64_t inner = 1;
    for (int d = ndim - 1; d >= 0 && numel; --d) {
      if (shape[d] > 1 && strides[d] != inner) bad_strides("contiguous");
      inner *= shape[d];
    }
  }

  // Dimension 0 is outermost and the tensor is one gap-free block: contiguous, channels-last or any other order.
  void dense_items() const {
    if (numel == 0) return;
    int64_t inner = 1;
    bool used[kMaxDim] = {};
    for (int k = 1; k < ndim; ++k) {  // the dimensions from the smallest stride up
      int next = -1;
      for (int d = 1; d < ndim && next < 0; ++d)
        if (!used[d] && (shape[d] == 1 || strides[d] == inner)) next = d;
      if (next < 0) bad_strides("dense within each item");
      used[next] = true;
      inner *= shape[next];
    }
    if (ndim > 0 && shape[0] > 1 && strides[0] != inner) bad_strides("dense within each item");
  }

  void same_layout_as(const TensorView& o) const {
    on_device_of(o);
    bool same_shape = ndim == o.ndim, same_strides = true;
    for (int i = 0; same_shape && i < ndim; ++i) {
      same_shape = shape[i] == o.shape[i];
      same_strides = same_strides && (numel == 0 || shape[i] == 1 || strides[i] == o.strides[i]);
    }
    if (!same_shape)
      throw py::value_error(std::string(name) + ": shape " + shape_text() + " differs from " + o.name + "'s " +
                            o.shape_text());
    if (!same_strides)
      throw py::value_error(std::string(name) + ": strides " + text(strides) + " differ from " + o.name + "'s " +
                            o.text(o.strides) + "; both must have one memory layout");
  }

  // torch tells its current stream through the table; for other producers 0, the default stream.
  void* current_stream() const {
    void* stream = nullptr;
    if (api_ && api_->current_stream && api_->current_stream(dlpack::kCUDA, device.id, &stream) != 0)
      throw py::error_already_set();
    return stream;
  }

 private:
  dlpack::DataType dtype_{};
  bool read_only_ = false;
  const dlpack::ExchangeApi* api_ = nullptr;
  // Keeps a __dlpack__ export alive; unused on the fast path. The capsule is not renamed to "used_...": its own
  // destructor then calls the deleter, as the protocol asks of a capsule that nobody consumed.
  py::object capsule_;

  DType kind() const {
    if (dtype_.lanes != 1) return DType::none;
    if (dtype_.code == dlpack::kBfloat && dtype_.bits == 16) return DType::bf16;
    if (dtype_.code != dlpack::kFloat) return DType::none;
    return dtype_.bits == 32   ? DType::f32
           : dtype_.bits == 64 ? DType::f64
           : dtype_.bits == 16 ? DType::f16
                               : DType::none;
  }
  void require_type(bool right, const char* wanted) const {
    if (!right) throw py::type_error(std::string(name) + ": dtype " + dtype_name() + " came, wanted is " + wanted);
  }
  std::string text(const int64_t* v) const {
    std::string s = "(";
    for (int i = 0; i < ndim; ++i) s += (i ? ", " : "") + std::to_string(v[i]);
    return s + (ndim == 1 ? ",)" : ")");
  }
  [[noreturn]] void bad_strides(const char* wanted) const {
    throw py::value_error(std::string(name) + ": strides " + text(strides) + " of shape " + shape_text() + " are not " +
                          wanted + "; call .contiguous() first");
  }
  // torch's text for sparse and meta tensors ends in a C++ stack trace: its first line is enough.
  [[noreturn]] void refuse() const {
    const std::string why = py::error_already_set().what();
    throw py::value_error(std::string(name) + ": cannot be read through DLPack: " + why.substr(0, why.find('\n')));
  }

  void fill(const dlpack::Tensor& t) {
    if (t.ndim > kMaxDim) throw py::value_error(std::string(name) + ": more than 8 dimensions");
    device = t.device, dtype_ = t.dtype, ndim = t.ndim;
    for (int i = ndim - 1; i >= 0; --i) {
      shape[i] = t.shape[i];
      strides[i] = t.strides ? t.strides[i] : numel;
      numel *= shape[i];
    }
    data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
    if (numel && !data)
      throw py::value_error(std::string(name) + ": the tensor has no memory (a fake or meta tensor?)");
    if (device.type == dlpack::kCUDAHost) device = {dlpack::kCPU, 0};
    if (device.type != dlpack::kCPU && !on_cuda())
      throw py::value_error(std::string(name) + ": DLPack device type " + std::to_string(device.type) +
                            " came, wanted is CPU or CUDA");
  }

  // One table per producer type; the last type is remembered (the GIL guards it).
  static const dlpack::ExchangeApi* find_api(PyTypeObject* type) {
    static PyTypeObject* last_type = nullptr;
    static const dlpack::ExchangeApi* last_api = nullptr;
    if (type == last_type) return last_api;
    const dlpack::ExchangeApi* api = nullptr;
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    if (capsule && PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
      api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_XDECREF(capsule);
    PyErr_Clear();
    while (api && api->version.major != 1) api = api->previous;
    Py_INCREF(type);  // the remembered type must not be freed and its address used again
    Py_XDECREF(last_type);
    last_type = type, last_api = api;
    return api;
  }

  void acquire(py::handle object) {
    api_ = find_api(Py_TYPE(object.ptr()));
    if (api_ && api_->tensor_from_object) {
      dlpack::Tensor t;
      if (api_->tensor_from_object(object.ptr(), &t) != 0) refuse();
      fill(t);
      return;
    }
    if (!py::hasattr(object, "__dlpack__"))
      throw py::type_error(std::string(name) + ": " + Py_TYPE(object.ptr())->tp_name +
                           " came, wanted is a tensor or array with __dlpack__");
    py::dict options;
    if (object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>() == dlpack::kCUDA)
      options["stream"] = py::int_(-1);  // no synchronisation: the caller names the stream
    try {
      capsule_ = object.attr("__dlpack__")(**options, py::arg("max_version") = py::make_tuple(1, 1));
    } catch (py::error_already_set& e) {
      if (!e.matches(PyExc_TypeError)) throw;
      capsule_ = object.attr("__dlpack__")(**options);  // a producer older than DLPack 1.0
    }
    PyObject* c = capsule_.ptr();
    if (PyCapsule_IsValid(c, "dltensor_versioned")) {
      auto* m = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(c, "dltensor_versioned"));
      if (m->version.major != 1) throw py::buffer_error("unsupported DLPack major version");
      read_only_ = m->flags & dlpack::kReadOnly;
      fill(m->tensor);
    } else if (PyCapsule_IsValid(c, "dltensor")) {
      fill(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(c, "dltensor"))->tensor);
    } else {
      throw py::buffer_error("__dlpack__ gave no DLPack capsule");
    }
  }
};
}  // namespace advcam
