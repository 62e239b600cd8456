"""Crops of images and of their labels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast.errors import UsageError

UNSURE = 255


class LabelledImages(Protocol):
    """What is trained on: data[i] is (uint8 [3, H, W], labels uint8 [H, W] with 255 for unsure) for i < len(data)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def crop_start(draw: np.random.Generator, spare: int) -> int:
    """Where a crop starts in a side that is `spare` longer, or, below 0, where the image starts in the crop."""
    return int(draw.integers(spare + 1)) if spare >= 0 else -int(draw.integers(1 - spare))


def cut(tensor: Tensor, side: int, top: int, left: int, filling: float) -> Tensor:
    """[..., side, side] of [..., H, W] from a row and a column on, which may be below 0; `filling` where nothing is."""
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (-left, side + left - width, -top, side + top - height), value=filling)  # below 0 it cuts


def check_image(index: int, image: Tensor) -> None:
    """Raises UsageError for an item that is no image."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise UsageError(f"image {index} is {image.dtype} {list(image.shape)}; wanted torch.uint8 [3, H, W]")


def check_labelled(index: int, image: Tensor, labels: Tensor) -> None:
    """Raises UsageError for an item of LabelledImages that is none."""
    check_image(index, image)
    if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
        wanted = f"torch.uint8 {list(image.shape[1:])} as its image"
        raise UsageError(f"labels of image {index} are {labels.dtype} {list(labels.shape)}; wanted {wanted}")
