"""`voc:DIR#split`: the published VOC2012 layout, and that of its augmented lists and masks."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from advcam_fast.data.annotations import read_objects
from advcam_fast.data.dataset import Box, Dataset, Item
from advcam_fast.data.layout import check_layout
from advcam_fast.data.text_files import read_lines
from advcam_fast.errors import UsageError

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

_LISTS = ("Segmentation", "SegmentationAug", "Main")
_MASKS, _AUGMENTED = "SegmentationClass", "SegmentationClassAug"
_NAME = r"(?P<name>[^\s/\0.][^\s/\0]*?)"
_LINE = re.compile(
    rf"{_NAME}|/?JPEGImages/{_NAME.replace('<name>', '<image>')}\.jpg\s+/?(?P<masks>\w+)/(?P=image)\.png"
)


class _Split(NamedTuple):
    names: list[str]
    masks: str  # the folder of their masks, where the list is one of images with masks


def read_voc(directory: Path, split: str, spec: str) -> Dataset:
    """Lists a split with the classes of the objects in each annotation (difficult ones included, in VOC order).

    A list is one of ImageSets/Segmentation, SegmentationAug or Main: names, or lines `/JPEGImages/NAME.jpg
    /SegmentationClassAug/NAME.png` as train_aug is published. Masks are those of the folder that the lines name, else
    SegmentationClassAug for a list with `aug` in its name, else SegmentationClass; given where they exist. Boxes are
    counted from 0, where VOC counts from 1. An image whose annotation is missing or broken is an item with a `problem`.
    Raises UsageError that lists what the layout lacks.
    """
    found = _read_split(directory, split, spec)
    check_layout(spec, directory, ["JPEGImages/", "Annotations/", *([f"{found.masks}/"] if found.masks else [])])
    masks = found.masks or _MASKS
    return Dataset([_read_item(directory, name, masks) for name in found.names], VOC_CLASSES, spec, directory)


def _read_split(directory: Path, split: str, spec: str) -> _Split:
    folders = [directory / "ImageSets" / task for task in _LISTS]
    file = next((folder / f"{split}.txt" for folder in folders if (folder / f"{split}.txt").is_file()), None)
    if file is None:
        found = sorted({path.stem for folder in folders for path in folder.glob("*.txt")})
        there = f"there are {', '.join(found[:10])}" if found else "there is no list at all"
        wanted = " or ".join(f"ImageSets/{task}/{split}.txt" for task in _LISTS)
        raise UsageError(f"data {spec!r}: {directory} lacks {wanted}; {there}")
    names: dict[str, None] = {}
    folder = ""
    for line in filter(None, read_lines(file)):
        match = _LINE.fullmatch(line)
        if match is None or (folder and match["masks"] and match["masks"] != folder):
            raise UsageError(
                f"{file}: {line!r}, wanted one image name without folder and suffix a line, or "
                f"/JPEGImages/NAME.jpg /{_AUGMENTED}/NAME.png with one folder of masks"
            )
        names[match["name"] or match["image"]] = None
        folder = match["masks"] or folder
    if not names:
        raise UsageError(f"{file}: the split is empty")
    if not folder and file.parent.name != "Main":
        folder = _AUGMENTED if "aug" in split.lower() else _MASKS
    return _Split(list(names), folder)


def _read_item(directory: Path, name: str, masks: str) -> Item:
    path = directory / "JPEGImages" / f"{name}.jpg"
    mask = directory / masks / f"{name}.png"
    known_mask = mask if mask.is_file() else None
    try:
        objects = read_objects(directory / "Annotations" / f"{name}.xml")
        unknown = sorted({label for label, _ in objects}.difference(VOC_CLASSES))
        if unknown:
            raise ValueError(f"object {unknown[0]!r} is none of the 20 VOC classes")
    except ValueError as error:
        return Item(name, path, None, known_mask, f"annotation Annotations/{name}.xml: {error}")
    present = {label for label, _ in objects}
    boxes = tuple(Box(label, *(max(side - 1, 0) for side in corners)) for label, corners in objects if corners)
    return Item(name, path, tuple(label for label in VOC_CLASSES if label in present), known_mask, boxes=boxes)


@cache
def voc_palette() -> bytes:
    """256 colours of 3 bytes: bit 3 i + c of a value is bit 7 - i of colour c, as the VOC development kit has it."""
    value = np.arange(256)[:, None]
    channel = np.arange(3)
    colours = sum(((value >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
    return np.asarray(colours, np.uint8).tobytes()
