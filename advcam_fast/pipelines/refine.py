"""refine: the maps of a run in, palette masks out; resumable, and one bad image never stops it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from advcam_fast.data import Dataset, ImageError, read_image
from advcam_fast.errors import UsageError, first_line
from advcam_fast.pipelines.label import NO_LABELS, Progress
from advcam_fast.refine import RefineConfig, mask_of, refined_maps
from advcam_fast.store import MOST_CLASSES, MaskFolder, Record, RunFolder, StoreError

CLASSES_FILE = "classes.txt"
ONLY_BACKGROUND = "only_background"


def run_classes(run: RunFolder) -> list[str]:
    """The class names of a run's maps, sorted: mask value v > 0 is number v - 1 of them.

    Raises UsageError where there are none, or more than a mask has values for.
    """
    names = sorted({label for record in run.records() if record.status == "ok" for label in record.labels})
    if not names:
        raise UsageError(f"{run.path}: no image of this run has maps")
    if len(names) > MOST_CLASSES:
        raise UsageError(f"{run.path}: {len(names)} classes, a mask of 8 bits holds {MOST_CLASSES} at most")
    return names


def run_digest(run: RunFolder) -> str:
    """SHA-256 over the digests of all maps: masks of other maps are other masks."""
    digest = hashlib.sha256()
    for line in sorted(f"{record.id} {record.status} {record.sha256}" for record in run.records()):
        digest.update(line.encode())
    return digest.hexdigest()


def refine_run(
    run: RunFolder,
    dataset: Dataset,
    masks: MaskFolder,
    classes: Sequence[str],
    config: RefineConfig,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Makes the mask of every finished item of `run` that `masks` does not have yet.

    dataset: where the images of the run are found again, by id. classes: of `run_classes`. An item without maps, image
    or fitting sizes is recorded as failed with the reason. Raises StoreError if masks cannot be written any more.
    """
    paths = {item.id: item.path for item in dataset.items}
    value = {name: number + 1 for number, name in enumerate(classes)}
    done = masks.done_ids()
    records = [record for record in run.records() if record.id not in done]
    total, finished = len(records) + len(done), len(done)
    for record in records:
        reason = _refine_item(run, record, paths, masks, value, config)
        finished += 1
        report(Progress(record.id, finished, total, reason))


def _refine_item(
    run: RunFolder,
    record: Record,
    paths: Mapping[str, Path],
    masks: MaskFolder,
    value: Mapping[str, int],
    config: RefineConfig,
) -> str:
    """Writes the mask of an item, or why there is none; returns the reason."""
    try:
        mask = _mask(run, record, paths, value, config)
    except (ImageError, _NoMask, ValueError, MemoryError) as error:
        reason = first_line(error)
        masks.fail(record.id, reason, labels=record.labels)
        return reason
    flags = [*record.flags]
    if NO_LABELS not in flags and not bool(mask.any()):
        flags.append(ONLY_BACKGROUND)
    masks.finish(record.id, mask, flags=flags, labels=record.labels)
    return ""


class _NoMask(Exception):
    """An item that cannot have one."""


def _mask(
    run: RunFolder, record: Record, paths: Mapping[str, Path], value: Mapping[str, int], config: RefineConfig
) -> torch.Tensor:
    """uint8 [H, W]."""
    if record.status != "ok":
        raise _NoMask(f"no maps: {record.reason}")
    if record.id not in paths:
        raise _NoMask("this data set has no image of this id: --data names another")
    try:
        maps = run.read_maps(record.id)["strided"]
    except StoreError as error:
        raise _NoMask(str(error)) from error
    if len(maps) != len(record.labels):
        raise _NoMask(f"{len(maps)} maps for {len(record.labels)} labels in its file")
    image = read_image(paths[record.id])
    labels = mask_of(refined_maps(maps, image, config), image, config)
    values = torch.tensor([0, *(value[label] for label in record.labels)], dtype=torch.uint8)
    return values[labels]
