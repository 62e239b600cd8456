"""A sample run, exported in this process, and masks of what was read back."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sample_run import IMAGES, SampleRun, item_id

from advcam_fast.data import open_dataset
from advcam_fast.pipelines.export import ExportSource, export_run
from advcam_fast.store import RunFolder

IDS = [item_id(file) for file, _, _ in IMAGES]
NAMES = ["a", "b/c d", "turned", "empty", "odd", "per%25cent%20%22q%22"]


def export(sample: SampleRun, out: Path, *formats: str, copy_images: bool = False) -> list[str]:
    """Why items were left out."""
    reasons: list[str] = []
    source = ExportSource.read(RunFolder.read(sample.path), sample.path / "masks", formats)
    export_run(
        source,
        open_dataset(sample.data),
        formats,
        out,
        copy_images=copy_images,
        report=lambda now: reasons.append(f"{now.item_id}: {now.reason}") if now.reason else None,
    )
    return reasons


def painted(sample: SampleRun, item: str, objects: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """The mask that objects of (class index, pixels) make."""
    mask = np.zeros_like(sample.masks[item])
    for category, pixels in objects:
        assert not (mask[pixels] != 0).any(), "objects overlap"
        mask[pixels] = 1 + category
    return mask


def drawn(objects: Iterable[tuple[int, np.ndarray]], size: tuple[int, int], scale: int = 8) -> np.ndarray:
    """The mask [H, W] of polygons of (class index, points from 0 to 1), drawn larger and looked at where pixels are.

    A cut along the centre of a pixel may be drawn: later objects win.
    """
    mask = np.zeros(size, np.uint8)
    for category, points in objects:
        picture = Image.new("L", (size[1] * scale, size[0] * scale))
        ImageDraw.Draw(picture).polygon([tuple(p) for p in np.rint(points * picture.size).tolist()], fill=1)
        mask[np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale] > 0] = 1 + category
    return mask
