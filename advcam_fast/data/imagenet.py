"""`imagenet:DIR#split`: the published layout of ILSVRC 2012 localization, or the WSOL lists of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from advcam_fast.data.annotations import AnnotatedBoxes
from advcam_fast.data.dataset import Box, Dataset, Item
from advcam_fast.data.layout import check_layout
from advcam_fast.data.text_files import read_lines, read_rows
from advcam_fast.data.wsol import has_metadata, read_wsol
from advcam_fast.errors import UsageError

_NAMES, _SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
_LAYOUT = (
    f"{_NAMES}, ILSVRC/Data/CLS-LOC/train/WNID/*.JPEG or ILSVRC/Data/CLS-LOC/val/*.JPEG with {_SOLUTION}, and boxes in "
    "ILSVRC/Annotations/CLS-LOC/SPLIT, or the WSOL lists in metadata/ILSVRC/SPLIT and dataset/ILSVRC/"
)


def read_imagenet(directory: Path, split: str, spec: str) -> Dataset:
    """Lists train or val of ILSVRC/Data/CLS-LOC; DIR/metadata/ILSVRC instead, where it is.

    Classes are the numbers 0 to 999 in the order of LOC_synset_mapping.txt, which is the order of every ImageNet head,
    as text: ImageNet's names are not unique (crane, maillot). Boxes are as written: of val from LOC_val_solution.csv,
    of train from an image's XML when it is read, where there is one. Raises UsageError naming what the layout lacks.
    """
    if has_metadata(directory, "ILSVRC"):
        return read_wsol(directory, "ILSVRC", split, spec)
    if split not in ("train", "val"):
        raise UsageError(f"data {spec!r}: split {split!r}, ILSVRC has train and val")
    images = f"ILSVRC/Data/CLS-LOC/{split}/"
    check_layout(spec, directory, [_NAMES, images, *([_SOLUTION] if split == "val" else [])], _LAYOUT)
    number = _class_numbers(directory / _NAMES)
    names = tuple(map(str, range(len(number))))
    items = _train(directory, number) if split == "train" else _val(directory, number)
    if not items:
        raise UsageError(f"data {spec!r}: no image in {directory / images}")
    return Dataset(items, names, spec, directory)


def _class_numbers(file: Path) -> dict[str, str]:
    numbers: dict[str, str] = {}
    for line_number, line in enumerate(read_lines(file), start=1):
        wnid = line.partition(" ")[0]
        if not re.fullmatch(r"n\d{8}", wnid) or wnid in numbers:
            raise UsageError(f"{file}, line {line_number}: {line!r}, wanted one new WordNet id and its names")
        numbers[wnid] = str(len(numbers))
    return numbers


def _train(directory: Path, number: dict[str, str]) -> list[Item]:
    images, boxes = (directory / "ILSVRC" / kind / "CLS-LOC" / "train" for kind in ("Data", "Annotations"))
    items = []
    for wnid in sorted(entry.name for entry in os.scandir(images) if entry.is_dir()):
        if wnid not in number:
            raise UsageError(f"{images / wnid}: {_NAMES} has no class {wnid!r}")
        files = sorted(entry.name for entry in os.scandir(images / wnid) if entry.name.endswith(".JPEG"))
        known = {entry.name for entry in os.scandir(boxes / wnid)} if (boxes / wnid).is_dir() else set()
        for file in files:
            stem = file[: -len(".JPEG")]
            truth = AnnotatedBoxes(boxes / wnid / f"{stem}.xml", number[wnid]) if f"{stem}.xml" in known else ()
            items.append(Item(f"{wnid}/{stem}", images / wnid / file, (number[wnid],), boxes=truth))
    return items


def _val(directory: Path, number: dict[str, str]) -> list[Item]:
    images, file = directory / "ILSVRC" / "Data" / "CLS-LOC" / "val", directory / _SOLUTION
    items = []
    for line_number, fields in read_rows(file):
        if fields == ["ImageId", "PredictionString"]:
            continue
        where = f"{file}, line {line_number}"
        if len(fields) != 2 or not re.fullmatch(r"\w+", fields[0]):
            raise UsageError(f"{where}: wanted the columns ImageId,PredictionString")
        boxes = _boxes(fields[1].split(), number, where)
        items.append(
            Item(fields[0], images / f"{fields[0]}.JPEG", tuple(dict.fromkeys(box.label for box in boxes)), boxes=boxes)
        )
    return sorted(items, key=lambda item: item.id)


def _boxes(words: list[str], number: dict[str, str], where: str) -> tuple[Box, ...]:
    """Of `WNID x0 y0 x1 y1 WNID x0 ...`."""
    groups = [words[at : at + 5] for at in range(0, len(words), 5)]
    for group in groups:
        if (
            len(group) != 5
            or group[0] not in number
            or not all(re.fullmatch(r"\d+(\.\d+)?", side) for side in group[1:])
        ):
            raise UsageError(f"{where}: {' '.join(group)!r}, wanted a WordNet id of {_NAMES} and four numbers")
    return tuple(Box(number[wnid], *map(float, corners)) for wnid, *corners in groups)
