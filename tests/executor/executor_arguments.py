"""The arguments of the CUDA launchers as ctypes has them, field by field as in csrc/*.h."""

from __future__ import annotations

import ctypes

MAX_SCALES = 8  # of csrc/cam_accumulate.h


class ClimbStepArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("image", "gradient", "network_input", "gradient_max")),
        *((name, ctypes.c_int) for name in ("image_dtype", "gradient_dtype", "network_dtype")),
        *((name, ctypes.c_int64) for name in ("groups", "n")),
        ("step", ctypes.c_double),
    ]


class ClimbLossArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logit_map", "target", "weight", "positive", "initial_map")),
        *((name, ctypes.c_void_p) for name in ("pair_map", "mask", "score", "objective", "gradient")),
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("groups", "classes", "height", "width")),
        ("members", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("stride_item", "stride_class", "stride_pixel")),
        *((name, ctypes.c_double) for name in ("suppression", "mask_threshold")),
        ("rectify", ctypes.c_bool),
    ]


class CamAccumulateArguments(ctypes.Structure):
    _fields_ = [
        ("map", ctypes.c_void_p * MAX_SCALES),
        ("map_height", ctypes.c_int64 * MAX_SCALES),
        ("map_width", ctypes.c_int64 * MAX_SCALES),
        ("scales", ctypes.c_int),
        ("total", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "height", "width", "rows", "columns")),
        ("dtype", ctypes.c_int),
        ("normalise", ctypes.c_bool),
    ]


class MaskedReluArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "bias", "residual", "valid", "bits")),
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("rows", "channels")),
        ("ceiling", ctypes.c_double),
    ]


class MaskedReluBackwardArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gradient", "bits")),
        ("dtype", ctypes.c_int),
        ("n", ctypes.c_int64),
    ]


class Pooling(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "rows", "columns")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
    ]


class MaxPoolArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "at")),
        ("dtype", ctypes.c_int),
        ("pooling", Pooling),
    ]


class MaxPoolBackwardArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gradient", "at", "x_gradient")),
        ("dtype", ctypes.c_int),
        ("pooling", Pooling),
    ]


class RandomWalkArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("maps", "guide", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "labels", "height", "width", "channels", "radius", "steps")),
        *((name, ctypes.c_double) for name in ("scale", "restart")),
        ("dtype", ctypes.c_int),
        ("color", ctypes.c_bool),
    ]


class CentroidWalkArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("displacement", "centroids", "labels")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "steps")),
        ("threshold", ctypes.c_double),
        ("dtype", ctypes.c_int),
    ]


class DenseCrfArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("images", "unary", "probability")),
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "sets", "labels", "height", "width", "steps")),
        *((f"gaussian_{name}", ctypes.c_float) for name in ("sxy", "weight")),
        *((f"bilateral_{name}", ctypes.c_float) for name in ("sxy", "srgb", "weight")),
    ]


class ThresholdSweepArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("maps", "classes", "truth", "thresholds", "confusion", "faults")),
        *((name, ctypes.c_int64) for name in ("count", "pixels", "steps", "num_classes")),
        ("dtype", ctypes.c_int),
    ]


class ComponentBoxesArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("maps", "levels", "boxes", "areas", "offsets")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "steps", "capacity")),
    ]


ARGUMENTS = {  # in the order of argument_bytes in launchers.cpp
    "climb_step": ClimbStepArguments,
    "climb_loss": ClimbLossArguments,
    "cam_accumulate": CamAccumulateArguments,
    "masked_relu": MaskedReluArguments,
    "masked_relu_backward": MaskedReluBackwardArguments,
    "max_pool": MaxPoolArguments,
    "max_pool_backward": MaxPoolBackwardArguments,
    "random_walk": RandomWalkArguments,
    "centroid_walk": CentroidWalkArguments,
    "dense_crf": DenseCrfArguments,
    "threshold_sweep": ThresholdSweepArguments,
    "component_boxes": ComponentBoxesArguments,
}
