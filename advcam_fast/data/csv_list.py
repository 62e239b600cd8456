"""`csv:FILE`: a list of images with labels and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from advcam_fast.data.dataset import Box, Dataset, Item, item_ids
from advcam_fast.data.labels import ClassNames
from advcam_fast.data.layout import Root
from advcam_fast.data.text_files import read_lines, read_rows
from advcam_fast.errors import UsageError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = "image,labels[,mask][,xmin,ymin,xmax,ymax]"


@dataclass(slots=True)
class _Entry:
    labels: dict[str, None] = field(default_factory=dict)  # an ordered set
    mask: str = ""
    boxes: list[tuple[str, list[float]]] = field(default_factory=list)


class _Row(NamedTuple):
    line: int
    image: str
    labels: list[str]
    mask: str
    box: list[float] | None


def read_csv_list(path: Path, spec: str) -> Dataset:
    """Reads a CSV with the columns image,labels[,mask][,xmin,ymin,xmax,ymax]; others are ignored.

    Paths are relative to the file's folder and must stay in it, symlinks resolved. Labels are joined by `;`, names or
    indices of classes.txt beside the file; without that file, names, and the sorted labels are the classes (all
    numbers: sorted as numbers). A row with a box (pixels, corners included) has one label; `label` is as good a name
    for its column. Rows of the same image are merged. Raises UsageError naming file and line.
    """
    root = Root(path.parent)
    entries: dict[str, _Entry] = {}
    for row in _rows(path):
        where = f"{path}, line {row.line}"
        image = root.inside(row.image, where)
        entry = entries.setdefault(image, _Entry())
        entry.labels.update(dict.fromkeys(row.labels))
        if row.box:
            entry.boxes.append((row.labels[0], row.box))
        if row.mask:
            mask = root.inside(row.mask, where)
            if entry.mask not in ("", mask):
                raise UsageError(f"{where}: {image} has two masks, {entry.mask} and {mask}")
            entry.mask = mask
    if not entries:
        raise UsageError(f"{path}: the list names no image")
    class_names, names = classes_of(path, dict.fromkeys(label for entry in entries.values() for label in entry.labels))
    items = [
        Item(
            id=name,
            path=path.parent / image,
            labels=tuple(dict.fromkeys(names[label] for label in entry.labels)),
            mask=path.parent / entry.mask if entry.mask else None,
            boxes=tuple(Box(names[label], *corners) for label, corners in entry.boxes),
        )
        for name, (image, entry) in zip(item_ids(list(entries)), entries.items(), strict=True)
    ]
    return Dataset(items, class_names, spec, path)


def _rows(path: Path) -> Iterator[_Row]:
    rows = read_rows(path)
    number, header = next(rows, (0, []))
    if not header:
        raise UsageError(f"{path}: the file is empty, wanted the columns {_COLUMNS}")
    tags = [column for column in header if column in ("label", "labels")]
    corners = [header.count(corner) for corner in _CORNERS]
    if header.count("image") != 1 or len(tags) != 1 or header.count("mask") > 1 or corners not in ([0] * 4, [1] * 4):
        raise UsageError(f"{path}, line {number}: columns {','.join(header)!r}, wanted {_COLUMNS} once each")
    for number, fields in rows:
        if len(fields) != len(header):
            raise UsageError(f"{path}, line {number}: {len(fields)} fields under {len(header)} columns")
        row = dict(zip(header, fields, strict=True))
        labels = [label.strip() for label in row[tags[0]].split(";") if label.strip()]
        texts = [row.get(corner, "") for corner in _CORNERS]
        box = _box(texts, labels, f"{path}, line {number}") if any(texts) else None
        yield _Row(number, row["image"], labels, row.get("mask", ""), box)


def _box(texts: list[str], labels: list[str], where: str) -> list[float]:
    try:
        x0, y0, x1, y1 = box = [float(text) for text in texts]
    except ValueError:
        box = []
    if not box or not all(map(math.isfinite, box)) or x0 > x1 or y0 > y1:
        raise UsageError(f"{where}: box {','.join(texts)}, wanted are numbers with xmin <= xmax and ymin <= ymax")
    if len(labels) != 1:
        raise UsageError(f"{where}: a box of {len(labels)} labels, wanted is one")
    return box


def classes_of(path: Path, labels: dict[str, None]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The class names of a list, from classes.txt beside it, and the class name that each of its labels means."""
    file = path.parent / "classes.txt"
    if not file.is_file():
        by_number = all(label.isascii() and label.isdigit() for label in labels)
        return tuple(sorted(labels, key=int if by_number else None)), {label: label for label in labels}
    classes = ClassNames(_read_class_names(file), str(file))
    indices = {label: classes.index(label) for label in labels}
    unknown = [label for label, index in indices.items() if index is None]
    if unknown:
        raise UsageError(f"{path}: {len(unknown)} labels are not in {file}: {classes.unknown(unknown)}")
    return classes.names, {label: classes.names[index] for label, index in indices.items() if index is not None}


def _read_class_names(file: Path) -> list[str]:
    names: dict[str, None] = {}
    for number, name in enumerate(read_lines(file), start=1):
        if not name or name in names:
            problem = f"class {name!r} again" if name else "no name"
            raise UsageError(f"{file}, line {number}: {problem}, wanted one new class name a line")
        names[name] = None
    return list(names)
