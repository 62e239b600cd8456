"""threshold_sweep: the confusion of an image's maps with its truth at every threshold, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops import reference
from advcam_fast.ops.backend import backend_of, define, stream_of

DTYPES = (torch.float16, torch.float32, torch.float64)
MOST_CLASSES = 254


def _run(maps: Tensor, classes: Tensor, truth: Tensor, thresholds: Tensor, num_classes: int) -> Tensor:
    if backend_of(maps.device.type) != "native":
        return reference.threshold_sweep(maps, classes, truth, thresholds, num_classes)
    reference.refuse_steps(classes, thresholds, num_classes)
    distinct, place = thresholds.to(maps).unique(return_inverse=True)
    confusion = maps.new_empty(len(distinct), num_classes + 1, num_classes + 1, dtype=torch.int64)
    faults = maps.new_empty(2, dtype=torch.int64)
    NATIVE.threshold_sweep(
        maps.contiguous(),
        classes.contiguous(),
        truth.contiguous(),
        distinct,
        confusion,
        faults,
        num_classes,
        stream=stream_of(maps),
        num_threads=torch.get_num_threads(),
    )
    nans, label = faults.tolist()
    reference.refuse_faults(nans, label, num_classes)
    return confusion[place]


def _fake(maps: Tensor, classes: Tensor, truth: Tensor, thresholds: Tensor, num_classes: int) -> Tensor:
    return maps.new_empty(len(thresholds), num_classes + 1, num_classes + 1, dtype=torch.int64)


define(
    "threshold_sweep",
    "(Tensor maps, Tensor classes, Tensor truth, Tensor thresholds, int num_classes) -> Tensor",
    _run,
    _fake,
)


def threshold_sweep(
    maps: Tensor, classes: Tensor, truth: Tensor, thresholds: Sequence[float] | Tensor, num_classes: int
) -> Tensor:
    """Confusion counts of an image at every threshold, in one pass over its maps.

    At threshold t a pixel is predicted to be argmax over [t, maps]: background where no map is above t, else the class
    of the best map; a tie goes to background, then to the first map. The counts of images and of processes add up.

    Args:
        maps: [n, H, W], float16, float32 or float64; n may be 0. Compared in this dtype, to which the thresholds are
            rounded as NumPy does.
        classes: [n], int64, 0 to num_classes - 1.
        truth: [H, W], uint8: 0 background, v > 0 class v - 1, 255 ignored.
        thresholds: [T], any list in any order.
        num_classes: C, at most 254.

    Returns:
        [T, C + 1, C + 1], int64: rows the truth, columns the prediction, 0 the background. Exact for any number of
        threads. Without a gradient.

    Raises:
        TypeError, ValueError: dtype, shape or range do not fit; a NaN among maps or thresholds; a label of truth that
            is no class.

    Source: the evaluation of seeds in Ahn et al., CVPR 2019 (IRN), which AdvCAM shares.
    """
    if maps.ndim != 3 or truth.shape != maps.shape[1:]:
        raise ValueError(
            f"maps, truth: shapes {tuple(maps.shape)} and {tuple(truth.shape)} came, wanted are [n, H, W] and [H, W]"
        )
    if classes.shape != maps.shape[:1]:
        raise ValueError(f"classes: shape {tuple(classes.shape)} came, wanted is ({len(maps)},), one a map")
    for name, tensor, dtypes in (
        ("maps", maps, DTYPES),
        ("classes", classes, (torch.int64,)),
        ("truth", truth, (torch.uint8,)),
    ):
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name}: dtype {tensor.dtype} came, wanted is {' or '.join(map(str, dtypes))}")
    if not 0 <= num_classes <= MOST_CLASSES:
        raise ValueError(f"num_classes: {num_classes} came, wanted is 0 to {MOST_CLASSES}")
    steps = torch.as_tensor(thresholds, dtype=torch.float64).to(maps.device)
    if steps.ndim != 1:
        raise ValueError(f"thresholds: shape {tuple(steps.shape)} came, wanted is [T]")
    return torch.ops.advcam_fast.threshold_sweep(maps.detach(), classes, truth, steps, num_classes)
