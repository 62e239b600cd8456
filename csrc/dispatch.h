// Runs the launcher of the device that the arguments live on, without the GIL.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>

#include "tensor_view.h"

namespace advcam {
using Stream = std::optional<uintptr_t>;
#ifdef ADVCAM_WITH_CUDA
inline constexpr bool kCuda = true;
#else
inline constexpr bool kCuda = false;
#endif

inline int threads_or_all(int threads) {
  return threads > 0 ? threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

template <class Call>
using CudaLauncher = std::common_type_t<const char* (*)(const Call&, void* workspace, int device, void* stream)>;

// Runs the launcher of the device that `on` lives on. The workspace belongs to the CUDA kernels alone.
template <class Call>
void dispatch(const Call& call, const TensorView& on, py::handle workspace, int64_t workspace_size, Stream stream,
              int threads, void (*cpu)(const Call&, int), CudaLauncher<Call> cuda) {
  if (!on.on_cuda()) {
    threads = threads_or_all(threads);
    py::gil_scoped_release released;
    cpu(call, threads);
    return;
  }
  if (!cuda)
    throw std::runtime_error(
        "advcam_fast was built without CUDA: reinstall with nvcc on PATH (or CUDA_HOME set) and ADVCAM_CUDA=ON");
  std::optional<TensorView> space;
  if (workspace_size) {
    if (workspace.is_none())
      throw py::value_error("workspace: none came, wanted are " + std::to_string(workspace_size) + " elements on " +
                            on.name + "'s device");
    space.emplace("workspace", workspace);
    space->on_device_of(on), space->writable(), space->contiguous();
    if (space->numel < workspace_size)
      throw py::value_error("workspace: " + std::to_string(space->numel) + " elements came, wanted are " +
                            std::to_string(workspace_size));
  }
  void* s = stream ? reinterpret_cast<void*>(*stream) : on.current_stream();
  const char* error;
  {
    py::gil_scoped_release released;
    error = cuda(call, space ? space->data : nullptr, on.device.id, s);
  }
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error + " (nvidia-smi shows the driver)");
}
#ifdef ADVCAM_WITH_CUDA
#define CUDA_LAUNCHER(stem) &cuda::stem
#else
#define CUDA_LAUNCHER(stem) nullptr
#endif
}  // namespace advcam
