"""What is evaluated: a run, its maps at full size and its masks in the classes of the data, or masks alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.climb.plan import padded_size
from advcam_fast.data import Dataset, ImageError, Item
from advcam_fast.data.labels import ClassNames
from advcam_fast.data.text_files import read_lines
from advcam_fast.errors import UsageError
from advcam_fast.pipelines.refine import CLASSES_FILE
from advcam_fast.pipelines.train_segmenter import UNSURE, value_table
from advcam_fast.store import MaskFolder, RunFolder


class RunMaps(NamedTuple):
    """The maps of an image: the class of the data of each, and by method [n, H, W]; of masks alone, the mask."""

    labels: tuple[str, ...]
    classes: list[int]
    full: dict[str, Tensor]
    size: tuple[int, int]
    mask: Tensor | None = None


class JudgedRun:
    """A run folder seen with the classes of a data set; `masks` is the folder that `refine` made of it.

    predicted: how many classes an image its model chose, best first; None where the data's tags were given.
    """

    methods: tuple[str, ...] = ("advcam", "cam")

    def __init__(self, path: Path, dataset: Dataset, masks: Path | None = None) -> None:
        self.path = path
        self._run = RunFolder.read(path)
        self.labels = {record.id: record.labels for record in self._run.records() if record.status == "ok"}
        self._reasons = {record.id: record.reason for record in self._run.records() if record.status == "failed"}
        if not self.labels:
            raise UsageError(f"{path}: no image of this run has maps")
        self._names = ClassNames(dataset.class_names or (), f"data {dataset.spec!r}")
        self.class_count = len(self._names.names)
        mapped: dict[str, int] = self._run.settings.get("class_map", {})
        self._tags: dict[int, list[str]] = {}  # of the data, by class of the model
        for tag, number in mapped.items():
            if tag in self._names.names:
                self._tags.setdefault(number, []).append(tag)
        how: dict[str, Any] = self._run.settings.get("labels", {})
        self.predicted = (how.get("top_k") or 1) if how.get("from") == "predicted" else None
        folder = masks or path / "masks"
        self.masks = MaskFolder.read(folder) if masks or folder.is_dir() else None
        self._values = read_lines(folder / CLASSES_FILE) if self.masks else []

    def facts(self, dataset: Dataset) -> dict[str, Any]:
        """What of the run the figures belong to."""
        known = {item.id for item in dataset.items}
        climb = self._run.settings.get("climb", {})
        return {
            "run": str(self.path),
            "preset": climb.get("preset", ""),
            "maps": "full" if self._run.settings.get("full") else "strided, enlarged",
            "masks": str(self.masks.path) if self.masks else None,
            "not_in_the_data": len([item_id for item_id in self.labels if item_id not in known]),
        }

    def read(self, item: Item) -> RunMaps:
        """The maps of an item; raises ImageError, StoreError or UsageError with the reason why there are none."""
        if item.id not in self.labels:
            raise ImageError(f"no map in {self.path}: {self._reasons.get(item.id) or 'it is not in the run'}")
        stored, labels = self._run.read_maps(item.id), self.labels[item.id]
        numbers, initial = stored["classes"].tolist(), stored["initial"]
        size = (int(initial.shape[1]), int(initial.shape[2]))
        strided = (len(labels), (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
        if len(numbers) != len(labels) or len(initial) != len(labels) or stored["strided"].shape != strided:
            shapes = f"{list(stored['strided'].shape)} and {list(initial.shape)}"
            raise ImageError(f"its maps are {shapes}, wanted are {list(strided)} and {[len(labels), *size]}")
        for name in ("strided", "initial", "full"):
            _check(name, stored.get(name))
        classes = [self._class(label, number, item) for label, number in zip(labels, numbers, strict=True)]
        if len(set(classes)) != len(classes):
            raise ImageError(f"two of its maps, {', '.join(labels)}, are of one class of the data")
        return RunMaps(labels, classes, {"advcam": _enlarged(stored, size), "cam": initial}, size)

    def read_mask(self, item: Item, maps: RunMaps) -> Tensor:
        """The mask that `refine` made, in the classes of the data: uint8 [H, W], v > 0 class v - 1."""
        assert self.masks is not None
        mask = self.masks.read_mask(item.id)
        if tuple(mask.shape) != maps.size:
            raise ImageError(f"its refined mask is {list(mask.shape)}, its maps are {list(maps.size)}")
        place = torch.zeros(256, dtype=torch.uint8)
        for value in mask.unique().tolist():
            if value and value > len(self._values):
                raise ImageError(f"its refined mask holds {value}, there are {len(self._values)} classes")
            if value:
                label = self._values[value - 1]
                known = label in maps.labels
                place[value] = 1 + (maps.classes[maps.labels.index(label)] if known else self.class_of(label))
        return torch.from_numpy(place.numpy()[mask.numpy()])

    def class_of(self, label: str) -> int:
        """The index of a class of the data; raises ImageError for a label that is none."""
        number = self._names.index(label)
        if number is None:
            raise ImageError(f"{self._names.unknown([label])} is no class of the data")
        return number

    def _class(self, label: str, number: int, item: Item) -> int:
        """By the tag that was climbed: the item's own first; where labels were predicted, by name."""
        tags = self._tags.get(number, [])
        own = [tag for tag in tags if tag in (item.labels or ())] or tags
        if len(own) > 1:
            raise ImageError(f"the map of {label!r} stands for {' and '.join(own)} alike")
        return self.class_of(own[0] if own else label)


