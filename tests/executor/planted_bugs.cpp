// One kernel a bug, for the tools to catch: a tool that misses its own is worth nothing.
#include "planted_bugs.h"

#include <cmath>
#include <stdexcept>
#include <vector>

#include "executor.h"

namespace {

__global__ void missing_syncthreads(const float* from, float* to) {
  ADVCAM_SHARED(float, line, 64);
  line[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = line[63 - threadIdx.x];
}

// A shuffle is a meeting of the warp, but orders no memory.
__global__ void missing_syncwarp(const float* from, float* to) {
  ADVCAM_SHARED(float, line, 64);
  line[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 0.f, 1) + line[threadIdx.x ^ 1];
}

__global__ void with_syncwarp(const float* from, float* to) {
  ADVCAM_SHARED(float, line, 64);
  line[threadIdx.x] = from[threadIdx.x];
  __syncwarp();
  to[threadIdx.x] = line[threadIdx.x ^ 1];
}

__global__ void race_of_blocks(const float* from, float* to) {
  if (threadIdx.x == 0) to[0] += from[blockIdx.x];
}

__global__ void global_out_of_bounds(const float* from, float* to) { to[threadIdx.x + 1] = from[threadIdx.x]; }

__global__ void shared_out_of_bounds(const float* from, float* to) {
  ADVCAM_SHARED(float, line, 64);
  line[threadIdx.x + 1] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = line[threadIdx.x];
}

struct alignas(16) Vector {
  float v[4];
};

__global__ void misaligned_vector(const float* from, float* to) {
  const Vector vector = *reinterpret_cast<const Vector*>(from + 1);
  to[threadIdx.x] = vector.v[0];
}

__global__ void divergent_barrier(const float* from, float* to) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, from[threadIdx.x], 1);
  }
}

__global__ void lane_outside_its_mask(const float* from, float* to) {
  to[threadIdx.x] = __shfl_xor_sync(0xffffu, from[threadIdx.x], 1);
}

__global__ void uninitialised_shared(const float* from, float* to) {
  ADVCAM_SHARED(float, line, 64);
  if (threadIdx.x < 32) line[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = line[threadIdx.x];
}

struct Bug {
  const char* name;
  void (*kernel)(const float*, float*);
  unsigned blocks;
};

constexpr Bug kBugs[] = {
    {"missing_syncthreads", missing_syncthreads, 1},
    {"missing_syncwarp", missing_syncwarp, 1},
    {"with_syncwarp", with_syncwarp, 1},
    {"race_of_blocks", race_of_blocks, 4},
    {"global_out_of_bounds", global_out_of_bounds, 1},
    {"shared_out_of_bounds", shared_out_of_bounds, 1},
    {"misaligned_vector", misaligned_vector, 1},
    {"divergent_barrier", divergent_barrier, 1},
    {"lane_outside_its_mask", lane_outside_its_mask, 1},
    {"uninitialised_shared", uninitialised_shared, 1},
};

}  // namespace

const char* run_planted_bug(const std::string& name) {
  for (const Bug& bug : kBugs) {
    if (name != bug.name) continue;
    const std::vector<float> from(64, 1.f);
    std::vector<float> to(64);
    ADVCAM_LAUNCH(bug.kernel, bug.blocks, 64, nullptr, from.data(), to.data());
    if (const cudaError_t error = cudaGetLastError()) return cudaGetErrorString(error);
    for (float value : to) {
      if (std::isnan(value)) return "a NaN of uninitialised memory reached the output";
    }
    return nullptr;
  }
  throw std::invalid_argument("no planted bug is called " + name);
}
