"""From a run's maps and masks to the files that other tools read: one module a format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from advcam_fast.export.coco import CocoExport
from advcam_fast.export.fiftyone import FiftyOneExport
from advcam_fast.export.item import ExportItem, Picture
from advcam_fast.export.labelstudio import LabelStudioExport
from advcam_fast.export.objects import MaskObject, components, stored_instances
from advcam_fast.export.parquet import ParquetExport
from advcam_fast.export.released import ReleasedExport
from advcam_fast.export.voc import VocExport
from advcam_fast.export.webdataset import WebdatasetExport
from advcam_fast.export.yolo import YoloExport

__all__ = [
    "FORMATS",
    "ExportItem",
    "Exporter",
    "MaskObject",
    "Picture",
    "components",
    "stored_instances",
]


class Exporter(Protocol):
    """Writes one format into an empty folder, image by image; only a folder that was closed is whole."""

    NEEDS_MASKS: bool

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None: ...

    def add(self, item: ExportItem) -> None: ...

    def close(self) -> None: ...


FORMATS: dict[str, type[Exporter]] = {
    "voc": VocExport,
    "coco": CocoExport,
    "yolo": YoloExport,
    "parquet": ParquetExport,
    "webdataset": WebdatasetExport,
    "labelstudio": LabelStudioExport,
    "fiftyone": FiftyOneExport,
    "released": ReleasedExport,
}
