"""The ops that follow pixels, in plain PyTorch; a part of reference.py, which says what these are for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def half_stencil(radius: int) -> list[tuple[int, int]]:
    """The offsets (dy, dx) nearer than `radius` that come after (0, 0) in raster order; the others mirror them."""
    reach = range(1 - radius, radius)
    return [(y, x) for y in range(radius) for x in reach if 0 < y * y + x * x < radius * radius and (y, x) > (0, 0)]


def path_between(dy: int, dx: int) -> list[tuple[int, int]]:
    """The pixels between (0, 0) and (dy, dx), both included, whose squared distance to the line is below 1."""
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if (y * dx - x * dy) ** 2 < dy * dy + dx * dx]


def _around(tensor: Tensor, margin: int) -> Callable[[int, int], Tensor]:
    """(dy, dx) -> what is at (y + dy, x + dx), at (y, x); zeros from outside."""
    height, width = tensor.shape[-2:]
    padded = F.pad(tensor, (margin,) * 4)
    return lambda dy, dx: padded[..., margin + dy : margin + dy + height, margin + dx : margin + dx + width]


def _walk(start: Tensor, affinity: dict[tuple[int, int], Tensor], radius: int, steps: int, restart: float) -> Tensor:
    """x_j <- (1 - restart) sum_i x_i A_ij / S_j + restart x0_j, with A of each half offset as a plane [..., h, w].

    Where autograd looks on, it keeps the states of every sqrt(steps)-th step alone, and makes the others again.
    """
    both: list[tuple[int, int, Tensor]] = []
    for (dy, dx), plane in affinity.items():
        both += [(dy, dx, plane[..., None, :, :]), (-dy, -dx, _around(plane, radius - 1)(-dy, -dx)[..., None, :, :])]
    others = torch.zeros_like(start[..., :1, :, :], dtype=torch.float64)  # an error here is made again by every step
    for _, _, plane in both:
        others = others + plane
    inverse, moving = (1 / (1 + others)).to(start.dtype), (others / (1 + others)).to(start.dtype)

    def walk(state: Tensor, stretch: int) -> Tensor:
        for _ in range(stretch):
            at, arrived = _around(state, radius - 1), torch.zeros_like(state)
            for dy, dx, plane in both:
                arrived = arrived + plane * at(dy, dx)
            state = state + (arrived * inverse - state * moving)  # (state + arrived) / S, with the error of what moves
            state = (1 - restart) * state + restart * start
        return state

    if not (torch.is_grad_enabled() and (start.requires_grad or inverse.requires_grad)):
        return walk(start, steps)
    state, stretch = start, max(1, math.isqrt(steps))
    for done in range(0, steps, stretch):
        state = checkpoint(walk, state, min(stretch, steps - done), use_reentrant=False)
    return state


def random_walk(
    maps: Tensor,  # [..., N, h, w]
    boundary: Tensor,  # [..., h, w], 0 to 1
    radius: int = 5,
    beta: float = 10.0,
    steps: int = 256,
    restart: float = 0.0,
) -> Tensor:  # [..., N, h, w]
    """maps (1 - boundary), walked over A_ij = (1 - max of the boundary on the path)^beta."""
    wall, inside = _around(boundary, radius - 1), _around(torch.ones_like(boundary), radius - 1)
    affinity = {}
    for dy, dx in half_stencil(radius):
        highest = torch.stack([wall(y, x) for y, x in path_between(dy, dx)]).amax(0)
        affinity[dy, dx] = (1 - highest) ** beta * inside(dy, dx)
    return _walk(maps * (1 - boundary)[..., None, :, :], affinity, radius, steps, restart)


def color_walk(
    maps: Tensor,  # [..., N, h, w]
    images: Tensor,  # [..., C, h, w]
    radius: int = 5,
    sigma: float = 7.0,
    steps: int = 128,
    restart: float = 0.0,
) -> Tensor:  # [..., N, h, w]
    """maps, walked over A_ij = exp(-|c_i - c_j|^2 / (2 sigma^2))."""
    colors = images.to(maps.dtype)
    color, inside = _around(colors, radius - 1), _around(torch.ones_like(colors[..., 0, :, :]), radius - 1)
    affinity = {}
    for dy, dx in half_stencil(radius):
        distance = (colors - color(dy, dx)).square().sum(-3)
        affinity[dy, dx] = torch.exp(distance / (-2 * sigma**2)) * inside(dy, dx)
    return _walk(maps, affinity, radius, steps, restart)


def centroid_walk(
    displacement: Tensor,  # [..., 2, h, w]: dy, dx
    steps: int = 300,
    threshold: float = 2.5,
) -> tuple[Tensor, Tensor]:
    """(centroids [..., 2, h, w], labels [..., h, w]): each pixel moved along the field, and its centre's component."""
    height, width = displacement.shape[-2:]
    if displacement.numel() == 0:
        return torch.empty_like(displacement), torch.zeros_like(displacement[..., 0, :, :], dtype=torch.int64)
    field = displacement.flatten(-2)  # [..., 2, pixels]
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")  # whole numbers: exact anywhere
    start = torch.stack(grid).flatten(1).to(displacement)
    y, x = (start[i].expand(field.shape[:-2] + field.shape[-1:]) for i in (0, 1))

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        place = rows.nan_to_num().long() * width + columns.nan_to_num().long()
        return field.gather(-1, place[..., None, :].expand_as(field))

    for _ in range(steps):
        up, across = (y - y.floor())[..., None, :], (x - x.floor())[..., None, :]
        by = at(y.ceil(), x.ceil()) * up * across + at(y.floor(), x.ceil()) * (1 - up) * across
        by = by + at(y.ceil(), x.floor()) * up * (1 - across)
        by = by + at(y.floor(), x.floor()) * (1 - up) * (1 - across)
        y, x = (y + by[..., 0, :]).clamp(0, height - 1), (x + by[..., 1, :]).clamp(0, width - 1)

    centroids = torch.stack([y, x], -2).unflatten(-1, (height, width))
    return centroids, labels_at(centroids, displacement, threshold)


