"""The ops that follow pixels, in plain PyTorch; a part of reference.py, which says what these are for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _half_stencil(radius: int) -> list[tuple[int, int]]:
    """The offsets (dy, dx) nearer than `radius` that come after (0, 0) in raster order; the others mirror them."""
    reach = range(1 - radius, radius)
    return [(y, x) for y in range(radius) for x in reach if 0 < y * y + x * x < radius * radius and (y, x) > (0, 0)]


def _path(dy: int, dx: int) -> list[tuple[int, int]]:
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
    total = torch.ones_like(start[..., :1, :, :])
    for _, _, plane in both:
        total = total + plane

    def walk(state: Tensor, stretch: int) -> Tensor:
        for _ in range(stretch):
            at = _around(state, radius - 1)
            for dy, dx, plane in both:
                state = state + plane * at(dy, dx)
            state = (1 - restart) * (state / total) + restart * start
        return state

    if not (torch.is_grad_enabled() and (start.requires_grad or total.requires_grad)):
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
    for dy, dx in _half_stencil(radius):
        highest = torch.stack([wall(y, x) for y, x in _path(dy, dx)]).amax(0)
        affinity[dy, dx] = (1 - highest) ** beta * inside(dy, dx)
    return _walk(maps * (1 - boundary)[..., None, :, :], affinity, radius, steps, restart)


def color_walk(
    maps: Tensor,  # [..., N, h, w]
    images: Tensor,  # [..., C, h, w]
    radius: int = 5,
    sigma: float = 10.0,
    steps: int = 32,
    restart: float = 0.0,
) -> Tensor:  # [..., N, h, w]
    """maps, walked over A_ij = exp(-|c_i - c_j|^2 / (2 sigma^2))."""
    colors = images.to(maps.dtype)
    color, inside = _around(colors, radius - 1), _around(torch.ones_like(colors[..., 0, :, :]), radius - 1)
    affinity = {}
    for dy, dx in _half_stencil(radius):
        distance = (colors - color(dy, dx)).square().sum(-3)
        affinity[dy, dx] = torch.exp(distance / (-2 * sigma**2)) * inside(dy, dx)
    return _walk(maps, affinity, radius, steps, restart)
