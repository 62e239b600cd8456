"""FiftyOne's ImageSegmentationDirectory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from advcam_fast.export.item import ExportItem
from advcam_fast.export.objects import IGNORED


class FiftyOneExport:
    """data/, labels/NAME.png and mask_targets.json: value -> class, for `dataset.default_mask_targets`.

    The masks are grey and not palette PNGs: FiftyOne would read the colours of those. Objects and their scores are in
    the COCO export, which FiftyOne reads as COCODetectionDataset.
    """

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._classes, self._copy = folder, classes, copy_images

    def add(self, item: ExportItem) -> None:
        assert item.mask is not None
        item.picture.place(self._folder / "data", item.name, self._copy)
        file = self._folder / "labels" / f"{item.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(item.mask, mode="L").save(file)

    def close(self) -> None:
        targets = json.dumps(mask_targets(self._classes), indent=1)
        (self._folder / "mask_targets.json").write_text(targets, encoding="utf-8")


def mask_targets(classes: Sequence[str]) -> dict[int, str]:
    """Value of a mask -> what it means."""
    return {0: "background", **dict(enumerate(classes, start=1)), IGNORED: "ignored"}
