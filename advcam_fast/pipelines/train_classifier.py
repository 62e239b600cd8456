"""train-classifier: images and tags in, the weights of a classifier out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcam_fast.data import Dataset, ImageError, Item, match_labels, read_image
from advcam_fast.errors import UsageError
from advcam_fast.models import TrainableClassifier
from advcam_fast.pipelines.label import device_of
from advcam_fast.store.files import lock
from advcam_fast.train import ClassifierConfig, Team, train_classifier

TASKS = ("auto", "multi-label", "single-label")


class TaggedItems:
    """Items as what is trained on: data[i] is (uint8 [3, H, W], class indices); ImageError says why it cannot be."""

    def __init__(self, items: Sequence[Item], class_of: Mapping[str, int], single_label: bool) -> None:
        self.items, self.class_of, self.single_label = items, class_of, single_label

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> tuple[Tensor, list[int]]:
        item = self.items[index]
        if item.problem:
            raise ImageError(item.problem)
        if item.labels is None:
            raise ImageError(f"{item.path}: no tags are given")
        classes = sorted({self.class_of[label] for label in item.labels})
        if self.single_label and len(classes) != 1:
            raise ImageError(f"{item.path}: {len(classes)} classes; wanted 1 for single-label")
        return read_image(item.path), classes


def class_names_of(dataset: Dataset) -> tuple[str, ...]:
    """The data set's classes, or its sorted tags; raises UsageError where it has none."""
    tags = sorted({label for item in dataset.items for label in item.labels or ()})
    if not tags:
        raise UsageError(f"data {dataset.spec!r} has no tags: a classifier is trained on some")
    return dataset.class_names or tuple(tags)


def is_single_label(dataset: Dataset, class_names: Sequence[str], task: str) -> bool:
    """Whether the classes exclude one another: as `task` says, or for auto, every image with tags given has just one.

    Raises UsageError for another task, or one class only that is to exclude others.
    """
    if task not in TASKS:
        raise UsageError(f"--task {task}: wanted is {', '.join(TASKS)}")
    if task == "single-label" and len(class_names) < 2:
        raise UsageError(f"data {dataset.spec!r} has one class only: --task multi-label asks whether it is there")
    if task != "auto":
        return task == "single-label"
    return len(class_names) > 1 and all(len(item.labels) == 1 for item in dataset.items if item.labels is not None)


def tagged(dataset: Dataset, class_names: Sequence[str], single_label: bool) -> TaggedItems:
    """Raises UsageError listing tags that match no class."""
    tags = sorted({label for item in dataset.items for label in item.labels or ()})
    return TaggedItems(dataset.items, match_labels(tags, class_names), single_label)


def without_fold(dataset: Dataset, fold: str) -> tuple[Dataset, Dataset]:
    """(the rest, the fold): "K/N" is every N-th item from the K-th on. Raises UsageError for another text."""
    found = re.fullmatch(r"(\d+)/(\d+)", fold)
    number, folds = (int(part) for part in found.groups()) if found else (0, 0)
    if not (found and 2 <= folds <= len(dataset.items) and 1 <= number <= folds):
        raise UsageError(f"--val-fold {fold}: wanted is K/N, 1 <= K <= N, N from 2 to {len(dataset.items)} images")
    held = [item for index, item in enumerate(dataset.items) if index % folds == number - 1]
    rest = [item for index, item in enumerate(dataset.items) if index % folds != number - 1]
    return replace(dataset, items=rest), replace(dataset, items=held)


def data_digest(*datasets: Dataset | None) -> str:
    """The first digits of a SHA-256 of ids and tags: a training goes on with the data it was begun with."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for item in () if dataset is None else dataset.items:
            digest.update(repr((item.id, item.labels, item.problem is None)).encode())
        digest.update(b"end")
    return digest.hexdigest()[:16]


def train(
    net: TrainableClassifier,
    dataset: Dataset,
    judged: Dataset | None,
    class_names: Sequence[str],
    out: Path,
    config: ClassifierConfig,
    single_label: bool,
    **how: Any,
) -> dict[str, Any]:
    """Trains or goes on in a folder (`how`: of train_classifier) and says what came of it, failures by id."""
    done = train_classifier(
        net,
        tagged(dataset, class_names, single_label),
        class_names,
        out,
        config,
        single_label=single_label,
        judge=None if judged is None else tagged(judged, class_names, single_label),
        resume=True,
        data_digest=data_digest(dataset, judged),
        **how,
    )
    failures = _failures(dataset, done.problems) + _failures(judged, done.judged_problems)
    return {
        "weights": str(done.weights),
        "best": None if done.best is None else str(done.best),
        "score": done.score,
        "failed": len(failures),
        "failures": failures,
    }


def _failures(dataset: Dataset | None, problems: Mapping[int, str]) -> list[dict[str, str]]:
    if dataset is None:
        return []
    return [{"id": dataset.items[index].id, "reason": problems[index]} for index in sorted(problems)]


def training_device(name: str) -> torch.device:
    """The device of a name, as `label`'s; under torchrun "auto" and "cuda" are this process's own GPU."""
    device = device_of(name)
    own = device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ
    return device_of(f"cuda:{os.environ['LOCAL_RANK']}") if own else device


@contextmanager
def locked(folder: Path, team: Team) -> Iterator[None]:
    """The folder is this training's alone; UsageError if another one writes there or it cannot be made."""
    if not team.first:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock(folder / ".lock")
    except OSError as error:
        raise UsageError(f"{folder}: no training can be written here: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def tensorboard(folder: Path) -> Callable[[Mapping[str, Any]], None] | None:
    """Writes the numbers of each line of a log for TensorBoard; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(folder))

    def write(line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "epoch") and isinstance(value, (int, float)):
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write
