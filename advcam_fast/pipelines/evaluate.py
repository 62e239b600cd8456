"""evaluate: runs and true masks or boxes in, figures out; one pass over the files, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advcam_fast.data import Dataset, ImageError, Item, read_boxes, read_truth
from advcam_fast.errors import UsageError, first_line
from advcam_fast.metrics.bootstrap import draw_weights, known_interval
from advcam_fast.metrics.localization import (
    LEVELS,
    SIDE,
    BoxMeter,
    LevelOverlaps,
    PixelMeter,
    overlaps_by_level,
    pixel_histograms,
    scaled_box,
    score_map,
)
from advcam_fast.metrics.segmentation import SIZES, ImageCounts, SegmentationMeter, count_maps, count_mask
from advcam_fast.pipelines.judged_run import JudgedMasks, JudgedRun, RunMaps
from advcam_fast.pipelines.label import Progress
from advcam_fast.pipelines.per_image import PerImage
from advcam_fast.pipelines.side_by_side import side_by_side
from advcam_fast.store import StoreError

PAPER_THRESHOLDS = tuple(step / 100 for step in range(15, 35))
DEFAULT_THRESHOLDS = tuple(step / 100 for step in range(100))
MASKS = "masks"
Judged = JudgedRun | JudgedMasks


@dataclass(frozen=True)
class Wanted:
    """What is measured: maps at thresholds (ascending) and masks by true masks, boxes by true boxes, pixels as PxAP."""

    segmentation: bool
    boxes: bool = False
    pixels: bool = False
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS

    def presets(self, method: str) -> dict[str, tuple[float, ...] | None]:
        """The paper's thresholds, where they are all there, and all of them; masks have none."""
        paper = method != MASKS and set(PAPER_THRESHOLDS) <= set(self.thresholds)
        return {**({"voc-cvpr2021": PAPER_THRESHOLDS} if paper else {}), "ours": None}


def choose(dataset: Dataset, boxes: bool, pixels: bool, thresholds: tuple[float, ...]) -> Wanted:
    """Masks wherever the data has them, boxes where asked for or where there is nothing else.

    Raises UsageError where there is no truth at all, or none of the kind that is asked for.
    """
    masks = any(item.mask is not None for item in dataset.items)
    boxed = any(item.boxes != () for item in dataset.items)
    if not masks and not boxed:
        raise UsageError(
            f"data {dataset.spec!r} has no ground truth: none of its {len(dataset.items)} images has a mask or boxes"
        )
    if (boxes and not boxed) or (pixels and not masks):
        raise UsageError(f"data {dataset.spec!r} has no {'boxes' if boxes and not boxed else 'masks'} to evaluate with")
    return Wanted(masks, boxes or not masks, pixels, thresholds)


def choose_masks(dataset: Dataset) -> Wanted:
    """Masks alone; raises UsageError where the data has none."""
    if not any(item.mask is not None for item in dataset.items):
        raise UsageError(f"data {dataset.spec!r} has no masks to evaluate with")
    return Wanted(True)


class Measured(NamedTuple):
    """What one image adds to the meters of one run, by method."""

    segmentation: dict[str, ImageCounts]
    boxes: dict[str, list[tuple[LevelOverlaps | None, int | None]]]
    pixels: dict[str, list[Tensor]]


class RunMeters:
    """The meters of one run; `names` of what is measured of it, what it is told by first."""

    def __init__(self, run: Judged, wanted: Wanted, class_names: Sequence[str]) -> None:
        self.run = run
        self.names = [*run.methods, *([MASKS] if run.masks else [])]
        steps = {MASKS: (0.0,)}
        self.segmentation = (
            {name: SegmentationMeter(steps.get(name, wanted.thresholds), class_names) for name in self.names}
            if wanted.segmentation
            else {}
        )
        self.boxes = {name: BoxMeter() for name in run.methods if wanted.boxes}
        self.pixels = {name: PixelMeter() for name in run.methods if wanted.pixels}

    def best(self) -> int:
        """The one threshold at which images are shown, of those that the first method is measured at."""
        meters: Mapping[str, SegmentationMeter | BoxMeter] = self.segmentation or self.boxes
        return meters[self.names[0]].best()

    def add(self, number: int, measured: Measured) -> None:
        for name, counts in measured.segmentation.items():
            self.segmentation[name].add(number, counts)
        for name, found in measured.boxes.items():
            for overlaps, rank in found:
                self.boxes[name].add(number, overlaps, rank)
        for name, histograms in measured.pixels.items():
            for histogram in histograms:
                self.pixels[name].add(number, histogram)


