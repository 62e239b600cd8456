"""train-affinity: the maps of a run in, the weights of an affinity net out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from advcam_fast.data import Dataset, ImageError, TarMember, read_image, read_mask
from advcam_fast.errors import UsageError, first_line
from advcam_fast.pipelines.label import Progress
from advcam_fast.pipelines.refine import stored_maps
from advcam_fast.pipelines.side_by_side import side_by_side
from advcam_fast.store import MaskFolder, Record, RunFolder
from advcam_fast.train import affinity_labels

UNSURE = 255


def sure_labels(
    run: RunFolder,
    dataset: Dataset,
    folder: MaskFolder,
    classes: Sequence[str],
    foreground: float,
    background: float,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Makes the training labels (ops of affinity_labels) of every image of `run` that has tags and none in `folder`.

    classes: of `run_classes`. What cannot be read or does not fit is recorded as failed with the reason. Raises
    StoreError if `folder` cannot be written any more.
    """
    paths = {item.id: item.path for item in dataset.items}
    number = {name: index for index, name in enumerate(classes)}
    tagged = [record for record in run.records() if record.labels]
    done = folder.done_ids()
    todo = [record for record in tagged if record.id not in done]

    def make(record: Record) -> str:
        try:
            maps = stored_maps(run, record, paths)
            indices = torch.tensor([number[label] for label in record.labels])
            labels = affinity_labels(read_image(paths[record.id]), maps, indices, foreground, background)
            folder.finish(record.id, labels, labels=record.labels)
        except (ImageError, ValueError, MemoryError) as error:
            reason = first_line(error)
            folder.fail(record.id, reason, labels=record.labels)
            return reason
        return ""

    with side_by_side() as each:
        for finished, (record, reason) in enumerate(each(make, todo), start=len(tagged) - len(todo) + 1):
            report(Progress(record.id, finished, len(tagged), reason))


class SureImages:
    """The images of a folder of training labels that teach something: data[i] is (uint8 [3, H, W], labels [H, W])."""

    def __init__(self, folder: MaskFolder, dataset: Dataset) -> None:
        """Raises UsageError where no label of any image is sure of two values, or of one foreground."""
        paths: Mapping[str, Path | TarMember] = {item.id: item.path for item in dataset.items}
        ids = sorted(record.id for record in folder.records() if record.status == "ok")
        files = [(paths[item_id], folder.file_path(item_id)) for item_id in ids]
        self.files = [pair for pair in files if _teaches(read_mask(pair[1]))]
        if not self.files:
            found = f"of {len(files)} images none has a sure foreground"
            raise UsageError(f"{folder.path}: {found}: lower --foreground, or look at the maps")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        image, labels = self.files[index]
        return read_image(image), read_mask(labels)


def _teaches(labels: Tensor) -> bool:
    return bool(((labels > 0) & (labels != UNSURE)).any())
