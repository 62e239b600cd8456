"""The layout of the common WSOL evaluator (Choe et al., CVPR 2020): metadata/NAME/SPLIT and dataset/NAME."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from advcam_fast.data.dataset import Box, Dataset, Item, item_ids
from advcam_fast.data.images import read_mask
from advcam_fast.data.layout import Root, check_layout
from advcam_fast.data.text_files import read_lines
from advcam_fast.data.truth import nearest
from advcam_fast.errors import UsageError

_LISTS = ("image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt")


@dataclass(frozen=True, slots=True)
class MaskUnion:
    """The masks of all instances of an image, and the region to ignore outside of them."""

    value: int
    masks: tuple[Path, ...]
    ignored: Path | None

    def read(self, size: tuple[int, int]) -> Tensor:
        """uint8 of `size`: every file is resized to it by nearest neighbour, then united, as the evaluator does."""
        inside = torch.stack([nearest(read_mask(path), size) > 0 for path in self.masks]).any(0)
        mask = torch.where(inside, self.value, 0).to(torch.uint8)
        if self.ignored is not None:
            mask[(nearest(read_mask(self.ignored), size) > 0) & ~inside] = 255
        return mask


def has_metadata(directory: Path, name: str) -> bool:
    return (directory / "metadata" / name).is_dir()


def read_wsol(directory: Path, name: str, split: str, spec: str, masks: bool = False) -> Dataset:
    """Lists metadata/NAME/SPLIT/{image_ids,class_labels,image_sizes,localization}.txt; NAME: ILSVRC, CUB, OpenImages.

    Classes are the numbers of class_labels.txt as text, for a model whose head is in the same order. Localization is
    boxes `path,x0,y0,x1,y1` or, with `masks`, `path,mask,ignore`; then there is no image_sizes.txt. Without
    localization.txt (the train split) there is no truth. Raises UsageError naming file and line, and what is missing.
    """
    folder = directory / "metadata" / name / split
    needed = [entry for entry in _LISTS[:3] if not (masks and entry == "image_sizes.txt")]
    wanted = (
        f"metadata/{name}/SPLIT/{{{','.join(entry[:-4] for entry in needed)},localization}}.txt and dataset/{name}/"
    )
    parts = [*(f"metadata/{name}/{split}/{entry}" for entry in needed), f"dataset/{name}/"]
    if split != "train":
        parts.append(f"metadata/{name}/{split}/localization.txt")
    check_layout(spec, directory, parts, wanted)
    images = directory / "dataset" / name
    root, ids = Root(images), folder / "image_ids.txt"
    paths = list(dict.fromkeys(root.inside(line, str(ids)) for line in read_lines(ids) if line))
    if not paths:
        raise UsageError(f"{ids}: the split is empty")
    labels = {path: _number(text, where) for path, (text,), where in _fields(folder / "class_labels.txt", 1)}
    unlabelled = [path for path in paths if path not in labels]
    if unlabelled:
        raise UsageError(f"{folder / 'class_labels.txt'}: it has no line for {unlabelled[0]!r} of image_ids.txt")
    count = max(labels.values(), default=-1) + 1
    boxes, unions = _localization(folder / "localization.txt", images, labels, masks)
    frames = {} if masks else _frames(folder / "image_sizes.txt")
    items = [
        Item(
            item_id, images / path, (str(labels[path]),), unions.get(path), None, boxes.get(path, ()), frames.get(path)
        )
        for item_id, path in zip(item_ids(paths), paths, strict=True)
    ]
    return Dataset(items, tuple(str(number) for number in range(count)), spec, directory)


def _localization(
    file: Path, images: Path, labels: dict[str, int], masks: bool
) -> tuple[dict[str, tuple[Box, ...]], dict[str, MaskUnion]]:
    boxes: dict[str, tuple[Box, ...]] = {}
    unions: dict[str, MaskUnion] = {}
    if not file.is_file():
        return boxes, unions
    root = Root(images)
    for path, fields, where in _fields(file, 2 if masks else 4):
        if path not in labels:
            raise UsageError(f"{where}: {path!r} has no class label")
        if masks:
            mask, ignored = (images / root.inside(text, where) if text else None for text in fields)
            union = unions.get(path, MaskUnion(labels[path] + 1, (), None))
            if mask is None or (union.ignored and ignored):
                raise UsageError(f"{where}: wanted a mask, and for the image one mask of what to ignore")
            unions[path] = MaskUnion(union.value, (*union.masks, mask), union.ignored or ignored)
        else:
            x0, y0, x1, y1 = (_corner(text, where) for text in fields)
            boxes[path] = (*boxes.get(path, ()), Box(str(labels[path]), x0, y0, x1, y1))
    return boxes, unions


def _frames(file: Path) -> dict[str, tuple[int, int]]:
    return {path: (_number(height, where), _number(width, where)) for path, (width, height), where in _fields(file, 2)}


def _fields(file: Path, count: int) -> Iterator[tuple[str, list[str], str]]:
    """Path, the other fields and where it is, of each line `path,field,...`."""
    for number, line in enumerate(read_lines(file), start=1):
        path, *fields = line.split(",")
        where = f"{file}, line {number}"
        if len(fields) != count:
            raise UsageError(f"{where}: {line!r}, wanted a path and {count} more fields, by commas")
        yield path, fields, where


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{where}: {text!r}, wanted is a whole number")
    return int(text)


def _corner(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: {text!r}, wanted is a number")
    return value
