"""WebDataset shards: tar files of samples."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from advcam_fast.export.item import ExportItem

IMAGES_A_SHARD = 1000
BYTES_A_SHARD = 512 * 2**20


class WebdatasetExport:
    """shard-NNNNNN.tar of KEY.jpg (or .png), KEY.mask.png and KEY.json, and classes.json.

    KEY is a number, since a key ends at the first dot of a name; the JSON holds the id, the names of its labels, and
    its objects with their scores. Images are always copied.
    """

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder, self._classes = folder, classes
        self._samples = self._shards = self._in_shard = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, item: ExportItem) -> None:
        assert item.mask is not None
        if self._tar is None or self._in_shard == IMAGES_A_SHARD or self._tar.offset >= BYTES_A_SHARD:
            self._next_shard()
        height, width = item.picture.size
        facts = {
            "id": item.id,
            "width": width,
            "height": height,
            "labels": item.labels,
            "flags": item.flags,
            "objects": [
                {
                    "class": self._classes[found.category],
                    "category_id": found.category + 1,
                    "bbox": found.box,
                    "area": found.area,
                    "score": round(found.score, 6),
                    "segmentation": found.rle(),
                }
                for found in item.objects
            ],
        }
        suffix = ".png" if item.picture.suffix.lower() == ".png" else ".jpg"
        for ending, content in (
            (suffix, item.picture.content()),
            (".mask.png", item.mask_file),
            (".json", json.dumps(facts).encode()),
        ):
            self._put(f"{self._samples:09d}{ending}", content)
        self._samples += 1
        self._in_shard += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        (self._folder / "classes.json").write_text(json.dumps(list(self._classes)), encoding="utf-8")

    def _put(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # of no time and no owner: the same run gives the same bytes
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _next_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar = tarfile.open(self._folder / f"shard-{self._shards:06d}.tar", "w")  # noqa: SIM115
        self._shards += 1
        self._in_shard = 0
