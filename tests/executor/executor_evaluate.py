"""threshold_sweep and component_boxes on the CPU executor: their arguments, and calls with memory that is poisoned."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from executor_arguments import ComponentBoxesArguments, ThresholdSweepArguments
from torch import Tensor

if TYPE_CHECKING:
    from executor_kernels import Kernels

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 3}  # as in csrc/dtype.h
POISON = -(2**40) - 7


def threshold_sweep(
    kernels: Kernels,
    maps: Tensor,  # [n, H, W]
    classes: Tensor,  # [n]
    truth: Tensor,  # [H, W]
    thresholds: Tensor,  # [T], ascending, of the dtype of maps
    num_classes: int,
    device: int = 0,
) -> tuple[Tensor, Tensor]:  # [T, C + 1, C + 1], [2]
    confusion = torch.full((len(thresholds), num_classes + 1, num_classes + 1), POISON)
    faults = torch.full((2,), POISON)
    tensors = {"maps": maps, "classes": classes, "truth": truth, "thresholds": thresholds}
    arguments = ThresholdSweepArguments(
        **{name: t.data_ptr() for name, t in (tensors | {"confusion": confusion, "faults": faults}).items()},
        count=len(maps),
        pixels=truth.numel(),
        steps=len(thresholds),
        num_classes=num_classes,
        dtype=DTYPES[maps.dtype],
    )
    counters = torch.full(((num_classes + 1) * max(1, len(maps)) * (len(thresholds) + 1),), POISON)
    kernels.run("threshold_sweep", arguments, counters, device)
    return confusion, faults


def component_boxes(
    kernels: Kernels,
    maps: Tensor,  # [B, H, W]
    levels: Tensor,  # [T]
    capacity: int,
    device: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # [capacity, 4], [capacity], [B * T + 1]
    boxes, areas = torch.full((capacity, 4), POISON), torch.full((capacity,), float("nan"), dtype=torch.float64)
    offsets = torch.full((len(maps) * len(levels) + 1,), POISON)
    tensors = {"maps": maps, "levels": levels, "boxes": boxes, "areas": areas, "offsets": offsets}
    arguments = ComponentBoxesArguments(
        **{name: t.data_ptr() for name, t in tensors.items()},
        **dict(zip(("batch", "height", "width"), maps.shape, strict=True)),
        steps=len(levels),
        capacity=capacity,
    )
    size = kernels.library.component_boxes_workspace(ctypes.byref(arguments))
    kernels.run("component_boxes", arguments, torch.full((size,), -(2**30) - 7, dtype=torch.int32), device)
    return boxes, areas, offsets
