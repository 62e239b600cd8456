"""Small runs with maps that are known, and the data they are judged by."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import save_photo
from PIL import Image

from advcam_fast.store import MaskFolder, RunFolder

NAMES = ("cat", "dog", "owl")
HEIGHT, WIDTH = 45, 60
# image, tags, and what its mask holds: blocks of the first tag's value and so on
ROWS = (("a", "cat"), ("b/c", "dog;cat"), ("d", "owl"), ("e", ""), ("f", "dog"), ("g", "cat"))
GIVEN: dict[str, Any] = {
    "labels": {"from": "given"},
    "class_map": {"cat": 281, "dog": 207, "owl": 24},
    "climb": {"preset": "general"},
}
NUMBERS: Mapping[str, int] = GIVEN["class_map"]


def truth_of(number: int, labels: Sequence[str]) -> np.ndarray:
    """A block for each label, the first the largest, with a border that is ignored."""
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for at, label in enumerate(labels):
        top, left, side = 4 + 3 * number % 7 + 18 * at, 5 + 5 * number + 20 * at % 30, 20 - 12 * at
        truth[top : top + side, left : left + side] = 1 + NAMES.index(label)
        truth[top, left : left + side] = 255
    return truth


def save_data(folder: Path) -> str:
    """Photos, masks and boxes; returns the SPEC of the masks' list (boxes.csv beside it has the boxes)."""
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    rows, boxes = [["image", "labels", "mask"]], [["image", "label", "xmin", "ymin", "xmax", "ymax"]]
    for number, (name, tags) in enumerate(ROWS):
        save_photo(folder / f"{name}.png", number, (WIDTH, HEIGHT))
        truth = truth_of(number, tags.split(";") if tags else [])
        file = folder / "masks" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth).save(file)
        rows.append([f"{name}.png", tags, f"masks/{name}.png"])
        for label in tags.split(";") if tags else []:
            ys, xs = np.nonzero(truth == 1 + NAMES.index(label))
            boxes.append([f"{name}.png", label, *map(str, (xs.min(), ys.min(), xs.max(), ys.max()))])
    for name, content in (("list.csv", rows), ("boxes.csv", boxes)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(content)
    return f"csv:{folder / 'list.csv'}"


def noisy_maps(number: int, tags: Sequence[str], labels: Sequence[str], noise: float) -> dict[str, torch.Tensor]:
    """Maps of some labels: their truth under noise, of which the plain CAM has twice as much."""
    generator = torch.Generator().manual_seed(number)
    truth = torch.from_numpy(truth_of(number, tags))
    size = (len(labels), HEIGHT, WIDTH)
    inside = torch.stack([(truth == 1 + NAMES.index(label)).float() for label in labels] or [torch.zeros(0)])
    inside = inside.view(size) * 0.5
    full, initial = (
        (inside + strength * torch.rand(size, generator=generator)).clamp(0, 1) for strength in (noise, 2 * noise)
    )
    classes = torch.tensor([NUMBERS[label] for label in labels], dtype=torch.int64)
    return {"classes": classes, "strided": full[:, ::4, ::4], "initial": initial, "full": full}


def save_run(
    folder: Path,
    noise: float = 0.6,
    settings: Mapping[str, Any] = GIVEN,
    labels: Callable[[Sequence[str]], Sequence[str]] = lambda tags: tags,
    full: bool = True,
    left_out: Sequence[str] = (),
) -> Path:
    with RunFolder.open(folder, {**settings, "full": full}, store="fp32") as run:
        for number, (name, tags) in enumerate(ROWS):
            given = tags.split(";") if tags else []
            own = labels(given)
            maps = noisy_maps(number, given, own, noise)
            if not full:
                del maps["full"]
            if name not in left_out:
                run.finish(name, maps, labels=own)
    return folder


def save_masks(run: Path, spoiled: str = "") -> None:
    """The true masks, as `refine` would store them, in an order of classes of its own."""
    names = sorted(NAMES, reverse=True)
    with MaskFolder.open(run / "masks", {}) as masks:
        for number, (name, tags) in enumerate(ROWS):
            truth = truth_of(number, tags.split(";") if tags else [])
            value = np.array([0, *(1 + names.index(label) for label in NAMES)], np.uint8)
            mask = value[np.where(truth == 255, 0, truth)]
            masks.finish(name, torch.from_numpy(mask[:-1] if name == spoiled else mask))
    (run / "masks" / "classes.txt").write_text("".join(f"{name}\n" for name in names))
