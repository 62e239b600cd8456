"""Bootstrap over the images of a set of any size, in memory that does not grow with it.

Counts are summed in GROUPS groups, image number i of the set in group i mod GROUPS, and groups are drawn with
replacement: up to GROUPS images that is the ordinary bootstrap over images, beyond it the bootstrap over random groups.
The same draws serve everything that was measured on the same images, so that differences are paired.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast.metrics.foreground_iou import interval

GROUPS = 256
SAMPLES = 1000


class GroupSums:
    """Sums of tensors of one shape by groups of images."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> None:
        self.groups = torch.zeros(GROUPS, *shape, dtype=dtype)

    def of(self, number: int) -> Tensor:
        """The sum that image `number` of the set is to be added to, in place."""
        return self.groups[number % GROUPS]

    @property
    def total(self) -> Tensor:
        return self.groups.sum(0)

    def resampled(self, weights: Tensor, *index: int | slice) -> Tensor:
        """The sums of every sample of draw_weights, of the part at `index`: float64 [samples, ...]."""
        which = (slice(weights.shape[1]), *index)
        part = self.groups[which]
        return torch.tensordot(weights, part.double(), 1)


def draw_weights(images: int, samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """How often each group is drawn in each sample: float64 [samples, groups that have images]."""
    groups = min(images, GROUPS)
    draws = torch.randint(groups, (samples, groups), generator=torch.Generator().manual_seed(seed))
    offsets = groups * torch.arange(samples)[:, None]
    return torch.bincount((draws + offsets).flatten(), minlength=samples * groups).view(samples, groups).double()


def known_interval(samples: Tensor) -> tuple[float, float] | None:
    """The central 95 % of the samples that are numbers; None without any."""
    known = samples[~samples.isnan()]
    return interval(known) if len(known) else None
