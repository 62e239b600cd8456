"""`csv:FILE`: a list of images with labels and masks."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from advcam_fast.data.dataset import Dataset, Item, item_ids
from advcam_fast.data.labels import ClassNames
from advcam_fast.data.text_files import read_lines, read_rows
from advcam_fast.errors import UsageError


@dataclass(slots=True)
class _Entry:
    labels: dict[str, None] = field(default_factory=dict)  # an ordered set
    mask: str = ""


def read_csv_list(path: Path, spec: str) -> Dataset:
    """Reads a CSV with the columns image,labels[,mask]; others are ignored.

    Paths are relative to the file's folder and must stay in it, symlinks resolved. Labels are joined by `;`, names or
    indices of classes.txt beside the file; without that file, names, and the sorted labels are the classes (all
    numbers: sorted as numbers). Rows of the same image are merged. Raises UsageError naming file and line.
    """
    root = _Root(path.parent)
    entries: dict[str, _Entry] = {}
    for number, image, labels, mask in _columns(path):
        where = f"{path}, line {number}"
        image = root.inside(image, where)
        entry = entries.setdefault(image, _Entry())
        entry.labels.update(dict.fromkeys(label.strip() for label in labels.split(";") if label.strip()))
        if mask:
            mask = root.inside(mask, where)
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
        )
        for name, (image, entry) in zip(item_ids(list(entries)), entries.items(), strict=True)
    ]
    return Dataset(items, class_names, spec, path)


def _columns(path: Path) -> Iterator[tuple[int, str, str, str]]:
    rows = read_rows(path)
    number, header = next(rows, (0, []))
    if not header:
        raise UsageError(f"{path}: the file is empty, wanted the columns image,labels[,mask]")
    if any(header.count(column) != 1 for column in ("image", "labels")) or header.count("mask") > 1:
        raise UsageError(f"{path}, line {number}: columns {','.join(header)!r}, wanted image,labels[,mask] once each")
    image, labels = header.index("image"), header.index("labels")
    mask = header.index("mask") if "mask" in header else None
    for number, row in rows:
        if len(row) != len(header):
            raise UsageError(f"{path}, line {number}: {len(row)} fields under {len(header)} columns")
        yield number, row[image], row[labels], row[mask] if mask is not None else ""


class _Root:
    """The folder that the paths of a list may not leave."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._folders: dict[str, str] = {}  # the real path of each: a list has many files in few folders

    def inside(self, text: str, where: str) -> str:
        """The path without needless parts; raises UsageError if it is empty or leads out of the folder."""
        if not text:
            raise UsageError(f"{where}: no image is named")
        if text.startswith("/") or ".." in text.split("/") or "\0" in text:
            raise UsageError(f"{where}: path {text!r} is not below the list's folder")
        path = posixpath.normpath(text)
        folder, name = posixpath.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._real(folder, text, where)
        if os.path.islink(os.path.join(self._folders[folder], name)):
            self._real(path, text, where)
        return path

    def _real(self, path: str, text: str, where: str) -> str:
        real = os.path.realpath(os.path.join(self._root, path))
        if os.path.commonpath([self._root, real]) != self._root:
            raise UsageError(f"{where}: path {text!r} leads to {real}, out of the list's folder")
        return real


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
