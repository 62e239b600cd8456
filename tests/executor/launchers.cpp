// The CUDA launchers on the CPU executor, as plain C functions for ctypes.
#include "cam_accumulate.h"
#include "centroid_walk.h"
#include "climb_loss.h"
#include "climb_step.h"
#include "component_boxes.h"
#include "dense_crf.h"
#include "executor.h"
#include "masked_relu.h"
#include "max_pool.h"
#include "random_walk.h"
#include "threshold_sweep.h"

extern "C" {

// For the tests to compare with their own declarations of the arguments. [10]
void argument_bytes(int64_t* bytes) {
  bytes[0] = sizeof(advcam::ClimbStep);
  bytes[1] = sizeof(advcam::ClimbLoss);
  bytes[2] = sizeof(advcam::CamAccumulate);
  bytes[3] = sizeof(advcam::MaskedRelu);
  bytes[4] = sizeof(advcam::MaskedReluBackward);
  bytes[5] = sizeof(advcam::MaxPool);
  bytes[6] = sizeof(advcam::MaxPoolBackward);
  bytes[7] = sizeof(advcam::RandomWalk);
  bytes[8] = sizeof(advcam::CentroidWalk);
  bytes[9] = sizeof(advcam::DenseCrf);
  bytes[10] = sizeof(advcam::ThresholdSweep);
  bytes[11] = sizeof(advcam::ComponentBoxes);
}

int64_t component_boxes_workspace(const advcam::ComponentBoxes* arguments) {
  return advcam::component_boxes_workspace(*arguments);
}

int64_t dense_crf_workspace(const advcam::DenseCrf* arguments) {
  return advcam::cuda::DenseCrfWorkspace(*arguments).bytes;
}

const char* climb_step(const advcam::ClimbStep* arguments, void* workspace, int device) {
  return advcam::cuda::climb_step(*arguments, workspace, device, nullptr);
}

const char* climb_loss(const advcam::ClimbLoss* arguments, void* workspace, int device) {
  return advcam::cuda::climb_loss(*arguments, workspace, device, nullptr);
}

const char* cam_accumulate(const advcam::CamAccumulate* arguments, void* workspace, int device) {
  return advcam::cuda::cam_accumulate(*arguments, workspace, device, nullptr);
}

const char* masked_relu(const advcam::MaskedRelu* arguments, void* workspace, int device) {
  return advcam::cuda::masked_relu(*arguments, workspace, device, nullptr);
}

const char* masked_relu_backward(const advcam::MaskedReluBackward* arguments, void* workspace, int device) {
  return advcam::cuda::masked_relu_backward(*arguments, workspace, device, nullptr);
}

const char* max_pool(const advcam::MaxPool* arguments, void* workspace, int device) {
  return advcam::cuda::max_pool(*arguments, workspace, device, nullptr);
}

const char* max_pool_backward(const advcam::MaxPoolBackward* arguments, void* workspace, int device) {
  return advcam::cuda::max_pool_backward(*arguments, workspace, device, nullptr);
}

const char* random_walk(const advcam::RandomWalk* arguments, void* workspace, int device) {
  return advcam::cuda::random_walk(*arguments, workspace, device, nullptr);
}

const char* centroid_walk(const advcam::CentroidWalk* arguments, void* workspace, int device) {
  return advcam::cuda::centroid_walk(*arguments, workspace, device, nullptr);
}

const char* dense_crf(const advcam::DenseCrf* arguments, void* workspace, int device) {
  return advcam::cuda::dense_crf(*arguments, workspace, device, nullptr);
}

const char* threshold_sweep(const advcam::ThresholdSweep* arguments, void* workspace, int device) {
  return advcam::cuda::threshold_sweep(*arguments, workspace, device, nullptr);
}

const char* component_boxes(const advcam::ComponentBoxes* arguments, void* workspace, int device) {
  return advcam::cuda::component_boxes(*arguments, workspace, device, nullptr);
}

int64_t launch_count() { return static_cast<int64_t>(executor::launches.size()); }

// grid x, y, z, block x, y, z of a launch. [6]
void launch_shape(int64_t launch, unsigned* shape) {
  const executor::Launch& seen = executor::launches[launch];
  const unsigned values[] = {seen.grid.x, seen.grid.y, seen.grid.z, seen.block.x, seen.block.y, seen.block.z};
  std::copy_n(values, 6, shape);
}

void forget_launches() { executor::launches.clear(); }
}
