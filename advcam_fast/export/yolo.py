"""Ultralytics' segmentation layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advcam_fast.export.item import ExportItem
from advcam_fast.export.objects import MaskObject
from advcam_fast.export.outline import joined


class YoloExport:
    """data.yaml, images/train/, and labels/train/NAME.txt: a line an object, its class and x, y from 0 to 1."""

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._classes, self._copy = folder, classes, copy_images

    def add(self, item: ExportItem) -> None:
        # Readers find a label by the last folder `images` of a picture's path: no other may be called so.
        name = "/".join("%69mages" if part == "images" else part for part in item.name.split("/"))
        item.picture.place(self._folder / "images" / "train", name, self._copy)
        file = self._folder / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{_line(found)}\n" for found in item.objects), encoding="ascii")

    def close(self) -> None:
        names = "".join(f"  {number}: {_quoted(name)}\n" for number, name in enumerate(self._classes))
        # without `path` the folders are sought beside this file, with a relative one in the working directory
        text = f"train: images/train\nval: images/train\nnames:{'' if names else ' {}'}\n{names}"
        (self._folder / "data.yaml").write_text(text, encoding="utf-8")


def _line(found: MaskObject) -> str:
    height, width = found.image_size
    path = joined(found.polygons) / np.array([width, height], np.float64)
    return " ".join([str(found.category), *(f"{value:.7g}" for value in path.flatten().tolist())])


def _quoted(name: str) -> str:
    """A YAML string: JSON's, with what YAML takes for unprintable escaped too."""
    text = json.dumps(name, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)
