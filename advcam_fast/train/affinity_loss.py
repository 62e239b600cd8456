"""The loss that teaches the affinity net from pairs of pixels of sure labels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from advcam_fast.errors import UsageError
from advcam_fast.ops.reference_walk import half_stencil, path_between

UNSURE = 255
_EPSILON = 1e-5  # IRN's, in its logarithms


class AffinityLosses(NamedTuple):
    """What affinity_loss returns: the total has the gradient, its parts are for the log."""

    total: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor
    foreground_displacement: Tensor
    background_displacement: Tensor


_Window = tuple[slice, ...]


class _Offset(NamedTuple):
    """All pairs (p, p + (dy, dx)) that lie in the map: windows of p, of its partner and of each pixel of the path."""

    dy: int
    dx: int
    source: _Window
    target: _Window
    path: tuple[_Window, ...]


class _Pairs(NamedTuple):
    """Which pairs of an offset are of one sure label, background or foreground, and which of two."""

    background: Tensor
    foreground: Tensor
    negative: Tensor


@lru_cache(maxsize=16)
def offsets(height: int, width: int, radius: int) -> tuple[_Offset, ...]:
    """The windows of every pair of a map that is nearer than `radius`, each unordered pair once."""
    found = []
    for dy, dx in half_stencil(radius):
        rows, columns, left = height - dy, width - abs(dx), max(0, -dx)
        if rows <= 0 or columns <= 0:
            continue

        def window(y: int, x: int, rows: int = rows, columns: int = columns, left: int = left) -> _Window:
            return (..., slice(y, y + rows), slice(left + x, left + x + columns))  # type: ignore[return-value]

        path = tuple(window(y, x) for y, x in path_between(dy, dx))
        found.append(_Offset(dy, dx, window(0, 0), window(dy, dx), path))
    return tuple(found)


def _pairs(labels: Tensor, offset: _Offset) -> _Pairs:
    source, target = labels[offset.source], labels[offset.target]
    equal, sure = source == target, (source != UNSURE) & (target != UNSURE)
    return _Pairs(equal & (source == 0), equal & sure & (source != 0), sure & ~equal)


def _highest(boundary: Tensor, offset: _Offset) -> tuple[Tensor, Tensor]:
    """The greatest boundary on each path, and the path's first pixel that has it."""
    highest = boundary[offset.path[0]].clone()
    place = torch.zeros_like(highest, dtype=torch.uint8)
    for step, window in enumerate(offset.path[1:], 1):
        here = boundary[window]
        place.masked_fill_(here > highest, step)
        torch.maximum(highest, here, out=highest)
    return highest, place


class _Loss(torch.autograd.Function):
    """Makes the gradient with the value, offset by offset: all pairs at once would take gigabytes.

    A pair has a part in one mean only, so one plane of gradients serves all of them.
    """

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> tuple[Tensor, ...]:
        table = offsets(*labels.shape[-2:], radius)
        steps = torch.tensor([(offset.dy, offset.dx) for offset in table]).view(-1, 2, 1, 1).to(displacement)
        counts = boundary.new_zeros(3, dtype=torch.float64)
        for offset in table:
            counts += torch.stack([kind.sum() for kind in _pairs(labels, offset)])
        share = 1 / counts.clamp(min=1)  # of one pair in its mean: [background, foreground, negative]
        slope, field_slope = torch.zeros_like(boundary), torch.zeros_like(displacement)
        sums = boundary.new_zeros(5, dtype=torch.float64)
        for offset, step_of_pair in zip(table, steps, strict=True):
            pairs = _pairs(labels, offset)
            highest, place = _highest(boundary, offset)
            sums[:3] += _affinity_sums(highest, pairs)
            by_highest = _affinity_slope(highest, pairs, share)
            for step, window in enumerate(offset.path):
                slope[window] += torch.where(place == step, by_highest, 0)
            sums[3:] += _add_displacement(displacement, offset, step_of_pair, pairs, share, field_slope)
        parts = sums * torch.stack([*share, share[1] / 2, share[0] / 2])  # of a displacement, two coordinates
        total = (parts[0] + parts[1]) / 4 + (parts[2] + parts[3] + parts[4]) / 2
        ctx.save_for_backward(slope, field_slope)
        losses = (total.to(boundary.dtype), *parts.to(boundary.dtype))
        ctx.mark_non_differentiable(*losses[1:])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        slope, field_slope = ctx.saved_tensors
        return gradient * slope, gradient * field_slope, None, None


