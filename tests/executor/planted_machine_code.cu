// What the machine-code gate must refuse, one kernel a fault.
#include <cstdint>

extern "C" {

__global__ void planted_stack(const float* from, float* to, const int* order) {
  float line[64];
  for (int i = 0; i < 64; ++i) line[order[i]] = from[i];
  for (int i = 0; i < 64; ++i) to[i] = line[order[i + 64]];
}

__global__ void planted_float64(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x] * 0.1; }

__global__ void planted_scalar(const float* __restrict__ from, float* __restrict__ to) {
  for (int i = 0; i < 4; ++i) to[threadIdx.x * 4 + i] = from[threadIdx.x * 4 + i];
}

__global__ void planted_registers(float* from, float* to) {
  float line[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) line[i] = from[i * 1024 + threadIdx.x];
  __syncthreads();  // all of the line is alive here
#pragma unroll
  for (int i = 0; i < 96; ++i) to[i * 1024 + threadIdx.x] = line[95 - i];
}
}
