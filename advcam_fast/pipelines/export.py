"""export: a run's maps, masks and objects in, the folders of other tools out; whole or not there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advcam_fast.data import Dataset, ImageError, TarMember, read_mask
from advcam_fast.errors import UsageError, first_line
from advcam_fast.export import FORMATS, Exporter, ExportItem, MaskObject, Picture, components, stored_instances
from advcam_fast.pipelines.label import Progress
from advcam_fast.pipelines.refine import instances_beside, run_digest
from advcam_fast.store import InstanceFolder, MaskFolder, Record, RunFolder, StoreError
from advcam_fast.store.files import file_name

UNFIT = (ImageError, StoreError, ValueError, MemoryError)  # what read_item raises for an item that cannot be
_LONGEST_PART = 200  # bytes of a file's name


def parse_formats(text: str) -> list[str]:
    """ "voc,coco" -> their names, each once; raises UsageError naming those there are."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UsageError(f"--to {text}: wanted is one or several of {','.join(FORMATS)}")
    return names


@dataclass(frozen=True)
class ExportSource:
    """A run with what was made of it: masks, their classes, and instances where `refine --instances` found them."""

    run: RunFolder
    masks: MaskFolder | None
    classes: tuple[str, ...]
    instances: InstanceFolder | None

    @classmethod
    def read(cls, run: RunFolder, masks: Path, formats: Sequence[str]) -> ExportSource:
        """Raises UsageError for a run without maps, and where masks are needed and lack or were made of other maps."""
        if not any(record.status == "ok" for record in run.records()):
            raise UsageError(f"{run.path}: no image of this run has maps")
        needing = [name for name in formats if FORMATS[name].NEEDS_MASKS]
        if not needing:
            return cls(run, None, (), None)
        if not (masks / "run.toml").is_file():
            raise UsageError(f"{masks}: no masks, which {','.join(needing)} needs: run refine first")
        folder, beside = MaskFolder.read(masks), instances_beside(masks)
        instances = InstanceFolder.read(beside) if (beside / "run.toml").is_file() else None
        classes = folder.settings.get("classes")
        for made in (folder, *([instances] if instances else [])):
            if made.settings.get("maps") != run_digest(run) or made.settings.get("classes") != classes:
                raise UsageError(f"{made.path}: not made of the maps in {run.path}: run refine again")
        return cls(run, folder, tuple(classes or ()), instances)


def export_run(
    source: ExportSource,
    dataset: Dataset,
    formats: Sequence[str],
    out: Path,
    *,
    copy_images: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Writes every finished item of a run as OUT/FORMAT, for each format; items that cannot be are reported with why.

    A folder has its name only once it is whole. Raises UsageError where one is there already, OSError where the disk
    cannot take it: then nothing is left.
    """
    paths = {item.id: item.path for item in dataset.items}
    total = sum(source.run.counts().values())
    with _folders(out, formats) as folders:
        writers = [FORMATS[name](folder, source.classes, copy_images) for name, folder in folders.items()]
        for number, record in enumerate(source.run.records(), start=1):
            reason = _export_item(source, record, paths, writers)
            report(Progress(record.id, number, total, reason))
        for writer in writers:
            writer.close()


def _export_item(
    source: ExportSource, record: Record, paths: Mapping[str, Path | TarMember], writers: Sequence[Exporter]
) -> str:
    """Gives an item to every writer; returns why it could not."""
    try:
        item = read_item(source, record, paths)
    except UNFIT as error:
        return first_line(error)
    for writer in writers:
        writer.add(item)
    return ""


def read_item(source: ExportSource, record: Record, paths: Mapping[str, Path | TarMember]) -> ExportItem:
    """What the formats are given of an item. paths: id -> image. Raises one of UNFIT for an item that is not whole."""
    if record.status != "ok":
        raise ValueError(f"no maps: {record.reason}")
    if record.id not in paths:
        raise ValueError("this data set has no image of this id: --data names another")
    maps = source.run.read_maps(record.id)
    if len(maps["classes"]) != len(record.labels):
        raise ValueError(f"{len(maps['classes'])} maps for {len(record.labels)} labels in its file")
    picture = Picture.read(paths[record.id])
    wanted = tuple((side - 1) // 4 + 1 for side in picture.size)
    if tuple(maps["strided"].shape[1:]) != wanted and record.labels:
        raise ValueError(f"its maps were made of another image: this one is {_by(picture.size)}")
    mask, content = None, b""
    objects: tuple[MaskObject, ...] = ()
    if source.masks is not None:
        mask, content = _mask(source.masks, record, picture.size)
        objects = _objects(source, record, mask, maps["strided"].numpy())
    return ExportItem(
        record.id, export_name(record.id), picture, record.labels, record.flags, maps, mask, content, objects
    )


def _mask(masks: MaskFolder, record: Record, size: tuple[int, int]) -> tuple[np.ndarray, bytes]:
    """A mask, uint8 [H, W], and its file."""
    file = masks.mask_file(record.id)
    mask = read_mask(file).numpy()
    if mask.shape != size:
        raise ValueError(f"a mask of {_by(mask.shape)} for an image of {_by(size)}")
    return mask, file.read_bytes()


def _objects(source: ExportSource, record: Record, mask: np.ndarray, maps: np.ndarray) -> tuple[MaskObject, ...]:
    if source.instances is None:
        return components(mask, source.classes, record.labels, maps)
    rows = source.instances.read_instances(record.id)["instances"]
    return stored_instances(rows, source.classes, (mask.shape[0], mask.shape[1]))


@contextmanager
def _folders(out: Path, formats: Sequence[str]) -> Iterator[dict[str, Path]]:
    """An empty folder for each format, which gets its name at the end, or is gone."""
    final = {name: out / name for name in formats}
    for folder in final.values():
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise UsageError(f"{folder} is there and not empty: remove it or choose another --out")
    working = {name: out / f".{name}.tmp" for name in formats}
    try:
        for folder in working.values():
            if folder.exists():
                shutil.rmtree(folder)  # of an export that was killed
            folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{out}: no export can be written here: {error.filename}: {error.strerror}") from error
    try:
        yield working
        for name, folder in working.items():
            folder.replace(final[name])
    finally:
        for folder in working.values():
            shutil.rmtree(folder, ignore_errors=True)


def export_name(item_id: str) -> str:
    """The id itself where it is a name that every tool reads, since tools match files by name; else file_name's."""
    return item_id if all(map(_is_plain, item_id.split("/"))) else file_name(item_id)


def _is_plain(part: str) -> bool:
    # % and ~ are in every encoded name and in no plain one: so no two ids share a name
    if not part.isprintable() or part != part.strip() or part.startswith(".") or re.search(r'[%~#"\\:*?<>|]', part):
        return False
    return 0 < len(part.encode(errors="surrogatepass")) <= _LONGEST_PART


def _by(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"
