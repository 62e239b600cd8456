"""`voc:DIR#split`: the published VOC2012 layout."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from advcam_fast.data.dataset import Dataset, Item
from advcam_fast.data.text_files import read_lines
from advcam_fast.errors import UsageError

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


def read_voc(directory: Path, split: str, spec: str) -> Dataset:
    """Lists a split with the classes of the objects in each annotation (difficult ones included, in VOC order).

    An image whose annotation is missing or broken is an item with a `problem`. Masks are given where they exist.
    Raises UsageError that lists what the layout lacks.
    """
    names, segmentation = _read_split(directory, split, spec)
    parts = ["JPEGImages", "Annotations", *(["SegmentationClass"] if segmentation else [])]
    lacking = [part for part in parts if not (directory / part).is_dir()]
    if lacking:
        raise UsageError(f"data {spec!r}: {directory} lacks {', '.join(lacking)}; wanted {', '.join(parts)}")
    return Dataset([_read_item(directory, name) for name in names], VOC_CLASSES, spec, directory)


def _read_split(directory: Path, split: str, spec: str) -> tuple[list[str], bool]:
    if "/" in split or split.startswith("."):
        raise UsageError(f"data {spec!r}: split {split!r}, wanted a name such as train")
    folders = [directory / "ImageSets" / task for task in ("Segmentation", "Main")]
    file = next((folder / f"{split}.txt" for folder in folders if (folder / f"{split}.txt").is_file()), None)
    if file is None:
        found = sorted({path.stem for folder in folders for path in folder.glob("*.txt")})
        there = f"there are {', '.join(found[:10])}" if found else "there is no list at all"
        wanted = f"ImageSets/Segmentation/{split}.txt or ImageSets/Main/{split}.txt"
        raise UsageError(f"data {spec!r}: {directory} lacks {wanted}; {there}")
    names = dict.fromkeys(line for line in read_lines(file) if line)
    for name in names:
        if len(name.split()) != 1 or "/" in name or "\0" in name or name.startswith("."):
            raise UsageError(f"{file}: {name!r}, wanted one image name without folder and suffix a line")
    if not names:
        raise UsageError(f"{file}: the split is empty")
    return list(names), file.parent.name == "Segmentation"


def _read_item(directory: Path, name: str) -> Item:
    path = directory / "JPEGImages" / f"{name}.jpg"
    mask = directory / "SegmentationClass" / f"{name}.png"
    known_mask = mask if mask.is_file() else None
    try:
        labels = _object_classes(directory / "Annotations" / f"{name}.xml")
    except (OSError, ValueError, ElementTree.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Item(name, path, None, known_mask, f"annotation Annotations/{name}.xml: {reason}")
    return Item(name, path, labels, known_mask)


def _object_classes(file: Path) -> tuple[str, ...]:
    text = file.read_text(encoding="utf-8-sig")
    if "<!" in text.replace("<!--", ""):  # a document type could declare entities that expand without end
        raise ValueError("a document type declaration or CDATA, wanted plain XML")
    found = {(name.text or "").strip() for name in ElementTree.fromstring(text).findall("object/name")}
    unknown = sorted(found.difference(VOC_CLASSES))
    if unknown:
        raise ValueError(f"object {unknown[0]!r} is none of the 20 VOC classes")
    return tuple(name for name in VOC_CLASSES if name in found)
