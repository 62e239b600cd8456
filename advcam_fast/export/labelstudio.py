"""Label Studio's tasks with brush masks as predictions, for people to correct."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from advcam_fast.data import voc_palette
from advcam_fast.export.item import ExportItem
from advcam_fast.export.objects import MaskObject

_LONGEST_RUN = 1 << 16
_RUN_SIZES = (3, 4, 8, 16)  # bits of a length, less one


class LabelStudioExport:
    """tasks.json, config.xml (the labelling interface) and images/, to be served as local files.

    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the folder above this one.
    """

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._copy = folder, copy_images
        self._labels = [_label(name) for name in classes]
        self._tasks = 0
        self._file = open(folder / "tasks.json", "w", encoding="utf-8")  # noqa: SIM115
        self._file.write("[")

    def add(self, item: ExportItem) -> None:
        name = item.picture.place(self._folder / "images", item.name, self._copy)
        scores = [found.score for found in item.objects]
        results = [self._result(item.id, number, found) for number, found in enumerate(item.objects)]
        task = {
            "data": {"image": f"/data/local-files/?d={quote(f'labelstudio/images/{name}')}", "id": item.id},
            "predictions": [{"model_version": "advcam_fast", "score": max(scores, default=0.0), "result": results}],
        }
        self._file.write(",\n" if self._tasks else "\n")
        self._file.write(json.dumps(task))
        self._tasks += 1

    def close(self) -> None:
        with self._file:
            self._file.write("\n]\n")
        colours = [voc_palette()[3 * value : 3 * value + 3].hex() for value in range(256)]
        labels = "".join(
            f"    <Label value={quoteattr(name)} background={quoteattr('#' + colours[1 + number % 254])}/>\n"
            for number, name in enumerate(self._labels)
        )
        view = (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n  <BrushLabels name="label" toName="image">\n'
        )
        (self._folder / "config.xml").write_text(f"{view}{labels}  </BrushLabels>\n</View>\n", encoding="utf-8")

    def _result(self, item_id: str, number: int, found: MaskObject) -> dict[str, Any]:
        height, width = found.image_size
        return {
            "id": hashlib.sha256(f"{number} {item_id!r}".encode()).hexdigest()[:10],
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(found.score, 6),
            "value": {"format": "rle", "rle": brush_rle(found.mask()), "brushlabels": [self._labels[found.category]]},
        }


def brush_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask, bool [H, W]: bytes of a stream of bits.

    32 bits: the number of values, 4 a pixel (RGBA, each 0 or 255); 5 bits: 8 - 1, of a value; 4 x 4 bits: the sizes of
    lengths, less one; then of every run 1, two bits that choose the size, the length less one, and the value.
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    lengths = 4 * np.diff(np.append(-1, ends))
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_SIZES)]
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[end] else "00000000"
        while length:
            run = min(length, _LONGEST_RUN)
            choice = next(number for number, size in enumerate(_RUN_SIZES) if run <= 1 << size)
            bits.append(f"1{choice:02b}{run - 1:0{_RUN_SIZES[choice]}b}{value}")
            length -= run
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def _label(name: str) -> str:
    """A class name without what XML cannot hold; the same in the tasks as in the interface."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", name)
