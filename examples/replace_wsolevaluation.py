"""Boxes and MaxBoxAcc without a thousand contour calls a map: `python examples/replace_wsolevaluation.py`.

The common evaluator of weakly supervised localisation thresholds a map at 1,000 levels and calls cv2.findContours at
each. A map of bytes has 256 of them; component_boxes finds the boxes of all in one sweep, the same in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast import ops

LEVELS = torch.arange(256)


def largest_boxes(maps: Tensor) -> Tensor:
    """float [B, H, W] from 0 to 1 -> the box of the largest outline at every level, int64 [B, 256, 4], x0 y0 x1 y1.

    A level that nothing is above has the box 0 0 0 0.
    """
    found = ops.component_boxes((maps * 255).to(torch.uint8), LEVELS)
    boxes = torch.zeros(len(maps) * len(LEVELS), 4, dtype=torch.int64)
    for at, (start, end) in enumerate(zip(found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True)):
        if end > start:
            boxes[at] = found.boxes[start + int(found.polygon_area[start:end].argmax())]
    return boxes.view(len(maps), len(LEVELS), 4)


def box_iou(found: Tensor, truth: Tensor) -> Tensor:
    """Of boxes [..., 4] whose last column and row belong to them, as the evaluator has it."""
    low, high = torch.maximum(found[..., :2], truth[..., :2]), torch.minimum(found[..., 2:], truth[..., 2:])
    inner = (high - low + 1).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (found, truth)]
    return inner / (areas[0] + areas[1] - inner)


def max_box_acc(maps: Tensor, truth: Tensor, iou: float = 0.5) -> float:
    """The share of images whose box overlaps the true one [B, 4] by `iou`, at the level that is best for the set."""
    return (box_iou(largest_boxes(maps), truth[:, None]) >= iou).double().mean(0).max().item()


if __name__ == "__main__":
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    maps = torch.stack([torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 200) for cx, cy in ((20, 30), (40, 25))])
    truth = torch.tensor([[10, 20, 30, 40], [30, 15, 50, 35]])
    print("MaxBoxAcc at IoU .5:", max_box_acc(maps, truth), "at .9:", max_box_acc(maps, truth, 0.9))
