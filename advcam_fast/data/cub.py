"""`cub:DIR#split`: the published layout of CUB-200-2011, or the WSOL lists of it."""

from __future__ import annotations

from pathlib import Path

from advcam_fast.data.dataset import Box, Dataset, Item, item_ids
from advcam_fast.data.layout import Root, check_layout
from advcam_fast.data.text_files import read_lines
from advcam_fast.data.wsol import has_metadata, read_wsol
from advcam_fast.errors import UsageError

_LISTS = ("images", "image_class_labels", "train_test_split", "bounding_boxes", "classes")


def read_cub(directory: Path, split: str, spec: str) -> Dataset:
    """Lists the train or test split of DIR/images.txt and its sister lists; DIR/metadata/CUB instead, where it is.

    Box x y w h becomes the corners (x, y) and (x + w, y + h), as in the WSOL lists. Class names are those of
    classes.txt (001.Black_footed_Albatross). Raises UsageError naming file and line, and what the layout lacks.
    """
    if has_metadata(directory, "CUB"):
        return read_wsol(directory, "CUB", split, spec)
    files = [f"{name}.txt" for name in _LISTS]
    wanted = f"{', '.join(files)} and images/, or the WSOL lists in metadata/CUB/SPLIT and dataset/CUB/"
    check_layout(spec, directory, [*files, "images/"], wanted)
    if split not in ("train", "test"):
        raise UsageError(f"data {spec!r}: split {split!r}, CUB-200-2011 has train and test")
    names = {number: " ".join(fields) for number, fields in _numbered(directory / "classes.txt").items()}
    paths = _numbered(directory / "images.txt")
    classes = _numbered(directory / "image_class_labels.txt", paths)
    boxes = _numbered(directory / "bounding_boxes.txt", paths)
    chosen = _numbered(directory / "train_test_split.txt", paths)
    numbers = [number for number in paths if chosen[number] == ["1" if split == "train" else "0"]]
    if not numbers:
        raise UsageError(f"{directory / 'train_test_split.txt'}: the split {split} is empty")
    root = Root(directory / "images")
    inside = [root.inside(" ".join(paths[number]), str(directory / "images.txt")) for number in numbers]
    items = []
    for number, name, path in zip(numbers, item_ids(inside), inside, strict=True):
        if classes[number][0] not in names:
            raise UsageError(
                f"{directory / 'image_class_labels.txt'}: class {classes[number][0]} is not in classes.txt"
            )
        label = names[classes[number][0]]
        items.append(Item(name, directory / "images" / path, (label,), boxes=(_box(label, boxes[number], directory),)))
    return Dataset(items, tuple(names.values()), spec, directory)


def _numbered(file: Path, wanted: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    """The fields of each line by the number it begins with; raises UsageError where one that is wanted is missing."""
    found = {}
    for line_number, line in enumerate(read_lines(file), start=1):
        number, *fields = line.split()
        if not number.isdigit() or not fields:
            raise UsageError(f"{file}, line {line_number}: {line!r}, wanted a number and what it stands for")
        found[number] = fields
    missing = [number for number in wanted or () if number not in found]
    if missing:
        raise UsageError(f"{file}: it has no line for image {missing[0]} of images.txt")
    return found


def _box(label: str, fields: list[str], directory: Path) -> Box:
    try:
        x, y, width, height = (float(field) for field in fields)
    except ValueError:
        raise UsageError(
            f"{directory / 'bounding_boxes.txt'}: box {' '.join(fields)!r}, wanted x y width height"
        ) from None
    return Box(label, x, y, x + width, y + height)