@dataclass
class Evaluation:
    """The meters of the runs over the images that could be evaluated in all of them, and what became of the others."""

    meters: list[RunMeters]
    wanted: Wanted
    evaluated: int = 0
    without_truth: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # id, reason
    per_image: PerImage = field(default_factory=PerImage)  # of the first run

    def add(self, item: Item, found: list[Measured]) -> None:
        for meters, measured in zip(self.meters, found, strict=True):
            meters.add(self.evaluated, measured)
        self.evaluated += 1
        curve = _image_curve(found[0], self.meters[0].names[0], self.wanted)
        if curve is not None:
            self.per_image.add(item.id, curve)


def _image_curve(found: Measured, name: str, wanted: Wanted) -> Tensor | None:
    """The mean IoU of an image's objects at every threshold, where boxes alone are judged that of its largest boxes."""
    if wanted.segmentation:
        counts = found.segmentation.get(name)
        return counts.ious.mean(0) if counts is not None and len(counts.ious) else None
    boxes = [torch.zeros(LEVELS) if overlaps is None else overlaps.largest for overlaps, _ in found.boxes[name]]
    return torch.stack(boxes).mean(0)


def evaluate(
    runs: Sequence[Judged],
    dataset: Dataset,
    wanted: Wanted,
    report: Callable[[Progress], None] = lambda _: None,
) -> Evaluation:
    """Measures every image of the data that has truth, in a few threads, each file read once.

    An image counts only where it could be evaluated in every run, so that runs are compared on the same images; others
    are listed with the reason. Raises UsageError where the data has no image of a run, or none could be evaluated.
    """
    for run in runs:
        if not any(item.id in run.labels for item in dataset.items):
            made = "maps" if run.methods else "masks"
            raise UsageError(
                f"{run.path}: it has {made} of none of the {len(dataset.items)} images of {dataset.spec!r}"
            )
    result = Evaluation([RunMeters(run, wanted, dataset.class_names or ()) for run in runs], wanted)
    reasons: Counter[str] = Counter()

    def measure(item: Item) -> list[Measured] | str:
        try:
            return [_measure(item, run, wanted) for run in runs]
        except (ImageError, StoreError, ValueError, MemoryError) as error:
            return first_line(error)

    todo = [item for item in dataset.items if _has_truth(item, wanted)]
    result.without_truth = len(dataset.items) - len(todo)
    with side_by_side() as each:
        for done, (item, found) in enumerate(each(measure, todo), start=1):
            reason = found if isinstance(found, str) else ""
            if isinstance(found, str):
                result.failures.append((item.id, found))
                reasons[found] += 1
            else:
                result.add(item, found)
            report(Progress(item.id, done, len(todo), reason))
    if not result.evaluated:
        most, count = reasons.most_common(1)[0]
        raise UsageError(f"none of {len(todo)} images could be evaluated; {count} of them: {most}")
    return result


def _has_truth(item: Item, wanted: Wanted) -> bool:
    masked, boxed = item.mask is not None, item.boxes != ()
    return (wanted.segmentation and masked) or (wanted.boxes and boxed) or (wanted.pixels and masked)


def _measure(item: Item, run: Judged, wanted: Wanted) -> Measured:
    """Raises ImageError, StoreError or ValueError with the reason why there is nothing to measure."""
    if item.problem:
        raise ImageError(item.problem)
    maps = run.read(item)
    measured = Measured({}, {}, {})
    if wanted.segmentation and item.mask is not None:
        truth = read_truth(item, maps.size)
        most = int(torch.where(truth == 255, 0, truth).max())
        if most > run.class_count:
            raise ImageError(f"its mask holds the value {most}, the data has {run.class_count} classes")
        thresholds = torch.tensor(wanted.thresholds, dtype=torch.float64)
        for method in run.methods:
            measured.segmentation[method] = count_maps(maps.full[method], maps.classes, truth, thresholds)
        if run.masks:
            measured.segmentation[MASKS] = count_mask(run.read_mask(item, maps), truth)
    if isinstance(run, JudgedRun) and (wanted.boxes or wanted.pixels):
        scores = {method: [score_map(one) for one in maps.full[method]] for method in run.methods}
        if wanted.boxes and item.boxes != ():
            measured.boxes.update(_measure_boxes(item, run, maps, scores))
        if wanted.pixels and item.mask is not None:
            truth = read_truth(item, (SIDE, SIDE), resized=True)
            inside = [torch.where(truth == 255, 255, (truth == c + 1).to(torch.uint8)) for c in maps.classes]
            for method in run.methods:
                measured.pixels[method] = [
                    pixel_histograms(one, own) for one, own in zip(scores[method], inside, strict=True)
                ]
    return measured


def _measure_boxes(
    item: Item, run: JudgedRun, maps: RunMaps, scores: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[tuple[LevelOverlaps | None, int | None]]]:
    """For every class that has true boxes how those of its map meet them, and its rank among the predictions."""
    truth: dict[int, list[tuple[int, ...]]] = {}
    for box in read_boxes(item, maps.size):
        truth.setdefault(run.class_of(box.label), []).append(scaled_box(box[1:], *maps.size))
    found: dict[str, list[tuple[LevelOverlaps | None, int | None]]] = {method: [] for method in run.methods}
    for number, boxes in truth.items():
        at = maps.classes.index(number) if number in maps.classes else None
        for method in run.methods:
            overlaps = overlaps_by_level(scores[method][at], boxes) if at is not None else None
            found[method].append((overlaps, at if run.predicted is not None else None))
    return found


