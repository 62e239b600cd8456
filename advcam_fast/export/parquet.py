"""Parquet that Hugging Face `datasets` opens with images, masks and class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from advcam_fast.export.item import ExportItem, well_formed

ROWS_A_GROUP = 100
_FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_OBJECTS = pa.struct(
    {
        "category": pa.list_(pa.int64()),
        "bbox": pa.list_(pa.list_(pa.float32())),
        "area": pa.list_(pa.int64()),
        "score": pa.list_(pa.float32()),
        "counts": pa.list_(pa.string()),
    }
)


class ParquetExport:
    """data/train-00000.parquet: id, image, mask, labels, flags and, as COCO has them, the objects with their scores.

    An image is its path, unless copied: then its bytes.
    """

    NEEDS_MASKS = True

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._copy = copy_images
        self._number = {name: number for number, name in enumerate(classes)}
        label = {"names": [well_formed(name) for name in classes], "_type": "ClassLabel"}
        schema = pa.schema(
            {
                "id": pa.string(),
                "image": _FILE,
                "mask": _FILE,
                "width": pa.int64(),
                "height": pa.int64(),
                "labels": pa.list_(pa.int64()),
                "flags": pa.list_(pa.string()),
                "objects": _OBJECTS,
            }
        )
        # A dictionary in `Sequence` is what every version of datasets reads as a structure of lists.
        features = {
            "id": _value("string"),
            "image": {"_type": "Image"},
            "mask": {"_type": "Image"},
            "width": _value("int64"),
            "height": _value("int64"),
            "labels": {"feature": label, "_type": "Sequence"},
            "flags": {"feature": _value("string"), "_type": "Sequence"},
            "objects": {
                "category": {"feature": label, "_type": "Sequence"},
                "bbox": {"feature": {"feature": _value("float32"), "_type": "Sequence"}, "_type": "Sequence"},
                "area": {"feature": _value("int64"), "_type": "Sequence"},
                "score": {"feature": _value("float32"), "_type": "Sequence"},
                "counts": {"feature": _value("string"), "_type": "Sequence"},
            },
        }
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        (folder / "data").mkdir()
        self._schema = schema.with_metadata(metadata)
        self._writer = pq.ParquetWriter(folder / "data" / "train-00000.parquet", self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, item: ExportItem) -> None:
        assert item.mask is not None
        height, width = item.picture.size
        whole = self._copy or item.picture.anew is not None
        path = f"{item.name}{item.picture.suffix}" if whole else str(item.picture.path.resolve())
        self._rows.append(
            {
                "id": well_formed(item.id),
                "image": {"bytes": item.picture.content() if whole else None, "path": path},
                "mask": {"bytes": item.mask_file, "path": f"{item.name}.png"},
                "width": width,
                "height": height,
                "labels": [self._number[label] for label in item.labels],
                "flags": list(item.flags),
                "objects": {
                    "category": [found.category for found in item.objects],
                    "bbox": [found.box for found in item.objects],
                    "area": [found.area for found in item.objects],
                    "score": [found.score for found in item.objects],
                    "counts": [found.rle()["counts"] for found in item.objects],
                },
            }
        )
        if len(self._rows) == ROWS_A_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
