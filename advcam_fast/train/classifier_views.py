"""What a classifier in training sees of tagged images: the same whenever and wherever it is made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from advcam_fast.data import ImageError, resize_image
from advcam_fast.train.classifier_config import ClassifierConfig
from advcam_fast.train.cutting import check_image, crop_start, cut

_LONGEST = 4096  # no image is enlarged beyond this when it is judged


class TaggedImages(Protocol):
    """What is trained on: data[i] is (uint8 [3, H, W], class indices) for i < len(data); ImageError if it cannot be."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Sequence[int]]: ...


class View(NamedTuple):
    """Image `number` for a network: [3, h, w], its classes as 0 and 1 [C]; or, of weight 0, why there is none."""

    image: Tensor
    classes: Tensor
    weight: float
    number: int
    problem: str


class Views(Dataset[View]):
    """views[epoch, i]: image i as a configuration draws it for (seed, epoch, i) alone; epoch None: as it is judged.

    An image that cannot be read is a black one of weight 0 with its reason: one bad image never stops a training.
    """

    def __init__(
        self,
        data: TaggedImages,
        normalise: Callable[[Tensor], Tensor],
        num_classes: int,
        config: ClassifierConfig,
    ) -> None:
        self.data, self.normalise, self.num_classes, self.config = data, normalise, num_classes, config
        self._augment: list[v2.Transform] = []
        if config.view == "random-area":
            bicubic = v2.InterpolationMode.BICUBIC
            self._augment.append(v2.RandomResizedCrop(config.crop, config.sizes, interpolation=bicubic, antialias=True))
        if config.color:
            self._augment.append(v2.ColorJitter(0.4, 0.4, 0.4, 0.1))

    def __getitem__(self, place: tuple[int | None, int]) -> View:
        epoch, index = place
        classes = torch.zeros(self.num_classes)
        try:
            image, found = self.data[index]
        except ImageError as error:
            side = self.config.crop
            return View(torch.zeros(3, side, side), classes, 0.0, index, str(error))
        check_image(index, image)
        classes[list(found)] = 1
        view = self._judged(image) if epoch is None else self._drawn(image, epoch, index)
        return View(view, classes, 1.0, index, "")

    def _judged(self, image: Tensor) -> Tensor:
        side = self.config.test_side
        if self.config.view == "square":
            return self.normalise(_squeezed(image, side))
        short, long = sorted(image.shape[1:])
        return self.normalise(resize_image(image, min(side / short, max(1.0, _LONGEST / long))))

    def _drawn(self, image: Tensor, epoch: int, index: int) -> Tensor:
        config, draw = self.config, np.random.default_rng([self.config.seed, epoch, index])
        if config.view == "long-side":
            low, high = (round(size) for size in config.sizes)
            image = resize_image(image, int(draw.integers(low, high + 1)) / max(image.shape[1:]))
        elif config.view == "square":
            image = _squeezed(image, round(config.sizes[1]))
        if draw.random() < 0.5 and config.mirror:
            image = image.flip(-1)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the process's own numbers
            torch.default_generator.manual_seed(int(draw.integers(2**63)))  # manual_seed costs 0.2 ms
            for transform in self._augment:
                image = transform(image)
        top, left = (crop_start(draw, size - config.crop) for size in image.shape[1:])
        return cut(self.normalise(image), config.crop, top, left, 0.0)


class ViewBatch(NamedTuple):
    images: Tensor  # [B, 3, h, w]
    classes: Tensor  # [B, C], 0 and 1
    weights: Tensor  # [B], 0 where there is no image
    indices: list[int]
    problems: dict[int, str]  # by index


def stacked(views: Sequence[View]) -> ViewBatch:
    return ViewBatch(
        torch.stack([view.image for view in views]),
        torch.stack([view.classes for view in views]),
        torch.tensor([view.weight for view in views]),
        [view.number for view in views],
        {view.number: view.problem for view in views if view.problem},
    )


def by_shape(views: Sequence[View]) -> list[ViewBatch]:
    """Views of several sizes as a batch of each size."""
    groups: dict[torch.Size, list[View]] = {}
    for view in views:
        groups.setdefault(view.image.shape, []).append(view)
    return [stacked(group) for group in groups.values()]


def _squeezed(image: Tensor, side: int) -> Tensor:
    return tvf.resize(image, [side, side], v2.InterpolationMode.BICUBIC, antialias=True)
