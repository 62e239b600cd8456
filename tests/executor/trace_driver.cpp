// trace_driver fp32 | bf16 | strided: traces climb_step's vector path, or a planted kernel that takes four neighbouring
// elements one after another. Compiled with -fsanitize=thread, which only reports to trace_runtime.cpp.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/climb_step.cu"
#include "trace_runtime.h"

namespace {

constexpr int64_t kGroups = 2, kElements = 5008;  // groups of whole sectors in every dtype

struct Tensor {
  Tensor(const char* name, size_t bytes) : memory(std::aligned_alloc(256, (bytes + 255) / 256 * 256)) {
    std::memset(memory, 0, bytes);
    trace_tensor(name, memory, bytes);
  }
  ~Tensor() { std::free(memory); }
  void* memory;
};

__global__ void strided(const float* from, float* to) {
  for (int i = 0; i < 4; ++i) to[threadIdx.x * 4 + i] = from[threadIdx.x * 4 + i];
}

const char* trace_strided() {
  const Tensor from("from", 4096), to("to", 4096);
  ADVCAM_LAUNCH(strided, 1, 256, nullptr, static_cast<const float*>(from.memory), static_cast<float*>(to.memory));
  print_trace();
  return advcam::cuda::error_text(cudaGetLastError());
}

const char* trace_climb_step(bool bf16) {
  constexpr int64_t kCount = kGroups * kElements;
  const Tensor image("image", kCount * 4), gradient("gradient", kCount * (bf16 ? 2 : 4));
  const Tensor network_input("network_input", kCount * 2), largest("gradient_max", kGroups * 4);
  const Tensor workspace("workspace", kGroups * advcam::kClimbStepParts * advcam::kClimbStepFields * 4);
  advcam::ClimbStep step{};
  step.image = image.memory;
  step.gradient = gradient.memory;
  step.network_input = bf16 ? network_input.memory : nullptr;
  step.gradient_max = largest.memory;
  step.image_dtype = advcam::DType::f32;
  step.gradient_dtype = bf16 ? advcam::DType::bf16 : advcam::DType::f32;
  step.network_dtype = bf16 ? advcam::DType::bf16 : advcam::DType::none;
  step.groups = kGroups;
  step.n = kElements;
  step.step = 0.08;
  const char* error = advcam::cuda::climb_step(step, workspace.memory, 0, nullptr);
  print_trace();
  return error;
}

}  // namespace

int main(int, char** arguments) {
  const std::string what = arguments[1];
  const char* error = what == "strided" ? trace_strided() : trace_climb_step(what == "bf16");
  if (error) std::printf("error: %s\n", error);
  return error ? 3 : 0;
}
