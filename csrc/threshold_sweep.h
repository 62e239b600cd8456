// threshold_sweep: the confusion of an image's maps with its truth at every threshold, in one pass.
//
// At threshold t a pixel is said to be of the class of argmax over [t, maps]: of its best map m, the first of equals,
// if m > t, else background. Neither m nor its class c depend on t, so that a pixel counts once, by how many of the
// ascending thresholds are below m:
//
//   count[r][g][c] = #{pixels of truth g : #{j : m > t_j} = r, class c},   confusion[t_j][g][c + 1] = sum_{r > j} count
//
// Maps and thresholds are of one dtype and compared in it. Integers only: no order of the sums changes them.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct ThresholdSweep {
  const void* maps;        // [count, pixels]  dtype
  const int64_t* classes;  // [count]          0 to num_classes - 1
  const uint8_t* truth;    // [pixels]         0 background, v > 0 class v - 1, 255 ignored
  const void* thresholds;  // [steps]          dtype, ascending, no two equal, no NaN
  int64_t* confusion;      // [steps, num_classes + 1, num_classes + 1]  written, rows the truth
  int64_t* faults;         // [2]              written: how many values of maps are NaN, and the largest label of truth
                           //                  that is no class, else 0; with a fault the confusion means nothing
  int64_t count, pixels, steps, num_classes;  // num_classes <= 254
  DType dtype;                                // f16, f32 or f64
};

namespace cpu {
void threshold_sweep(const ThresholdSweep&, int threads);
}
namespace cuda {
// Returns null, or the text of the CUDA error.
const char* threshold_sweep(const ThresholdSweep&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