def labels_at(centroids: Tensor, displacement: Tensor, threshold: float) -> Tensor:  # [..., h, w]
    """The component of weak displacement that each centroid, rounded, lies in."""
    width = displacement.shape[-1]
    weak = (displacement[..., 1, :, :].square() + displacement[..., 0, :, :].square()).sqrt() < threshold
    row, column = (centroids[..., i, :, :].nan_to_num().round().long() for i in (0, 1))
    numbers = _components(weak).flatten(-2).gather(-1, (row * width + column).flatten(-2)).view_as(row)
    return torch.where(centroids.isnan().any(-3), 0, numbers)


def _components(weak: Tensor) -> Tensor:  # bool [..., h, w] -> int64
    """The 4-connected components, numbered from 1 by their first pixels in raster order; 0 elsewhere."""
    height, width = weak.shape[-2:]
    index = torch.arange(height * width, device=weak.device).view(height, width)
    none = height * width
    least, before = torch.where(weak, index, none), None
    while before is None or not torch.equal(least, before):
        before = least
        around = F.pad(least, (1, 1, 1, 1), value=none)
        near = [around[..., 1:-1, :-2], around[..., 1:-1, 2:], around[..., :-2, 1:-1], around[..., 2:, 1:-1]]
        least = torch.where(weak, torch.stack([least, *near]).amin(0), none)
        # and what the pixel has that this index names
        flat = F.pad(least.flatten(-2), (0, 1), value=none)
        least = flat.gather(-1, least.flatten(-2)).unflatten(-1, (height, width))
    first = (least == index) & weak
    number = first.flatten(-2).cumsum(-1)
    named = number.gather(-1, least.flatten(-2).clamp(max=none - 1)).unflatten(-1, (height, width))
    return torch.where(weak, named, 0)
