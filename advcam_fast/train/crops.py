"""Training crops of labelled images: the same whenever and wherever they are made again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from advcam_fast.data import resize_image
from advcam_fast.train.cutting import UNSURE, LabelledImages, check_labelled, crop_start, cut

_STRIDE = 4


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """crops[epoch, i]: image i scaled by a number drawn from `scales`, perhaps mirrored, cut to [side, side].

    Returns normalised floats [3, side, side], 0 (the mean colour) where no image is, and labels uint8 at `stride`
    [ceil(side / stride), ceil(side / stride)], 255 where no image is. An image smaller than the crop lies anywhere in
    it. What is drawn depends on (seed, epoch, i) alone, so neither a resumed run nor the number of workers changes it.
    epoch None: image i as it is, cut at its top left. Raises UsageError for an item that is no labelled image.
    """

    def __init__(
        self,
        data: LabelledImages,
        normalise: Callable[[Tensor], Tensor],
        side: int,
        scales: tuple[float, float] = (0.5, 1.5),
        mirror: bool = True,
        seed: int = 0,
        stride: int = _STRIDE,
    ) -> None:
        self.data, self.normalise, self.side, self.stride = data, normalise, side, stride
        self.scales, self.mirror, self.seed = scales, mirror, seed

    def __getitem__(self, place: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        epoch, index = place
        image, labels = self.data[index]
        check_labelled(index, image, labels)
        top = left = 0
        if epoch is not None:
            draw = np.random.default_rng([self.seed, epoch, index])
            image = resize_image(image, draw.uniform(*self.scales))
            labels = F.interpolate(labels[None, None], image.shape[1:], mode="nearest-exact")[0, 0]
            if draw.random() < 0.5 and self.mirror:
                image, labels = image.flip(-1), labels.flip(-1)
            top, left = (crop_start(draw, size - self.side) for size in labels.shape)
        crop = cut(self.normalise(image), self.side, top, left, 0.0)
        return crop, self._coarse(cut(labels, self.side, top, left, UNSURE))

    def _coarse(self, labels: Tensor) -> Tensor:
        """The pixel right below the middle of each cell, as Pillow's nearest one."""
        half = self.stride // 2
        places = torch.arange(half, self.side + half, self.stride).clamp(max=self.side - 1)
        return labels[places][:, places]