class JudgedMasks:
    """A folder of masks by itself, what `train-segmenter` predicts say; raises UsageError where it is none."""

    methods: tuple[str, ...] = ()
    predicted = None

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path, self.masks = path, MaskFolder.read(path)
        self.labels = {record.id: record.labels for record in self.masks.records() if record.status == "ok"}
        self._reasons = {record.id: record.reason for record in self.masks.records() if record.status == "failed"}
        self.class_count = len(dataset.class_names or ())
        self._values = value_table(read_lines(path / CLASSES_FILE), dataset.class_names or ())

    def facts(self, dataset: Dataset) -> dict[str, Any]:
        """What the figures belong to."""
        known = {item.id for item in dataset.items}
        missing = len([item_id for item_id in self.labels if item_id not in known])
        return {"run": str(self.path), "preset": "", "maps": None, "masks": str(self.path), "not_in_the_data": missing}

    def read(self, item: Item) -> RunMaps:
        """No maps, but the mask; raises ImageError or StoreError with the reason why there is none."""
        if item.id not in self.labels:
            raise ImageError(f"no mask in {self.path}: {self._reasons.get(item.id) or 'it is not in the folder'}")
        mask = self.masks.read_mask(item.id)
        known = self._values[mask.long()]
        strange = mask[(known == UNSURE) & (mask != UNSURE)]
        if len(strange):
            raise ImageError(f"its mask holds {int(strange.max())}, which is none of its folder's classes")
        return RunMaps((), [], {}, (int(mask.shape[0]), int(mask.shape[1])), known)

    def read_mask(self, item: Item, maps: RunMaps) -> Tensor:
        """uint8 [H, W] in the classes of the data: 0 background, v > 0 class v - 1, 255 none."""
        assert maps.mask is not None, item.id
        return maps.mask


def _enlarged(stored: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The full-size maps, made of the strided ones where they are not stored as the method makes them of its sums."""
    if "full" in stored:
        return stored["full"]
    full = torch.zeros(len(stored["strided"]), *size)
    if len(full):
        ops.cam_accumulate([stored["strided"]], full, padded_size(*size), normalise=True)
    return full


def _check(name: str, maps: Tensor | None) -> None:
    if maps is None or not maps.numel():
        return
    low, high = maps.aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise ImageError(f"its {name} maps hold a NaN or a value that is not in 0 to 1")
