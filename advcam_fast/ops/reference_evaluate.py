"""Confusion counts and contours in plain PyTorch. `advcam_fast.ops.reference` offers them under the ops' names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # of a truth


def threshold_sweep(
    maps: Tensor, classes: Tensor, truth: Tensor, thresholds: Sequence[float] | Tensor, num_classes: int
) -> Tensor:
    """Per threshold t the confusion of argmax over [t, maps] with the truth: see advcam_fast.ops.threshold_sweep."""
    sides = num_classes + 1
    known = truth != IGNORED
    steps = torch.as_tensor(thresholds, dtype=torch.float64, device=maps.device)
    refuse_steps(classes, steps, num_classes)
    wrong = truth[known & (truth > num_classes)]
    refuse_faults(int(maps.isnan().sum()), int(wrong.max()) if len(wrong) else 0, num_classes)
    names = F.pad(classes + 1, (1, 0))  # the background is 0
    counts = maps.new_zeros(len(steps), sides * sides, dtype=torch.int64)
    for count, step in zip(counts, steps.to(maps.dtype), strict=True):
        predicted = names[torch.cat([step.expand(1, *truth.shape), maps]).argmax(0)]
        count += torch.bincount(truth[known].long() * sides + predicted[known], minlength=sides * sides)
    return counts.view(-1, sides, sides)


def refuse_steps(classes: Tensor, thresholds: Tensor, num_classes: int) -> None:
    for value in classes.tolist():
        if not 0 <= value < num_classes:
            raise ValueError(f"classes: {value} came, wanted is 0 to {num_classes - 1}")
    if thresholds.isnan().any():
        raise ValueError("thresholds: NaN came, wanted are numbers")


def refuse_faults(nans: int, label: int, num_classes: int) -> None:
    """nans: how many values of the maps are NaN. label: the largest of the truth that is no class, else 0."""
    if nans:
        raise ValueError(f"maps: {nans} NaN came, wanted are numbers")
    if label:
        raise ValueError(f"truth: label {label} came, wanted is 0 to {num_classes}, or {IGNORED} for what is ignored")


def component_boxes(maps: Tensor, levels: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contours of maps > level, one level at a time: see advcam_fast.ops.component_boxes."""
    found = [contours(image > level) for image in maps for level in torch.as_tensor(levels).tolist()]
    boxes = torch.cat([maps.new_zeros(0, 4, dtype=torch.int64), *(box for box, _ in found)])
    areas = torch.cat([maps.new_zeros(0, dtype=torch.float64), *(area for _, area in found)])
    counts = torch.tensor([0, *(len(box) for box, _ in found)], device=maps.device)
    return boxes, areas, counts.cumsum(0)


def contours(foreground: Tensor) -> tuple[Tensor, Tensor]:
    """bool [H, W] -> boxes [N, 4], polygon areas [N], in OpenCV's order: outlines as cycles of cracks.

    A crack is a side of a foreground pixel with background beyond. Followed with the foreground on the right, the
    cracks left of, above, right of and below a pixel (directions 0 to 3) go up, right, down and left. Foreground pixels
    that touch by a corner are connected: there the crack turns left, about the background pixel, and cuts its corner.
    """
    flat = F.pad(foreground, (1, 1, 1, 1)).flatten()
    (height, width), line = foreground.shape, foreground.shape[1] + 2
    pixel = flat.nonzero()[:, 0]
    direction = torch.arange(4, device=flat.device)[:, None]
    beyond = torch.tensor([-1, -line, 1, line], device=flat.device)[:, None]
    ahead = beyond.roll(-1, 0)
    crack, left = ~flat[pixel + beyond], flat[pixel + beyond + ahead]  # [4, pixels]
    straight = ~left & flat[pixel + ahead]
    right = ~left & ~straight
    to = pixel + torch.where(left, beyond + ahead, torch.where(straight, ahead, 0))
    turned = (direction + torch.where(left, 3, torch.where(straight, 0, 1))) % 4
    number = torch.zeros(4 * len(flat), dtype=torch.int64, device=flat.device)
    number[(direction * len(flat) + pixel)[crack]] = torch.arange(int(crack.sum()), device=flat.device)
    following = number[(turned * len(flat) + to)[crack]]

    upright = torch.where(direction == 0, pixel, torch.where(direction == 2, pixel + 1, len(flat)))[crack]
    start, contour = _least_of_cycle(upright, following).unique(return_inverse=True)

    x, y = (t.expand(4, -1) for t in (pixel % line - 1, pixel // line - 1))
    shoelace = torch.where(direction == 2, x + 1.0, torch.where(direction == 0, -x, 0)).double()
    # the outline runs half a pixel within its cracks, and has one turn in all, to the right or to the left
    inset = -0.5 + left * 0.5 + (right.double() - left.double()) * 0.25
    area = torch.zeros(len(start), dtype=torch.float64, device=flat.device)
    area.index_add_(0, contour, (shoelace + inset)[crack])
    box = torch.stack(
        [_of(contour, t[crack], "amin") for t in (x, y)] + [_of(contour, t[crack] + 1, "amax") for t in (x, y)], 1
    )
    box[:, 2:].clamp_(max=torch.tensor([width - 1, height - 1], device=flat.device))

    vertical, owner = upright.sort()
    before = torch.searchsorted(vertical, start) - 1
    near = torch.where((before >= 0) & (vertical[before] // line == start // line), contour[owner[before]], -1)
    order = _tree_order(flat[start].tolist(), near.tolist())
    return box[order], area[order].abs()


def _least_of_cycle(value: Tensor, following: Tensor) -> Tensor:
    """Of each element the least value of its cycle under the permutation `following`, by doubling of steps."""
    least, before = value, None
    while before is None or not torch.equal(least, before):
        before, least, following = least, torch.minimum(least, least[following]), following[following]
    return least


def _of(group: Tensor, value: Tensor, reduce: str) -> Tensor:
    size = int(group.max()) + 1 if len(group) else 0
    return value.new_zeros(size).scatter_reduce(0, group, value, reduce, include_self=False)


def _tree_order(outer: list[bool], near: list[int]) -> list[int]:
    """Contours in raster order of where they start -> OpenCV's order: a parent before its children, the last one first.

    near: the contour that lies left of the start in its row, -1 for none. Of the other kind it is the parent, of the
    same kind it has the same parent.
    """
    parent: list[int] = []
    children: dict[int, list[int]] = {-1: []}
    for contour, neighbour in enumerate(near):
        other = neighbour < 0 or outer[neighbour] != outer[contour]
        parent.append(neighbour if other else parent[neighbour])
        children[parent[-1]].append(contour)
        children[contour] = []
    order, todo = [], list(children[-1])
    while todo:
        order.append(todo.pop())
        todo += children[order[-1]]
    return order
