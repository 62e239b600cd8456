"""What every reader of a data SPEC returns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from advcam_fast.data.tar_member import TarMember


class Box(NamedTuple):
    """A box around an object of a class, in pixels of the image, both corners included."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


class MaskSource(Protocol):
    """A ground-truth mask that is made when it is asked for."""

    def read(self, size: tuple[int, int]) -> Tensor:
        """uint8 [H, W] for an image of `size` (H, W); raises ImageError where there is none of that size."""


class BoxSource(Protocol):
    """Ground-truth boxes that are read when they are asked for."""

    def read(self) -> tuple[Box, ...]:
        """Raises ImageError where they cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image: a unique id (its relative path without suffix), its class names (None: no tags given), its truth.

    Masks and boxes (none: an empty tuple) may be files or sources that are read only by read_truth and read_boxes.
    `frame` (H, W) is the size that the boxes were drawn at, where the data set says it.
    `problem` is set where the data set itself is broken for this item (an unreadable annotation): such an item is to
    be recorded as failed for that reason. Whether the image file is there and whole shows only when it is read.
    """

    id: str
    path: Path | TarMember
    labels: tuple[str, ...] | None = None
    mask: Path | TarMember | MaskSource | None = None
    problem: str | None = None
    boxes: tuple[Box, ...] | BoxSource = ()
    frame: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """The items of a SPEC in a fixed order; mask pixel v > 0 is class_names[v - 1] (None: nothing names classes).

    place: the file or folder that was read; where it has gone, or has become an empty folder, so have the images.
    """

    items: Sequence[Item]
    class_names: tuple[str, ...] | None
    spec: str
    place: Path | None = None

    def is_there(self) -> bool:
        """Whether the data set can still be reached, whatever became of a single image."""
        if self.place is None or not self.place.is_dir():
            return self.place is None or self.place.exists()
        return any(self.place.iterdir())


def item_ids(paths: Sequence[str]) -> list[str]:
    """Ids of unique relative POSIX paths: without the suffix, or with it where two items would share an id."""
    ids = [os.path.splitext(path)[0] for path in paths]
    while True:
        count = Counter(ids)
        shared = [i for i, path in enumerate(paths) if count[ids[i]] > 1 and ids[i] != path]
        if not shared:
            return ids
        for i in shared:
            ids[i] = paths[i]
