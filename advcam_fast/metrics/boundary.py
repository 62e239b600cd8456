"""Boundary IoU: how well the outlines lie on one another, where IoU is ruled by the insides."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DILATION_RATIO = 0.02  # of the image's diagonal: how wide the band along an outline is


def band_width(height: int, width: int) -> int:
    """In pixels: max(1, round(0.02 · diagonal)). Source: Cheng et al., CVPR 2021."""
    return max(1, round(DILATION_RATIO * math.sqrt(height**2 + width**2)))


def eroded(levels: Tensor, reach: int) -> Tensor:
    """The least value within `reach` of each pixel, along rows and columns, where outside the image is 0.

    Of a mask that is what is left of it when `reach` pixels are taken off its outline; of levels it is that for every
    level at once. levels [H, W], not negative.
    """
    window = 2 * reach + 1
    for dim in (0, 1):
        padding = (reach, reach, 0, 0) if dim else (0, 0, reach, reach)
        levels = F.pad(levels, padding)
        span = 1  # each value is the least of so many; spans are doubled, then brought to the window
        while span < window:
            step = min(span, window - span)
            length = levels.shape[dim] - step
            levels = torch.minimum(levels.narrow(dim, 0, length), levels.narrow(dim, step, length))
            span += step
    return levels


def boundary_counts(ranks: Tensor, inside: Tensor, steps: int) -> Tensor:
    """Pixels of the bands along the outlines of {ranks > j} and of `inside`, for j = 0 .. steps − 1, and in both.

        band(M) = M minus M eroded by max(1, round(0.02 · diagonal)) pixels;  boundary IoU = both / (one + other − both)

    ranks: not negative, [H, W]; inside: bool [H, W]. Returns int64 [steps, 3]: in both, of the ranks, of inside.
    Source: Cheng et al., CVPR 2021.
    """
    reach = band_width(*ranks.shape)
    inner = eroded(ranks, reach)
    band = inside & (eroded(inside.to(torch.uint8), reach) == 0)
    both = _above(ranks[band], steps) - _above(inner[band], steps)
    own = _above(ranks.flatten(), steps) - _above(inner.flatten(), steps)
    return torch.stack([both, own, band.sum().expand(steps)], 1)


def _above(ranks: Tensor, steps: int) -> Tensor:
    """#{ranks > j} for j = 0 .. steps − 1."""
    counts = torch.bincount(ranks, minlength=steps + 1)
    return counts.flip(0).cumsum(0).flip(0)[1 : steps + 1]
