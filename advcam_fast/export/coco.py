"""COCO's JSON of instances, as run lengths and as polygons; ids from 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advcam_fast.export.item import ExportItem
from advcam_fast.export.objects import MaskObject

_KINDS = ("rle", "polygons")


class CocoExport:
    """images/, annotations/instances_rle.json and annotations/instances_polygons.json: the same objects in each."""

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._copy = folder, copy_images
        self._images: list[dict[str, Any]] = []
        self._objects = 0
        (folder / "annotations").mkdir()
        self._files = {
            kind: open(folder / "annotations" / f"instances_{kind}.json", "w", encoding="utf-8")  # noqa: SIM115
            for kind in _KINDS
        }
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(classes, start=1)]
        for file in self._files.values():
            file.write('{"info": {"description": "advcam_fast"}, "licenses": [],\n"categories": ')
            file.write(f'{json.dumps(categories)},\n"annotations": [')

    def add(self, item: ExportItem) -> None:
        height, width = item.picture.size
        name = item.picture.place(self._folder / "images", item.name, self._copy)
        image = {"id": len(self._images) + 1, "file_name": name, "width": width, "height": height}
        self._images.append({**image, "item_id": item.id, "labels": item.labels, "flags": item.flags})
        for found in item.objects:
            self._objects += 1
            for kind, file in self._files.items():
                file.write(",\n" if self._objects > 1 else "\n")
                file.write(json.dumps(self._annotation(found, kind)))

    def _annotation(self, found: MaskObject, kind: str) -> dict[str, Any]:
        paths = [path.flatten().tolist() for path in found.polygons] if kind == "polygons" else found.rle()
        return {
            "id": self._objects,
            "image_id": len(self._images),
            "category_id": found.category + 1,
            "segmentation": paths,
            "bbox": found.box,
            "area": found.area,
            "iscrowd": 0,
            "score": round(found.score, 6),
        }

    def close(self) -> None:
        for file in self._files.values():
            with file:
                file.write(f'],\n"images": {json.dumps(self._images)}}}\n')
