"""The ground truth of an item, read when it is needed and checked against the size of its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advcam_fast.data.dataset import Box, Item, MaskSource
from advcam_fast.data.images import ImageError, read_mask
from advcam_fast.data.tar_member import TarMember


def read_truth(item: Item, size: tuple[int, int], resized: bool = False) -> Tensor:
    """The mask of an item: uint8 [H, W] of `size`, 0 background, v > 0 class v - 1, 255 ignored.

    resized: one of another size is brought to it by nearest neighbour. Raises ImageError for one that is missing,
    broken or, otherwise, of another size.
    """
    if item.mask is None:
        raise ImageError(f"{item.id}: it has no mask")
    mask = mask_at(item.mask, size)
    if tuple(mask.shape) != size and not resized:
        height, width = mask.shape
        raise ImageError(f"its mask is {width} x {height}, its maps are {size[1]} x {size[0]}")
    return mask if tuple(mask.shape) == size else nearest(mask, size)


def mask_at(source: Path | TarMember | MaskSource, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W] of a mask file, whatever its size, or of one that is made for `size`; raises ImageError."""
    return read_mask(source) if isinstance(source, (Path, TarMember)) else source.read(size)


def read_boxes(item: Item, size: tuple[int, int]) -> tuple[Box, ...]:
    """The boxes of an item whose image has `size` (H, W); raises ImageError where they cannot be read or do not fit."""
    if item.frame is not None and item.frame != size:
        height, width = item.frame
        raise ImageError(f"its boxes were drawn at {width} x {height}, its maps are {size[1]} x {size[0]}")
    return item.boxes if isinstance(item.boxes, tuple) else item.boxes.read()


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [H, W] at another size as OpenCV's INTER_NEAREST takes it: pixel floor(i * (1 / (new / old)))."""
    rows, columns = (
        torch.from_numpy(np.minimum(np.floor(np.arange(new) * (1.0 / (float(new) / old))), old - 1).astype(np.int64))
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]
