"""Opens a data SPEC: which reader, and where."""

from __future__ import annotations

from pathlib import Path

from advcam_fast.data.csv_list import read_csv_list
from advcam_fast.data.dataset import Dataset
from advcam_fast.data.folder import read_folder
from advcam_fast.data.voc import read_voc
from advcam_fast.data.webdataset import read_webdataset
from advcam_fast.errors import UsageError

_AVAILABLE = "folder:DIR, csv:FILE, voc:DIR#split or webdataset:GLOB"
_PLANNED = ("coco", "cub", "imagenet", "openimages")


def open_dataset(spec: str) -> Dataset:
    """Lists the items of `folder:DIR`, `csv:FILE`, `voc:DIR#split` or `webdataset:GLOB`; no image is opened.

    Raises UsageError for any other SPEC, for a layout or list that cannot be read, and for a list whose paths leave
    its folder. A listed image that is missing is no error here: reading it raises ImageError.
    """
    kind, colon, place = spec.partition(":")
    if kind in _PLANNED and colon:
        raise UsageError(f"data {spec!r}: {kind}: is not available yet; available are {_AVAILABLE}")
    if kind not in ("folder", "csv", "voc", "webdataset") or not place:
        raise UsageError(f"data {spec!r}: wanted {_AVAILABLE}")
    try:
        if kind == "folder":
            return read_folder(Path(place).expanduser(), spec)
        if kind == "csv":
            return read_csv_list(Path(place).expanduser(), spec)
        if kind == "webdataset":
            return read_webdataset(str(Path(place).expanduser()), spec)
        directory, _, split = place.rpartition("#")
        if not directory or not split:
            raise UsageError(f"data {spec!r}: wanted voc:DIR#split, for instance voc:VOCdevkit/VOC2012#train")
        return read_voc(Path(directory).expanduser(), split, spec)
    except OSError as error:
        raise UsageError(f"data {spec!r}: {error.filename}: {error.strerror}") from error
