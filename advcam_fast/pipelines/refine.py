"""refine: the maps of a run in, palette masks and instances out; resumable, and one bad image never stops it.

On a CPU images are refined side by side, one a thread: what one of them needs does not share threads well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from advcam_fast.data import AVAILABLE, Dataset, ImageError, TarMember, read_image
from advcam_fast.errors import UsageError, first_line
from advcam_fast.models import AffinityNet
from advcam_fast.pipelines.label import NO_LABELS, Progress
from advcam_fast.pipelines.side_by_side import side_by_side
from advcam_fast.refine import RefineConfig, instances_of, mask_of, refined_maps
from advcam_fast.store import (
    MOST_CLASSES,
    InstanceFolder,
    ItemFolder,
    MaskFolder,
    Record,
    RunFolder,
    StoredInstance,
    StoreError,
)

CLASSES_FILE = "classes.txt"
ONLY_BACKGROUND = "only_background"


def images_of(run: ItemFolder, data: str | None) -> str:
    """The SPEC of a folder's images: as given, else as the folder remembers it."""
    spec = data or str(run.settings.get("data", ""))
    if not spec or spec == "demo":
        raise UsageError(f"{run.path}: it does not say where its images are: add --data {AVAILABLE}")
    return spec


def run_classes(run: RunFolder) -> list[str]:
    """The class names of a run's maps, damaged ones too, sorted: mask value v > 0 is number v - 1 of them.

    Raises UsageError where there are none, or more than a mask has values for.
    """
    names = sorted({label for record in run.records() if record.sha256 for label in record.labels})
    if not names:
        raise UsageError(f"{run.path}: no image of this run has maps")
    if len(names) > MOST_CLASSES:
        raise UsageError(f"{run.path}: {len(names)} classes, a mask of 8 bits holds {MOST_CLASSES} at most")
    return names


def run_digest(run: RunFolder) -> str:
    """SHA-256 over the digests of all maps: masks of other maps are other masks. A damaged file changes nothing."""
    digest = hashlib.sha256()
    for line in sorted(
        f"{record.id} {'ok' if record.sha256 else 'failed'} {record.sha256}" for record in run.records()
    ):
        digest.update(line.encode())
    return digest.hexdigest()


def stored_maps(run: RunFolder, record: Record, paths: Mapping[str, Path | TarMember]) -> torch.Tensor:
    """The strided maps of an item, one a label. Raises ValueError where there are none that fit, or no image of it."""
    if record.status != "ok":
        raise ValueError(f"no maps: {record.reason}")
    if record.id not in paths:
        raise ValueError("this data set has no image of this id: --data names another")
    try:
        maps = run.read_maps(record.id)["strided"]
    except StoreError as error:  # which would end the run: it is this item's alone
        raise ValueError(str(error)) from error
    if len(maps) != len(record.labels):
        raise ValueError(f"{len(maps)} maps for {len(record.labels)} labels in its file")
    return maps


def instances_beside(masks: Path) -> Path:
    """The folder of the instances that belong to a folder of masks."""
    return masks.with_name("instances" if masks.name == "masks" else f"{masks.name}_instances")


def refine_run(
    run: RunFolder,
    dataset: Dataset,
    masks: MaskFolder,
    classes: Sequence[str],
    config: RefineConfig,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    net: AffinityNet | None = None,
    instances: InstanceFolder | None = None,
    device: torch.device | None = None,
) -> None:
    """Makes the mask of every finished item of `run` that `masks` does not have yet, and its instances.

    dataset: where the images of the run are found again, by id. classes: of `run_classes`. net: of a walk by its
    boundary, and of instances; on `device`, the CPU where it is not given, which refines as many images side by side as
    torch has threads. An item without maps, image or fitting sizes is recorded as failed with the reason. Raises
    StoreError if nothing can be written any more.
    """
    folders: list[MaskFolder | InstanceFolder] = [masks, *([] if instances is None else [instances])]
    device = device or torch.device("cpu")
    work = _Refining(
        run,
        {item.id: item.path for item in dataset.items},
        {name: number + 1 for number, name in enumerate(classes)},
        config,
        net,
        device,
    )
    done = {folder: folder.done_ids() for folder in folders}
    in_all = frozenset.intersection(*done.values())
    records = [record for record in run.records() if record.id not in in_all]
    total = len(records) + len(in_all)

    def refine(record: Record) -> str:
        return work.item(record, [folder for folder in folders if record.id not in done[folder]])

    with _evaluating(net), side_by_side(None if device.type == "cpu" else 1) as each:
        for finished, (record, reason) in enumerate(each(refine, records), start=len(in_all) + 1):
            report(Progress(record.id, finished, total, reason))


@contextmanager
def _evaluating(net: AffinityNet | None) -> Iterator[None]:
    """No thread may put the net back into training while another predicts."""
    training = net is not None and net.training
    if net is not None:
        net.eval()
    try:
        yield
    finally:
        if net is not None:
            net.train(training)


class _NoMask(Exception):
    """An item that cannot have one."""


@dataclass(frozen=True)
class _Refining:
    run: RunFolder
    paths: Mapping[str, Path | TarMember]
    value: Mapping[str, int]  # of a class in a mask
    config: RefineConfig
    net: AffinityNet | None
    device: torch.device

    def item(self, record: Record, folders: Sequence[MaskFolder | InstanceFolder]) -> str:
        """Writes what an item has in folders, or why it has nothing; returns the reason."""
        flags, finished = list(record.flags), 0
        try:
            maps, image = stored_maps(self.run, record, self.paths).to(self.device), self._image(record)
            boundary, displacement = self._fields(image)
            for folder in folders:
                if isinstance(folder, InstanceFolder):
                    assert displacement is not None
                    found = instances_of(maps, image, self.config, boundary, displacement)
                    stored = [StoredInstance(record.labels[one.which], one.score, one.mask) for one in found]
                    size = (image.shape[1], image.shape[2])
                    folder.finish(record.id, size, stored, flags=flags, labels=record.labels)
                else:
                    mask = self._mask(record, maps, image, boundary)
                    empty = NO_LABELS not in flags and not bool(mask.any())
                    more = [ONLY_BACKGROUND] if empty else []
                    folder.finish(record.id, mask, flags=[*flags, *more], labels=record.labels)
                finished += 1
        except (ImageError, _NoMask, ValueError, MemoryError) as error:
            reason = first_line(error)
            for folder in folders[finished:]:
                folder.fail(record.id, reason, labels=record.labels)
            return reason
        return ""

    def _image(self, record: Record) -> torch.Tensor:
        return read_image(self.paths[record.id]).to(self.device)

    def _fields(self, image: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Boundary and displacement."""
        try:
            return (None, None) if self.net is None else self.net.predict(image)
        except RuntimeError as error:  # no memory for an image of that size, on whatever device
            raise _NoMask(f"the affinity net cannot take it: {first_line(error)}") from error

    def _mask(
        self, record: Record, maps: torch.Tensor, image: torch.Tensor, boundary: torch.Tensor | None
    ) -> torch.Tensor:
        """uint8 [H, W]."""
        labels = mask_of(refined_maps(maps, image, self.config, boundary), image, self.config)
        values = torch.tensor([0, *(self.value[label] for label in record.labels)], dtype=torch.uint8)
        return values[labels.cpu()]
