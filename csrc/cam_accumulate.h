// cam_accumulate: total += sum over the scales s of resize(map_s), cropped; then, if asked, each map / (its max +
// 1e-5).
//
// resize is bilinear with align_corners = false (as torch.nn.functional.interpolate): the source coordinate of output
// row i is max((i + 0.5) * h_s / rows - 0.5, 0), its upper neighbour is clamped to h_s - 1. `rows` x `columns` is the
// size resized to; total holds its upper left `height` x `width`. Equal sizes: a plain addition.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
constexpr int kMaxScales = 8;

struct CamAccumulate {
  const void* map[kMaxScales];  // each [count, map_height[s], map_width[s]], contiguous
  int64_t map_height[kMaxScales], map_width[kMaxScales];
  int scales;
  void* total;                                  // [count, height, width], contiguous, read and written
  int64_t count, height, width, rows, columns;  // height <= rows, width <= columns
  DType dtype;                                  // f32 or f64, of the maps and of total
  bool normalise;
};

namespace cpu {
void cam_accumulate(const CamAccumulate&, int threads);
}
namespace cuda {
constexpr int kCamAccumulateParts = 64;  // partial maxima of a map
// workspace: [count, kCamAccumulateParts] of dtype; need not be cleared. Returns null, or the text of the CUDA error.
const char* cam_accumulate(const CamAccumulate&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
