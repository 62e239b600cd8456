"""Training crops of labelled images: the same whenever and wherever they are made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from advcam_fast.data import resize_image
from advcam_fast.errors import UsageError

UNSURE = 255
_STRIDE = 4


class LabelledImages(Protocol):
    """What is trained on: data[i] is (uint8 [3, H, W], labels uint8 [H, W] with 255 for unsure) for i < len(data)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """crops[epoch, i]: image i scaled by a number drawn from `scales`, perhaps mirrored, cut to [side, side].

    Returns normalised floats [3, side, side], 0 (the mean colour) where no image is, and labels uint8 at stride 4
    [ceil(side / 4), ceil(side / 4)], 255 where no image is. An image smaller than the crop lies anywhere in it.
    What is drawn depends on (seed, epoch, i) alone, so neither a resumed run nor the number of workers changes it.
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
    ) -> None:
        self.data, self.normalise, self.side = data, normalise, side
        self.scales, self.mirror, self.seed = scales, mirror, seed

    def __getitem__(self, place: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        epoch, index = place
        image, labels = self.data[index]
        _check(index, image, labels)
        top = left = 0
        if epoch is not None:
            draw = np.random.default_rng([self.seed, epoch, index])
            image = resize_image(image, draw.uniform(*self.scales))
            labels = F.interpolate(labels[None, None], image.shape[1:], mode="nearest-exact")[0, 0]
            if draw.random() < 0.5 and self.mirror:
                image, labels = image.flip(-1), labels.flip(-1)
            top, left = (_start(draw, size - self.side) for size in labels.shape)
        crop = _cut(self.normalise(image), self.side, top, left, 0.0)
        return crop, self._coarse(_cut(labels, self.side, top, left, UNSURE))

    def _coarse(self, labels: Tensor) -> Tensor:
        """The pixel right below the middle of each 4 x 4 cell, as Pillow's nearest one."""
        places = torch.arange(_STRIDE // 2, self.side + _STRIDE // 2, _STRIDE).clamp(max=self.side - 1)
        return labels[places][:, places]


class Batches:
    """Lists of (epoch, index) from step `first` on: each epoch's own order of the images, a last part left out.

    With fewer images than a batch takes, the batch is all of them. Iterating again starts at `first` again.
    """

    def __init__(self, count: int, batch: int, epochs: int, seed: int, first: int = 0) -> None:
        self.count, self.batch, self.epochs, self.seed, self.first = count, min(batch, count), epochs, seed, first
        self.per_epoch = count // self.batch

    def __len__(self) -> int:
        return self.per_epoch * self.epochs - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first, self.per_epoch * self.epochs):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            start = step % self.per_epoch * self.batch
            yield [(epoch, int(index)) for index in order[start : start + self.batch]]


def stack(crops: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*crops, strict=True)
    return torch.stack(images), torch.stack(labels)


def _start(draw: np.random.Generator, spare: int) -> int:
    """Where a crop starts in a side that is `spare` longer, or, below 0, where the image starts in the crop."""
    return int(draw.integers(spare + 1)) if spare >= 0 else -int(draw.integers(1 - spare))


def _cut(tensor: Tensor, side: int, top: int, left: int, filling: float) -> Tensor:
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (-left, side + left - width, -top, side + top - height), value=filling)  # below 0 it cuts


def _check(index: int, image: Tensor, labels: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise UsageError(f"image {index} is {image.dtype} {list(image.shape)}; wanted torch.uint8 [3, H, W]")
    if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
        wanted = f"torch.uint8 {list(image.shape[1:])} as its image"
        raise UsageError(f"labels of image {index} are {labels.dtype} {list(labels.shape)}; wanted {wanted}")
