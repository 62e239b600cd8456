// climb_loss: logit maps -> pair map, mask, scores, regularised objective and its gradient, in one call.
//
// A group is what the reductions run over: `members` consecutive items of the batch (2: an image and its mirror
// image; 1: no mirror). With c the group's target class, n a member, p a position, s(z) = relu(z) or z:
//
//   P_n     = #{p : z_c,n(p) > 0}
//   f_n     = P_n / (positive * sum_m P_m)                       (0 if no position is positive)
//   R(p)    = f_0 relu(z_c,0(p)) + f_1 relu(z_c,1(flip p))
//   M(p)    = 1[R(p) > tau * max R]                              (0 everywhere if max R = 0)
//   y_k,n   = mean_p s(z_k,n(p))
//   J       = sum_n sum_k w_k y_k,n  -  lambda * sum_p M(p) |R(p) - R0(p)|
//   dJ/dz_k,n(p) = w_k s'(z_k,n(p)) / (h w)  -  [k = c] lambda M(q) sign(R(q) - R0(q)) f_n 1[z_c,n(p) > 0]
//
// with q = p for member 0 and q = flip p for member 1. P, f and M carry no gradient. `positive` is at least 1.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace advcam {
struct ClimbLoss {
  const void* logit_map;    // [groups*members, classes, h*w] by the three strides below
  const int64_t* target;    // [groups]           column of the group's own class
  const void* weight;       // [groups, classes]  w: 1 for the target, -1 or 0 for the others; acc dtype
  const void* positive;     // [groups]           number of positive head weights of the target class; acc dtype
  const void* initial_map;  // [groups, h, w]     R0; acc dtype; null: R0 = R, the regulariser is 0
  void* pair_map;           // [groups, h, w]     R; acc dtype
  uint8_t* mask;            // [groups, h, w]     M
  void* score;              // [groups*members, classes]  y; acc dtype
  void* objective;          // [groups]           J; acc dtype
  void* gradient;           // like logit_map, same strides and dtype; null: not wanted
  DType dtype;              // of logit_map and gradient; acc dtype is f64 for f64, else f32
  int64_t groups, classes, height, width;
  int members;                                      // 1 or 2
  int64_t stride_item, stride_class, stride_pixel;  // elements; (stride_class, stride_pixel) = (h*w, 1) or (1, classes)
  double suppression, mask_threshold;               // lambda, tau
  bool rectify;                                     // s = relu (true) or the identity
};

namespace cpu {
void climb_loss(const ClimbLoss&, int threads);
}
namespace cuda {
// workspace is not used. Returns null, or the text of the CUDA error.
const char* climb_loss(const ClimbLoss&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
