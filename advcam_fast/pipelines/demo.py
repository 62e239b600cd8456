"""demo: a labelled run on packaged photos with the packaged classifier, and pictures of its maps."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from advcam_fast.data import read_mask
from advcam_fast.errors import UsageError
from advcam_fast.report.overlay import overlay, sheet
from advcam_fast.store import MaskFolder, RunFolder

# File in scikit-image's data folder, and the tags a person would give it.
PHOTOS = {
    "chelsea.png": "tabby",
    "coffee.png": "espresso;cup",
    "camera.png": "tripod",
    "motorcycle_left.png": "motor scooter",
}

MASK_HEAT = 0.9  # a red of the overlay's colours


def write_photos(folder: Path) -> str:
    """Copies the photos into `folder` with a labels.csv beside them; the data SPEC to label them by."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError("the demo's photos come with scikit-image: in the source folder, pip install '.[demo]'")
    source = Path(spec.origin).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels"])
        for name, labels in PHOTOS.items():
            (folder / name).write_bytes((source / name).read_bytes())
            table.writerow([name, labels])
    return f"csv:{folder / 'labels.csv'}"


def draw_maps(run: RunFolder, masks: MaskFolder, classes: Sequence[str], photos: Path, out: Path) -> Path:
    """An overlay PNG for every class of every image, of CAM, AdvCAM and mask, and one sheet with all; its path."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for record in run.records():
        if record.status != "ok":
            continue
        file = next(photos.glob(f"{record.id}.*"))
        photo = np.asarray(Image.open(file).convert("RGB"))
        maps, mask = run.read_maps(record.id), read_mask(masks.file_path(record.id)).numpy()
        size = photo.shape[:2]
        for label, first, climbed in zip(record.labels, maps["initial"], maps["strided"], strict=True):
            heats = _sized(first, size), _sized(climbed, size), MASK_HEAT * (mask == 1 + classes.index(label))
            pictures = [photo, *(overlay(photo, heat) for heat in heats)]
            for kind, picture in zip(("cam", "advcam", "mask"), pictures[1:], strict=True):
                Image.fromarray(picture).save(out / f"{record.id}_{label.replace(' ', '_')}_{kind}.png")
            rows.append((label, pictures))
    path = out / "maps.png"
    sheet(rows, ("photo", "CAM", "AdvCAM", "mask")).save(path)
    return path


def _sized(heat: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return interpolate(heat[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
