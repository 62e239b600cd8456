"""Pairs of views of different sizes in one tensor: in the image, and in the logit maps of their features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advcam_fast.models import FrozenFeatures
from advcam_fast.models.ragged import Size, inside, within

SHAPE_STEP = 16  # sides of a canvas are multiples: few shapes, for each of which kernels are chosen


class Canvas:
    """How some pairs lie in one batch, each at the place that gives it the features of its own run.

    sizes: rows and columns of each pair's view. Raises Unplaceable for one that the network cannot take.
    """

    def __init__(self, features: FrozenFeatures, sizes: Sequence[Size], members: int, device: torch.device) -> None:
        self.features, self.sizes, self.members, self.device = features, sizes, members, device
        self.frame = features.frame([size for size in sizes for _ in range(members)], device)
        regions = self.frame.of(self.frame.output)
        assert regions is not None
        self.regions = regions  # of the features, all at the top left
        self._positions = torch.tensor([r.height * r.width for r in regions[::members]]).to(device)
        self._places: dict[Size, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def of(self, pairs: Sequence[int]) -> Canvas:
        """The canvas of some of the pairs, in this order; images of this one are laid out for it too."""
        return Canvas(self.features, [self.sizes[pair] for pair in pairs], self.members, self.device)

    @property
    def map_sizes(self) -> tuple[Size, ...]:
        """Rows and columns of each pair's maps."""
        return tuple((r.height, r.width) for r in self.regions[:: self.members])

    def image(self, views: Sequence[Tensor]) -> Tensor:
        """Each view [3, H, W] and its mirror image: channels-last [P * members, 3, H', W'].

        Around them is a pixel of the view itself, so that neither its extrema nor what is climbed see anything new.
        """
        height, width = (-(-side // SHAPE_STEP) * SHAPE_STEP for side in self.frame.canvas())
        shape = (len(views) * self.members, 3, height, width)
        canvas = torch.empty(shape, dtype=views[0].dtype, device=views[0].device, memory_format=torch.channels_last)
        places = self.frame.of(0)
        assert places is not None
        for item, place in enumerate(places):
            view = views[item // self.members]
            canvas[item] = view[:, :1, :1]
            within(canvas[item], place).copy_(view.flip(-1) if item % self.members else view)
        return canvas

    def aligned(self, logits: Tensor) -> Tensor:
        """Logit maps as climb_loss compares them: a mirror image's maps at the right edge, and zeros around."""
        _, kept, there, _ = self._placed(logits)
        return _moved(logits, there, kept)

    def returned(self, gradient: Tensor) -> Tensor:
        """The gradient of `aligned` logit maps, where the network had them."""
        own, _, _, back = self._placed(gradient)
        return _moved(gradient, back, own)

    def mean_weight(self, weight: Tensor, logits: Tensor) -> Tensor:
        """[P, C] weights of means over the whole canvas -> of means over each pair's own positions."""
        return weight * (logits.shape[2] * logits.shape[3] / self._positions.to(weight.dtype))[:, None]

    def _placed(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inside [B, h, w] before and after the mirror images are moved, and the rows [B * h * w] that come there."""
        height, width = logits.shape[2:]
        if (height, width) not in self._places:
            moved = [
                region._replace(left=width - region.width) if item % self.members else region
                for item, region in enumerate(self.regions)
            ]
            shift = torch.tensor([region.left for region in moved]).to(self.device)[:, None, None]
            rows = torch.arange(len(moved) * height * width, device=self.device).view(-1, height, width)
            own, kept = (inside(places, (height, width), self.device) for places in (self.regions, moved))
            there, back = torch.where(kept, rows - shift, 0).flatten(), torch.where(own, rows + shift, 0).flatten()
            self._places[height, width] = own, kept, there, back
        return self._places[height, width]


def _moved(maps: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """maps[rows] where kept, else 0; [B, C, h, w] in rows of channels."""
    channels_last = maps.permute(0, 2, 3, 1)  # [B, h, w, C]
    moved = channels_last.flatten(0, 2)[rows].view(channels_last.shape).masked_fill_(~kept[..., None], 0)
    return moved.permute(0, 3, 1, 2)
