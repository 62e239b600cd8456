"""`coco:DIR#split`: the published layout of COCO 2014 and 2017."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from advcam_fast.data.dataset import Box, Dataset, Item, item_ids
from advcam_fast.data.images import ImageError
from advcam_fast.data.layout import Root, check_layout
from advcam_fast.errors import UsageError

IGNORE = 255
_LAYOUT = (
    "annotations/instances_SPLIT.json and the images in SPLIT/ or images/SPLIT/, SPLIT being train2017 or the like"
)


class Instance(NamedTuple):
    """An annotated object: class index, outline as published (polygons or RLE), area, whether it is a crowd."""

    category: int
    segmentation: Any
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class CocoInstances:
    """The objects of an image of height x width; as a mask, the smaller over the larger, crowds ignored."""

    height: int
    width: int
    instances: tuple[Instance, ...]

    def read(self, size: tuple[int, int]) -> Tensor:
        """uint8 [height, width] whatever `size`: 0 background, v > 0 class v - 1, 255 where only a crowd is."""
        mask = np.zeros((self.height, self.width), np.uint8)
        for instance in sorted(self.instances, key=lambda instance: (not instance.crowd, -instance.area)):
            inside = rle.decode(self.encoded(instance)).astype(bool)
            mask[inside] = IGNORE if instance.crowd else instance.category + 1
        return torch.from_numpy(mask)

    def encoded(self, instance: Instance) -> dict[str, Any]:
        """The compressed RLE of an instance; raises ImageError for an outline that is none."""
        try:
            outline = instance.segmentation
            if isinstance(outline, list):
                outline = [np.asarray(polygon, np.float64) for polygon in outline if len(polygon) >= 6]
                found = (
                    rle.merge(rle.frPyObjects(outline, self.height, self.width))
                    if outline
                    else rle.encode(_nothing(self))
                )
            elif isinstance(outline["counts"], list):
                found = rle.frPyObjects(outline, self.height, self.width)
            else:
                found = outline
            if list(found["size"]) != [self.height, self.width]:
                raise ValueError(f"an outline for {found['size']}, the image is {[self.height, self.width]}")
        except Exception as error:  # pycocotools raises nearly every type there is on what is no outline
            raise ImageError(f"its annotation cannot be drawn: {' '.join(str(error).split())}") from error
        return dict(found)


def _nothing(image: CocoInstances) -> np.ndarray:
    return np.zeros((image.height, image.width), np.uint8, order="F")


def read_coco(directory: Path, split: str, spec: str) -> Dataset:
    """Lists every image of annotations/instances_SPLIT.json, without objects too; classes in the order of their ids.

    Tags are the classes of an image's objects, crowds included; boxes those of objects that are no crowd. Masks are
    painted when they are read (CocoInstances). Raises UsageError for what the layout lacks, a damaged file, or file
    names that leave the folder of the images.
    """
    file = directory / "annotations" / f"instances_{split}.json"
    check_layout(spec, directory, [f"annotations/instances_{split}.json"], _LAYOUT)
    folders = [folder for folder in (directory / split, directory / "images" / split) if folder.is_dir()]
    if not folders:
        raise UsageError(f"data {spec!r}: {directory} lacks {split}/ and images/{split}/; wanted {_LAYOUT}")
    try:
        content = json.loads(file.read_bytes())
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in content["categories"])
        images = [
            (entry["id"], str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
            for entry in content["images"]
        ]
        objects: dict[Any, list[tuple[Instance, Sequence[float]]]] = {image[0]: [] for image in images}
        index = {number: at for at, (number, _) in enumerate(categories)}
        for entry in content["annotations"]:
            instance = Instance(
                index[entry["category_id"]], entry["segmentation"], float(entry["area"]), bool(entry.get("iscrowd"))
            )
            objects[entry["image_id"]].append((instance, entry["bbox"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file}: no COCO annotations: {type(error).__name__} {' '.join(str(error).split())}"
        ) from error
    if not images:
        raise UsageError(f"{file}: the split is empty")
    names = tuple(name for _, name in categories)
    root = Root(folders[0])
    paths = [root.inside(name, str(file)) for _, name, _, _ in images]
    items = [
        _item(name, folders[0] / path, height, width, objects[number], names)
        for name, path, (number, _, height, width) in zip(item_ids(paths), paths, images, strict=True)
    ]
    return Dataset(items, names, spec, directory)


def _item(
    name: str,
    path: Path,
    height: int,
    width: int,
    objects: list[tuple[Instance, Sequence[float]]],
    names: Sequence[str],
) -> Item:
    labels = tuple(names[at] for at in sorted({instance.category for instance, _ in objects}))
    boxes = tuple(
        Box(names[instance.category], x, y, x + w, y + h) for instance, (x, y, w, h) in objects if not instance.crowd
    )
    instances = CocoInstances(height, width, tuple(instance for instance, _ in objects))
    return Item(name, path, labels, instances, boxes=boxes, frame=(height, width))
