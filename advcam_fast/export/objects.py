"""The objects of a mask: connected components of a class, or instances that were found before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from advcam_fast.export.outline import polygons

IGNORED = 255
STRIDE = 4
_TOUCHING = np.ones((3, 3))  # corners connect


@dataclass(frozen=True)
class MaskObject:
    """One object: its class, an index, and its pixels."""

    category: int
    left: int
    top: int
    pixels: np.ndarray  # bool [h, w], of the box that holds it
    image_size: tuple[int, int]  # height, width
    score: float  # 0 to 1

    @property
    def box(self) -> list[float]:
        """x, y, width, height, in pixels."""
        height, width = self.pixels.shape
        return [float(self.left), float(self.top), float(width), float(height)]

    @property
    def area(self) -> int:
        return int(self.pixels.sum())

    def mask(self) -> np.ndarray:
        """bool [H, W]."""
        height, width = self.pixels.shape
        whole = np.zeros(self.image_size, bool)
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return whole

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths: {"size": [H, W], "counts": text}."""
        encoded = coco_mask.encode(np.asfortranarray(self.mask(), np.uint8))
        return {"size": list(self.image_size), "counts": encoded["counts"].decode("ascii")}

    @cached_property
    def polygons(self) -> list[np.ndarray]:
        """Paths [n, 2] of x, y in the image, one for every part: see outline.polygons."""
        return [path + np.array([self.left, self.top]) for path in polygons(self.pixels)]


def components(
    mask: np.ndarray, classes: Sequence[str], labels: Sequence[str], maps: np.ndarray
) -> tuple[MaskObject, ...]:
    """The 8-connected components of every class of a mask, uint8 [H, W], by class and place.

    The score is the greatest value that the map of its class, maps [n, (H-1)//4+1, (W-1)//4+1] for labels, has in the
    object. Raises ValueError for a class that has no map.
    """
    found = []
    for value in np.unique(mask).tolist():
        if value in (0, IGNORED):
            continue
        name = classes[value - 1] if value <= len(classes) else f"number {value}"
        if name not in labels:
            raise ValueError(f"the mask holds class {name!r}, the maps are of {', '.join(map(repr, labels)) or 'none'}")
        heat = maps[labels.index(name)]
        numbers, _ = ndimage.label(mask == value, _TOUCHING)
        for number, place in enumerate(ndimage.find_objects(numbers), start=1):
            pixels = numbers[place] == number
            top, left = place[0].start, place[1].start
            down, across = np.nonzero(pixels)
            score = float(heat[(down + top) // STRIDE, (across + left) // STRIDE].max())
            found.append(MaskObject(value - 1, left, top, pixels, (mask.shape[0], mask.shape[1]), score))
    return tuple(found)


def stored_instances(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], size: tuple[int, int]
) -> tuple[MaskObject, ...]:
    """Objects of refine's instances: label, score, and segmentation in COCO's run lengths, of images [H, W] = size.

    Raises ValueError for rows that are no such instances.
    """
    found = []
    for row in rows:
        try:
            category, score, runs = classes.index(row["label"]), float(row["score"]), row["segmentation"]
            whole = coco_mask.decode({"size": runs["size"], "counts": runs["counts"].encode("ascii")}).astype(bool)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("an instance without a known label, score or run lengths") from error
        if whole.shape != size:
            wanted = f"{size[1]} x {size[0]}"
            raise ValueError(f"an instance of {whole.shape[1]} x {whole.shape[0]} for an image of {wanted}")
        if whole.any():
            down, across = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
            pixels = whole[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
            found.append(MaskObject(category, int(across[0]), int(down[0]), pixels, size, score))
    return tuple(found)