def _affinity_sums(highest: Tensor, pairs: _Pairs) -> Tensor:  # [3]
    same, other = -(1 + _EPSILON - highest).log(), -(highest + _EPSILON).log()
    values = zip(pairs, (same, same, other), strict=True)
    return torch.stack([torch.where(kind, value, 0).sum(dtype=torch.float64) for kind, value in values])


def _affinity_slope(highest: Tensor, pairs: _Pairs, share: Tensor) -> Tensor:
    """The total by the greatest boundary of each path."""
    background, foreground, negative = share.to(highest.dtype)
    same = pairs.background * (background / 4) + pairs.foreground * (foreground / 4)
    return same / (1 + _EPSILON - highest) - pairs.negative * (negative / 2) / (highest + _EPSILON)


def _add_displacement(
    field: Tensor, offset: _Offset, step: Tensor, pairs: _Pairs, share: Tensor, slope: Tensor
) -> Tensor:  # [foreground, background]
    """Adds the total's slope of one offset, and returns its sums of |d_p - d_q - (q - p)| and |d_p - d_q|."""
    difference = field[offset.source] - field[offset.target]
    sums = []
    for kind, weight, apart in (
        (pairs.foreground, share[1], difference - step),
        (pairs.background, share[0], difference),
    ):
        error = torch.where(kind[..., None, :, :], apart, 0)
        sums.append(error.abs().sum(dtype=torch.float64))
        pull = error.sign() * (weight / 4).to(error.dtype)
        slope[offset.source] += pull
        slope[offset.target] -= pull
    return torch.stack(sums)


def affinity_loss(boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int = 10) -> AffinityLosses:
    """How badly boundary and displacement explain the pairs of sure labels, each kind averaged over its own pairs.

    For the pairs p, q nearer than `radius`, once each, m = max of the boundary on the path of random_walk, a = 1 - m:

        background, foreground: -log(a + 1e-5), pairs of label 0, of one other label; negative: -log(1 + 1e-5 - a)
        foreground_displacement: |d_p - d_q - (q - p)| / 2, background_displacement: |d_p - d_q| / 2, coordinates summed
        total = (background / 2 + foreground / 2 + negative) / 2 + (both displacements) / 2

    Args:
        boundary: [B, h, w], float32 or float64, a probability, 0 to 1 (not seen to: it would cost a synchronisation).
        displacement: [B, 2, h, w] in that dtype, dy and dx in pixels.
        labels: uint8 [B, h, w]; 255 is unsure and has no pairs. A kind without pairs is 0.
        radius: 2 to 64, in pixels.

    Returns:
        AffinityLosses, each []. Only the total has a gradient, and that has none; of equal maxima on a path the first
        takes it. Same bits in every run on a device.

    Raises:
        UsageError: dtype, shape, device or range do not fit.

    Source: Ahn et al., CVPR 2019 (IRN); its code leaves out pairs whose first pixel is near the border of a crop.
    """
    size = labels.shape
    if labels.dtype != torch.uint8 or labels.ndim != 3:
        raise UsageError(f"labels: {labels.dtype} {list(size)} came, wanted is torch.uint8 [B, h, w]")
    wanted = {"boundary": (boundary, size), "displacement": (displacement, (size[0], 2, *size[1:]))}
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise UsageError(f"{name}: shape {list(tensor.shape)} came, wanted is {list(shape)} as labels have it")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != boundary.dtype:
            raise UsageError(f"{name}: {tensor.dtype} came, wanted is float32 or float64, one for both maps")
        if tensor.device != labels.device:
            raise UsageError(f"{name} is on {tensor.device}, labels are on {labels.device}; wanted is one device")
    if not 2 <= radius <= 64:
        raise UsageError(f"radius: {radius} came, wanted is 2 to 64")
    return AffinityLosses(*_Loss.apply(boundary, displacement, labels, radius))
