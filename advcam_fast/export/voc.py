"""PASCAL VOC's segmentation layout, with a label map: what CVAT imports as "Segmentation mask 1.1"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from advcam_fast.data import voc_palette
from advcam_fast.export.item import ExportItem
from advcam_fast.export.objects import IGNORED

_OWN = ("background", "ignored")


class VocExport:
    """JPEGImages/, SegmentationClass/NAME.png, ImageSets/Segmentation/default.txt, labelmap.txt, classes.txt."""

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._classes, self._copy = folder, classes, copy_images
        self._names: list[str] = []
        self._ignored = False

    def add(self, item: ExportItem) -> None:
        assert item.mask is not None
        item.picture.place(self._folder / "JPEGImages", item.name, self._copy)
        file = self._folder / "SegmentationClass" / f"{item.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(item.mask_file)
        self._names.append(item.name)
        self._ignored |= bool((item.mask == IGNORED).any())

    def close(self) -> None:
        colours = [",".join(map(str, voc_palette()[3 * value : 3 * value + 3])) for value in range(256)]
        rows = [("background", colours[0])]
        rows += zip(
            map(map_label, self._classes), colours[1:IGNORED], strict=False
        )  # what 8 bits cannot hold is in none
        rows += [("ignored", colours[IGNORED])] if self._ignored else []
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:{colour}::" for name, colour in rows)]
        _write_lines(self._folder / "labelmap.txt", lines)
        _write_lines(self._folder / "ImageSets" / "Segmentation" / "default.txt", self._names)
        _write_lines(self._folder / "classes.txt", self._classes)


def map_label(name: str) -> str:
    """A class name as a label map can hold it: colons, line ends, outer spaces and a first # percent-encoded."""
    safe = re.sub(r"[%:\x00-\x1f\x7f\x85\u2028\u2029]|^\s|\s$", lambda found: quote(found[0], safe=""), name)
    if safe in _OWN or safe.startswith("#"):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    return safe


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
