"""component_boxes: the outlines of maps > level at every level, as boxes with the areas of their polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops import reference
from advcam_fast.ops.backend import backend_of, define, stream_of

GUESS = 8  # boxes a level


class ComponentBoxes(NamedTuple):
    """What component_boxes returns."""

    boxes: Tensor  # [M, 4], int64: x0 y0 x1 y1
    polygon_area: Tensor  # [M], float64
    offsets: Tensor  # [B * T + 1], int64: the boxes of levels[t] in maps[b] are offsets[b * T + t] to the next one


def _run(maps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if backend_of(maps.device.type) != "native":
        return reference.component_boxes(maps, levels)
    maps, levels = maps.contiguous(), levels.contiguous()
    offsets = levels.new_empty(len(maps) * len(levels) + 1)
    count = GUESS * (len(offsets) - 1)
    while True:
        boxes, areas = levels.new_empty(count, 4), maps.new_empty(count, dtype=torch.float64)
        NATIVE.component_boxes(
            maps, levels, boxes, areas, offsets, stream=stream_of(maps), num_threads=torch.get_num_threads()
        )
        capacity, count = count, int(offsets[-1])
        if count <= capacity:
            return boxes[:count].clone(), areas[:count].clone(), offsets


def _fake(maps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    offsets = levels.new_empty(maps.shape[0] * levels.shape[0] + 1)
    return levels.new_empty(count, 4), maps.new_empty(count, dtype=torch.float64), offsets


define("component_boxes", "(Tensor maps, Tensor levels) -> (Tensor, Tensor, Tensor)", _run, _fake)


def component_boxes(maps: Tensor, levels: Sequence[int] | Tensor) -> ComponentBoxes:
    """Boxes of the outlines of maps > level: of every component and of every hole, at every level.

    Foreground is 8-connected, background 4-connected. An outline runs over the centres of foreground pixels, that of a
    hole over those around it, so that a hole of one pixel has a box of 3x3 and the area 2. Boxes are x, y, x + w,
    y + h, clipped to the last column and row; polygon areas are those of cv2.contourArea.

    Within a level the outlines come in the order of cv2.findContours with RETR_TREE: each before those directly in it,
    and of those the one that starts last in raster order first. So argmax of a level's areas is the evaluators'
    largest outline.

    Args:
        maps: [B, H, W], uint8; sides of at most 32,767. levels: [T], 0 to 255, any list in any order.

    Returns:
        ComponentBoxes(boxes, polygon_area, offsets). Without a gradient. Under torch.compile the number of boxes is
        dynamic, as that of torch.nonzero is.

    Raises:
        TypeError, ValueError: dtype, shape or range do not fit.

    Source: Choe et al., CVPR 2020 (the common evaluator of WSOL); Suzuki and Abe, 1985 (outlines and their tree).
    """
    if maps.ndim != 3:
        raise ValueError(f"maps: shape {tuple(maps.shape)} came, wanted is [B, H, W]")
    if maps.dtype != torch.uint8:
        raise TypeError(f"maps: dtype {maps.dtype} came, wanted is torch.uint8")
    steps = torch.as_tensor(levels, device=maps.device)
    if steps.ndim != 1:
        raise ValueError(f"levels: shape {tuple(steps.shape)} came, wanted is [T]")
    if len(steps) and steps.dtype != torch.int64:
        raise TypeError(f"levels: dtype {steps.dtype} came, wanted is torch.int64")
    return ComponentBoxes(*torch.ops.advcam_fast.component_boxes(maps, steps.long()))
