"""A small run with maps and masks, written without a network: what export and report are tested on."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advcam_fast.pipelines.refine import run_classes, run_digest
from advcam_fast.store import MaskFolder, RunFolder

HOSTILE = (
    "quote\"s and 'others'",
    "slash/and\\back",
    "🐈 emoji",
    "<script>alert(1)</script>",
    "colon: #hash, %25",
    "</script><img src=x onerror=alert(2)>",
    "background",
    "{{ 7 * 7 }} & [bold]",
)

# (file, labels, size): names that file systems take and tools stumble over
IMAGES = (
    ("a.jpg", HOSTILE[:1], (40, 33)),
    ("b/c d.png", HOSTILE[1:3], (31, 42)),
    ("turned.jpg", HOSTILE[3:5], (50, 28)),
    ("empty.png", (), (9, 8)),
    ("odd.webp", HOSTILE[5:7], (36, 36)),
    ('per%cent "q".png', (HOSTILE[7], HOSTILE[0]), (29, 37)),
)


@dataclass
class SampleRun:
    path: Path
    data: str
    classes: list[str]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)


def make_run(
    folder: Path, images: Sequence[tuple[str, Sequence[str], tuple[int, int]]] = IMAGES, full: bool = False
) -> SampleRun:
    """Photos, a run of maps in RUN and masks in RUN/masks; sizes are width, height as they are seen."""
    data = write_photos(folder / "photos", images)
    generator = np.random.default_rng(0)
    with RunFolder.open(folder / "run", {"data": data, "climb": {"preset": "none", "steps": 3}, "full": full}) as run:
        for file, labels, (width, height) in images:
            maps = blobs(generator, len(labels), height, width)
            arrays = {
                "classes": torch.arange(len(labels)),
                "strided": maps[:, ::4, ::4],
                "initial": maps**2,
                **({"full": maps} if full else {}),
            }
            flags = ("no_labels",) if not labels else ("below_threshold",) if len(labels) > 1 else ()
            run.finish(item_id(file), arrays, labels=tuple(labels), flags=flags)
    run = RunFolder.read(folder / "run")
    classes, masks = run_classes(run), {}
    settings = {"classes": classes, "maps": run_digest(run)}
    with MaskFolder.open(folder / "run" / "masks", settings) as masked:
        for file, labels, (width, height) in images:
            mask = mask_of(generator, [1 + classes.index(label) for label in labels], height, width)
            masks[item_id(file)] = mask
            masked.finish(item_id(file), torch.from_numpy(mask), labels=tuple(labels))
    return SampleRun(folder / "run", data, classes, masks)


def item_id(file: str) -> str:
    return file.rpartition(".")[0]


def write_photos(folder: Path, images: Sequence[tuple[str, Sequence[str], tuple[int, int]]]) -> str:
    with open(_parent(folder / "labels.csv"), "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels"])
        for seed, (name, labels, size) in enumerate(images):
            _parent(folder / name).write_bytes(photo(seed, size, Path(name).suffix, turned=name.startswith("turned")))
            table.writerow([name, ";".join(labels)])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in sorted({x for row in images for x in row[1]})))
    return f"csv:{folder / 'labels.csv'}"


def photo(seed: int, size: tuple[int, int], suffix: str, turned: bool) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1] if turned else size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # a quarter turn clockwise
    buffer = io.BytesIO()
    image.save(buffer, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix], exif=exif)
    return buffer.getvalue()


def blobs(generator: np.random.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """float32 [count, H, W], a hill each, its top 1."""
    down, across = np.mgrid[:height, :width]
    hills = np.zeros((count, height, width), np.float32)
    for hill in hills:
        y, x = generator.uniform(0.3, 0.7, 2) * (height, width)
        hill[:] = np.exp(-((down - y) ** 2 + (across - x) ** 2) / (0.12 * (height**2 + width**2)))
        hill /= hill.max()
    return torch.from_numpy(hills)


def mask_of(generator: np.random.Generator, values: Sequence[int], height: int, width: int) -> np.ndarray:
    """uint8 [H, W] of discs, with holes and loose pixels that touch by their corners only."""
    down, across = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for value in values:
        y, x = generator.uniform(0.3, 0.7, 2) * (height, width)
        mask[(down - y) ** 2 + (across - x) ** 2 < 0.09 * (height**2 + width**2)] = value
    mask[generator.random(mask.shape) < 0.08] = 0
    if values:
        mask[generator.random(mask.shape) < 0.02] = values[0]
        mask[0, 0] = mask[1, 1] = values[-1]
    return mask


def _parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
