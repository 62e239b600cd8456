"""Maps and masks against true masks: the counts of an image, and what a whole set makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.errors import UsageError
from advcam_fast.metrics.bootstrap import GroupSums, known_interval
from advcam_fast.metrics.boundary import boundary_counts
from advcam_fast.metrics.foreground_iou import IGNORE

SIZES = ("small", "medium", "large")
SIZE_BOUNDS = (0.05, 0.25)  # small: less than 5 % of the image's known pixels; large: from 25 % on
HITS, PREDICTED, TRUE = range(3)


class ImageCounts(NamedTuple):
    """What one image adds: of background and its own classes, those of the maps and those of the truth."""

    classes: Tensor  # int64 [k], of the set: 0 the background, c + 1 class c
    pixels: Tensor  # int64 [T, 3, k]: hits, predicted, true
    boundary: Tensor  # int64 [T, 3, k]: the same of the bands along outlines; none of the background
    sizes: Tensor  # int64 [m], of the objects: the true classes but the background
    ious: Tensor  # float64 [m, T]


def count_maps(maps: Tensor, classes: Sequence[int], truth: Tensor, thresholds: Tensor) -> ImageCounts:
    """The counts of argmax over [t, maps] against the truth, for every threshold t.

    maps [n, H, W]; classes: n of the set, each once, from 0; truth uint8 [H, W], v > 0 class v - 1, 255 ignored;
    thresholds [T], ascending. Ignored pixels belong to nothing, in outlines too.
    """
    names, local = _local_truth(truth, classes)
    where = [names.index(c + 1) for c in classes]
    confusion = ops.threshold_sweep(
        maps, torch.tensor(where, dtype=torch.int64) - 1, local, thresholds, max(1, len(names) - 1)
    )
    best = maps.max(0) if len(maps) else None
    best_class = torch.tensor(where)[best.indices] if best else torch.zeros(truth.shape, dtype=torch.int64)
    # the number of thresholds below the best map: a pixel is foreground at those
    ranks = (
        torch.bucketize(best.values, thresholds.to(maps.dtype), out_int32=True)
        if best
        else torch.zeros(truth.shape, dtype=torch.int32)
    )
    return _image_counts(names, confusion, ranks, best_class, local)


def count_mask(mask: Tensor, truth: Tensor) -> ImageCounts:
    """The counts of a mask, uint8 [H, W] with values as the truth's, as of one threshold; 255 counts as background."""
    mask = torch.where(mask == IGNORE, 0, mask)
    names, local = _local_truth(truth, [value - 1 for value in mask.unique().tolist() if value])
    place = torch.zeros(256, dtype=torch.int64)
    place[names] = torch.arange(len(names))
    labels, known = place[mask.long()], local != IGNORE
    size = max(2, len(names))
    pairs = local[known].long() * size + labels[known]
    confusion = torch.bincount(pairs, minlength=size * size).view(1, size, size)
    return _image_counts(names, confusion, (labels > 0).int(), labels, local)


def _local_truth(truth: Tensor, classes: Sequence[int]) -> tuple[list[int], Tensor]:
    """The values that an image has, and its truth in their indices: few, whatever the number of classes of the set."""
    present = np.flatnonzero(np.bincount(truth.numpy().ravel(), minlength=256)).tolist()
    names = sorted({0, *(c + 1 for c in classes), *(value for value in present if value != IGNORE)})
    place = np.zeros(256, np.uint8)
    place[names] = np.arange(len(names))
    place[IGNORE] = IGNORE
    return names, torch.from_numpy(place[truth.numpy()])


def _image_counts(names: list[int], confusion: Tensor, ranks: Tensor, best: Tensor, truth: Tensor) -> ImageCounts:
    confusion = confusion[:, : len(names), : len(names)]
    pixels = torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)], 1)
    steps, known = len(confusion), truth != IGNORE
    ranks = (ranks * known).to(torch.uint8 if steps < 256 else torch.int16)
    boundary = torch.zeros_like(pixels)
    for at in range(1, len(names)):
        boundary[:, :, at] = boundary_counts(torch.where(best == at, ranks, 0), truth == at, steps)
    objects = pixels[0, TRUE, 1:].nonzero()[:, 0] + 1
    share = pixels[0, TRUE, objects].double() / max(1, int(known.sum()))
    sizes = torch.bucketize(share, torch.tensor(SIZE_BOUNDS, dtype=torch.float64), right=True)
    return ImageCounts(torch.tensor(names), pixels, boundary, sizes, _iou(pixels[:, :, objects]).T)


