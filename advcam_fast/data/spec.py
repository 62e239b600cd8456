"""Opens a data SPEC: which reader, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from advcam_fast.data.coco import read_coco
from advcam_fast.data.csv_list import read_csv_list
from advcam_fast.data.cub import read_cub
from advcam_fast.data.dataset import Dataset
from advcam_fast.data.folder import read_folder
from advcam_fast.data.imagenet import read_imagenet
from advcam_fast.data.voc import read_voc
from advcam_fast.data.webdataset import read_webdataset
from advcam_fast.data.wsol import read_wsol
from advcam_fast.errors import UsageError


def _read_openimages(directory: Path, split: str, spec: str) -> Dataset:
    return read_wsol(directory, "OpenImages", split, spec, masks=True)


_WITH_SPLIT: dict[str, tuple[Callable[[Path, str, str], Dataset], str]] = {  # and an example
    "voc": (read_voc, "voc:VOCdevkit/VOC2012#train"),
    "coco": (read_coco, "coco:coco#train2017"),
    "cub": (read_cub, "cub:CUB_200_2011#test"),
    "imagenet": (read_imagenet, "imagenet:imagenet#val"),
    "openimages": (_read_openimages, "openimages:wsolevaluation#test"),
}
AVAILABLE = f"folder:DIR, csv:FILE, webdataset:GLOB, {', '.join(f'{kind}:DIR#split' for kind in _WITH_SPLIT)}"


def open_dataset(spec: str) -> Dataset:
    """Lists the items of `folder:DIR`, `csv:FILE`, or a published layout such as `voc:DIR#split`; no image is opened.

    Raises UsageError for any other SPEC, for a layout or list that cannot be read, and for a list whose paths leave
    its folder. A listed image that is missing is no error here: reading it raises ImageError.
    """
    kind, _, place = spec.partition(":")
    if kind not in ("folder", "csv", "webdataset", *_WITH_SPLIT) or not place:
        raise UsageError(f"data {spec!r}: wanted {AVAILABLE}")
    try:
        if kind == "folder":
            return read_folder(Path(place).expanduser(), spec)
        if kind == "csv":
            return read_csv_list(Path(place).expanduser(), spec)
        if kind == "webdataset":
            return read_webdataset(str(Path(place).expanduser()), spec)
        read, example = _WITH_SPLIT[kind]
        directory, _, split = place.rpartition("#")
        if not directory or not split:
            raise UsageError(f"data {spec!r}: wanted {kind}:DIR#split, for instance {example}")
        if "/" in split or split.startswith("."):
            raise UsageError(f"data {spec!r}: split {split!r}, wanted a name such as {example.rpartition('#')[2]}")
        return read(Path(directory).expanduser(), split, spec)
    except OSError as error:
        raise UsageError(f"data {spec!r}: {error.filename}: {error.strerror}") from error
