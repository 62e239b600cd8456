"""`folder:DIR`: every image below a folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from advcam_fast.data.csv_list import read_csv_list
from advcam_fast.data.dataset import Dataset, Item, item_ids
from advcam_fast.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def read_folder(folder: Path, spec: str) -> Dataset:
    """Lists the images below a folder, sorted by path; hidden files are left out, symlinks followed.

    DIR/labels.csv, where there is one, is read as `csv:`. Otherwise, where every image lies directly in a subfolder
    of DIR, the subfolders' names are the labels; any other arrangement has no tags.
    """
    if not folder.is_dir():
        raise UsageError(f"data {spec!r}: {folder} is not a folder")
    if (folder / "labels.csv").is_file():
        return read_csv_list(folder / "labels.csv", spec)
    paths = _image_paths(folder)
    if not paths:
        raise UsageError(f"data {spec!r}: no image below {folder}; wanted files ending in {' '.join(SUFFIXES)}")
    tagged = all(len(PurePosixPath(path).parts) == 2 for path in paths)
    labels = [(PurePosixPath(path).parts[0],) if tagged else None for path in paths]
    items = [
        Item(id=name, path=folder / path, labels=label)
        for name, path, label in zip(item_ids(paths), paths, labels, strict=True)
    ]
    classes = tuple(sorted({label[0] for label in labels if label})) if tagged else None
    return Dataset(items, classes, spec, folder)


def _image_paths(folder: Path) -> list[str]:
    paths: list[str] = []
    seen = set()
    for directory, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:  # a symlink back into the tree
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = (name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        paths += ((Path(directory) / name).relative_to(folder).as_posix() for name in images)
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error
