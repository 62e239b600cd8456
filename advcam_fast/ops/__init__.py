"""Every kernel, usable alone. One stem names an op in csrc/, here, in tests/ops/ and in the benchmarks."""

from advcam_fast.ops.cam_accumulate import cam_accumulate
from advcam_fast.ops.centroid_walk import CentroidWalk, centroid_walk
from advcam_fast.ops.climb_loss import ClimbLoss, climb_loss
from advcam_fast.ops.climb_step import climb_step
from advcam_fast.ops.color_walk import color_walk
from advcam_fast.ops.component_boxes import ComponentBoxes, component_boxes
from advcam_fast.ops.dense_crf import dense_crf, hard_unary
from advcam_fast.ops.masked_relu import masked_relu, masked_relu_backward
from advcam_fast.ops.random_walk import random_walk
from advcam_fast.ops.threshold_sweep import threshold_sweep

__all__ = [
    "CentroidWalk",
    "ClimbLoss",
    "ComponentBoxes",
    "cam_accumulate",
    "centroid_walk",
    "climb_loss",
    "climb_step",
    "color_walk",
    "component_boxes",
    "dense_crf",
    "hard_unary",
    "masked_relu",
    "masked_relu_backward",
    "random_walk",
    "threshold_sweep",
]