def run_figures(result: Evaluation, meters: RunMeters, weights: Tensor) -> dict[str, Any]:
    """All measures of a run, by method, with 95 % intervals over the images; plain values for JSON."""
    wanted = result.wanted
    figures: dict[str, Any] = {}
    if wanted.segmentation:
        parts = {name: meter.summary(weights, wanted.presets(name)) for name, meter in meters.segmentation.items()}
        figures["segmentation"] = parts
        if meters.run.methods:
            parts["gain"] = difference(meters, meters, weights, wanted, ("advcam", "cam"))
    if wanted.boxes:
        predicted = meters.run.predicted
        figures["boxes"] = {name: meter.summary(weights, predicted) for name, meter in meters.boxes.items()}
        figures["boxes"]["gain"] = box_difference(meters, meters, weights, ("advcam", "cam"))
    if wanted.pixels:
        figures["pixels"] = {name: meter.summary(weights) for name, meter in meters.pixels.items()}
    return figures


def difference(
    one: RunMeters, other: RunMeters, weights: Tensor, wanted: Wanted, methods: tuple[str, str] = ("advcam", "advcam")
) -> dict[str, Any]:
    """How much more mIoU, and IoU by object size, the one has; each at its own best threshold, intervals paired."""
    a, b = one.segmentation[methods[0]], other.segmentation[methods[1]]
    result: dict[str, Any] = {}
    for name, among in wanted.presets(methods[0]).items():
        at, bt = a.best(among), b.best(among)
        samples = a.best_samples(weights, among) - b.best_samples(weights, among)
        result[name] = {"miou": float(a.curve()[at] - b.curve()[bt]), "interval": known_interval(samples)}
    counts = a.objects.total
    gained = (a.ious.total[at] - b.ious.total[bt]) / counts
    sizes = a.size_samples(weights, at) - b.size_samples(weights, bt)
    result["by_size"] = {
        name: {"objects": int(counts[i]), "iou": float(gained[i]), "interval": known_interval(sizes[:, i])}
        for i, name in enumerate(SIZES)
        if counts[i]
    }
    return result


def box_difference(
    one: RunMeters, other: RunMeters, weights: Tensor, methods: tuple[str, str] = ("advcam", "advcam")
) -> dict[str, Any]:
    """How much more the one has of each measure of boxes that both have; intervals paired."""
    a, b = one.boxes[methods[0]], other.boxes[methods[1]]
    first, second = a.values(one.run.predicted), b.values(other.run.predicted)
    return {
        name: {
            "value": first[name] - second[name],
            "interval": known_interval(a.samples(weights, name) - b.samples(weights, name)),
        }
        for name in ("MaxBoxAcc", "MaxBoxAccV2", "Top-1 Loc", "Top-5 Loc")
        if name in first and name in second
    }


def run_difference(first: RunMeters, other: RunMeters, weights: Tensor, wanted: Wanted) -> dict[str, Any]:
    """What the first gains on the other of everything that both have: AdvCAM on AdvCAM, masks on masks."""
    figures: dict[str, Any] = {"of": str(first.run.path), "to": str(other.run.path)}
    if wanted.segmentation:
        figures["segmentation"] = difference(first, other, weights, wanted)
        if first.run.masks and other.run.masks:
            figures["masks"] = difference(first, other, weights, wanted, (MASKS, MASKS))
    if wanted.boxes:
        figures["boxes"] = box_difference(first, other, weights)
    if wanted.pixels:
        a, b = first.pixels["advcam"], other.pixels["advcam"]
        gained = known_interval(a.samples(weights) - b.samples(weights))
        figures["pixels"] = {"PxAP": {"value": a.value() - b.value(), "interval": gained}}
    return figures


def figures_of(result: Evaluation, dataset: Dataset) -> dict[str, Any]:
    """Everything that metrics.json says, of one run or of several with what the first gains on each other."""
    weights = draw_weights(result.evaluated)
    figures: dict[str, Any] = {
        "data": dataset.spec,
        "images": {
            "evaluated": result.evaluated,
            "failed": len(result.failures),
            "without_truth": result.without_truth,
        },
        "failures": [{"id": item_id, "reason": reason} for item_id, reason in result.failures],
        "runs": [{**meters.run.facts(dataset), **run_figures(result, meters, weights)} for meters in result.meters],
    }
    first, *others = result.meters
    if others:
        figures["differences"] = [run_difference(first, other, weights, result.wanted) for other in others]
    return figures