def _iou(counts: Tensor) -> Tensor:
    """[..., 3, k] -> float64 [..., k]; NaN where nothing is predicted and nothing true."""
    hits, predicted, true = counts.double().unbind(-2)
    return hits / (predicted + true - hits)


class SegmentationMeter:
    """The counts of a whole set at T thresholds, in memory that does not depend on the number of images."""

    def __init__(self, thresholds: Sequence[float], class_names: Sequence[str]) -> None:
        self.thresholds = list(thresholds)
        self.class_names = ["background", *class_names]
        shape = (len(self.thresholds), 3, len(self.class_names))
        self.pixels, self.boundary = GroupSums(shape), GroupSums(shape)
        self.objects = GroupSums((len(SIZES),))
        self.ious = GroupSums((len(self.thresholds), len(SIZES)), torch.float64)

    def add(self, number: int, image: ImageCounts) -> None:
        """Adds image `number` of the set."""
        self.pixels.of(number).index_add_(2, image.classes, image.pixels)
        self.boundary.of(number).index_add_(2, image.classes, image.boundary)
        self.objects.of(number).index_add_(0, image.sizes, torch.ones_like(image.sizes))
        self.ious.of(number).index_add_(1, image.sizes, image.ious.T.contiguous())

    def curve(self) -> Tensor:
        """mIoU at every threshold: the mean over the classes, background included, that are predicted or true."""
        return _iou(self.pixels.total).nanmean(1)

    def best(self, among: Sequence[float] | None = None) -> int:
        """The index of the threshold of the greatest mIoU, the first of equals, perhaps only among some of them."""
        curve = self.curve()
        if among is not None:
            chosen = torch.tensor([threshold in among for threshold in self.thresholds])
            curve = torch.where(chosen, curve, -torch.inf)
        return int(curve.argmax())

    def best_samples(self, weights: Tensor, among: Sequence[float] | None = None) -> Tensor:
        """The greatest mIoU of every sample, each at its own threshold."""
        steps = [at for at, t in enumerate(self.thresholds) if among is None or t in among]
        return torch.stack([_iou(self.pixels.resampled(weights, at)).nanmean(1) for at in steps]).amax(0)

    def size_samples(self, weights: Tensor, at: int) -> Tensor:
        """The mean IoU of the objects of each size of every sample, [samples, 3]; NaN without any."""
        return self.ious.resampled(weights, at) / self.objects.resampled(weights)

    def summary(self, weights: Tensor, presets: Mapping[str, Sequence[float] | None]) -> dict[str, Any]:
        """Everything at the best threshold of each preset's thresholds (None: all); details at that of the last.

        Raises UsageError where no pixel of the set has a truth.
        """
        if not self.pixels.total[0, TRUE].any():
            raise UsageError("mIoU: every pixel of the true masks is 255, which is ignored")
        curve, best = self.curve(), {}
        for name, among in presets.items():
            at, samples = self.best(among), self.best_samples(weights, among)
            best[name] = {
                "threshold": self.thresholds[at],
                "miou": float(curve[at]),
                "interval": known_interval(samples),
            }
        hits, predicted, true = self.pixels.total[at].double()
        by_class = _iou(self.pixels.resampled(weights, at))
        boundary = _iou(self.boundary.resampled(weights, at)[..., 1:]).nanmean(1)
        return {
            "best": best,
            "thresholds": self.thresholds,
            "miou": curve.tolist(),
            "by_class": {
                name: {
                    "iou": _number(iou),
                    "interval": known_interval(samples),
                    "precision": _number(precision),
                    "recall": _number(recall),
                }
                for name, iou, samples, precision, recall in zip(
                    self.class_names,
                    _iou(self.pixels.total[at]),
                    by_class.T,
                    hits / predicted,
                    hits / true,
                    strict=True,
                )
            },
            "by_size": self._sizes(weights, at),
            "boundary_miou": _number(_iou(self.boundary.total[at, :, 1:]).nanmean()),
            "boundary_interval": known_interval(boundary),
        }

    def _sizes(self, weights: Tensor, at: int) -> dict[str, Any]:
        counts = self.objects.total
        means, samples = self.ious.total[at] / counts, self.size_samples(weights, at)
        return {
            name: {"objects": int(counts[i]), "iou": _number(means[i]), "interval": known_interval(samples[:, i])}
            for i, name in enumerate(SIZES)
        }


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
