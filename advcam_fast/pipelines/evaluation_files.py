"""What `evaluate` writes: metrics.json, plots, and the best and worst images as pictures."""

from __future__ import annotations

import heapq
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from advcam_fast.data import Dataset, ImageError, Item, read_boxes, read_image, read_truth
from advcam_fast.metrics.segmentation import SIZES
from advcam_fast.pipelines.evaluate import Evaluation, Judged
from advcam_fast.report.overlay import overlay, sheet
from advcam_fast.report.plots import class_plot, curve_plot, group_plot
from advcam_fast.store.files import write_whole

FOLDER = "evaluation"
PER_IMAGE_FILE = f"{FOLDER}/per_image.jsonl"  # {"id", "iou"} a line: AdvCAM's, at the set's best threshold
EXAMPLES = 4  # images shown of the best, and of the worst
_SHOWN = {"advcam": "AdvCAM", "cam": "CAM", "masks": "masks"}


def write_evaluation(result: Evaluation, figures: dict[str, Any], dataset: Dataset) -> Path:
    """Writes metrics.json and the pictures in evaluation/ of the run, or of the masks; returns the former's path."""
    run = result.meters[0].run
    figures = {**{key: value for key, value in figures.items() if key != "runs"}, **figures["runs"][0]}
    _clear(run.path / FOLDER)
    for kind, plot in (("segmentation", _plot_segmentation), ("boxes", _plot_boxes)):
        if kind in figures:
            plot(run.path / FOLDER, {_SHOWN[name]: part for name, part in figures[kind].items() if name in _SHOWN})
    step = result.meters[0].best()  # one threshold for the set
    lines = (json.dumps({"id": item_id, "iou": round(iou, 6)}) + "\n" for item_id, iou in result.per_image.at(step))
    _write(run.path / PER_IMAGE_FILE, "".join(lines).encode())
    items = {item.id: item for item in dataset.items}
    for name, order in (("best", heapq.nlargest), ("worst", heapq.nsmallest)):
        chosen = order(EXAMPLES, result.per_image.at(step), key=lambda pair: pair[1])
        picture = _examples(run, [(items[item_id], iou) for item_id, iou in chosen])
        if picture is not None:
            _write(run.path / FOLDER / f"{name}.png", picture)
    _write(run.path / "metrics.json", (json.dumps(figures, indent=1) + "\n").encode())
    return run.path / "metrics.json"


def write_comparison(result: Evaluation, figures: dict[str, Any]) -> Path:
    """Writes comparison.json and plots in evaluation/comparison of the first run; returns the former's path."""
    folder = result.meters[0].run.path / FOLDER / "comparison"
    _clear(folder)
    if result.wanted.segmentation:
        parts = {run["run"]: run["segmentation"]["advcam"] for run in figures["runs"]}
        first = figures["runs"][0]["segmentation"]
        _plot_segmentation(folder, {**parts, f"{figures['runs'][0]['run']}, plain CAM": first["cam"]})
    if result.wanted.boxes:
        _plot_boxes(folder, {run["run"]: run["boxes"]["advcam"] for run in figures["runs"]})
    _write(folder / "comparison.json", (json.dumps(figures, indent=1) + "\n").encode())
    return folder / "comparison.json"


def _clear(folder: Path) -> None:
    """Removes the pictures of an earlier evaluation, which may have been by another truth."""
    for name in ("curve", "by_class", "by_size", "boxes", "best", "worst"):
        (folder / f"{name}.png").unlink(missing_ok=True)


def _plot_segmentation(folder: Path, parts: dict[str, dict[str, Any]]) -> None:
    curves = {name: (part["thresholds"], part["miou"]) for name, part in parts.items() if len(part["thresholds"]) > 1}
    if curves:
        _write(folder / "curve.png", curve_plot(curves, "threshold", "mIoU"))
    names = [*next(iter(parts.values()))["by_class"]]
    by_class = {name: [own["iou"] for own in part["by_class"].values()] for name, part in parts.items()}
    _write(folder / "by_class.png", class_plot(names, by_class, "IoU"))
    first = next(iter(parts.values()))["by_size"]
    if any(own["objects"] for own in first.values()):
        by_size = {
            name: [(part["by_size"][size]["iou"], part["by_size"][size]["interval"]) for size in SIZES]
            for name, part in parts.items()
        }
        labels = [f"{size}\n({first[size]['objects']} objects)" for size in SIZES]
        _write(folder / "by_size.png", group_plot(labels, by_size, "mean IoU of the objects"))


def _plot_boxes(folder: Path, parts: dict[str, dict[str, Any]]) -> None:
    """By the first measure that all of them have: MaxBoxAcc of given tags, Top-1 Loc of predicted ones."""
    for measure in ("MaxBoxAcc", "Top-1 Loc"):
        if all(measure in part for part in parts.values()):
            curves = {name: (part["thresholds"], part[measure]["curve"]) for name, part in parts.items()}
            _write(folder / "boxes.png", curve_plot(curves, "threshold", measure))
            return


def _shown_truth(item: Item, size: tuple[int, int]) -> torch.Tensor:
    """What of an image [H, W] is true: 1 inside its mask, or along its boxes where it has no mask."""
    if item.mask is not None:
        truth = read_truth(item, size)
        return ((truth > 0) & (truth < 255)).float()
    lines = Image.new("1", size[::-1])
    for box in read_boxes(item, size):
        xs, ys = (
            sorted(min(max(0, round(side)), most - 1) for side in sides)
            for sides, most in ((box[1::2], size[1]), (box[2::2], size[0]))
        )
        ImageDraw.Draw(lines).rectangle((xs[0], ys[0], xs[1], ys[1]), outline=1, width=max(1, round(max(size) / 120)))
    return torch.from_numpy(np.array(lines)).float()


def _examples(run: Judged, chosen: Sequence[tuple[Item, float]]) -> bytes | None:
    """Photo, truth, CAM and AdvCAM, or mask, of some images; those whose photo cannot be read are left out."""
    rows, shown = [], run.methods[::-1] or ("mask",)
    for item, score in chosen:
        maps = run.read(item)
        try:
            photo = read_image(item.path).permute(1, 2, 0).numpy()
        except ImageError:
            continue
        if photo.shape[:2] != maps.size:
            continue
        heats = [_shown_truth(item, maps.size)]
        if maps.mask is not None:
            heats.append((maps.mask > 0).float())
        for name in run.methods[::-1]:
            heats.append(maps.full[name].amax(0) if len(maps.classes) else torch.zeros(maps.size))
        rows.append(
            (f"{item.id} {score:.2f}", [photo, *(overlay(photo, np.clip(heat.numpy(), 0, 1)) for heat in heats)])
        )
    if not rows:
        return None
    buffer = io.BytesIO()
    sheet(rows, ["photo", "truth", *(_SHOWN.get(name, name) for name in shown)]).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, path.with_name(f".{path.name}.tmp"))
