"""WSOL as the common evaluator measures it: MaxBoxAcc, MaxBoxAccV2, Top-1, Top-5 and GT-known Loc, and PxAP.

Source: Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast import ops
from advcam_fast.errors import UsageError
from advcam_fast.metrics.bootstrap import GroupSums, known_interval
from advcam_fast.metrics.foreground_iou import IGNORE

SIDE = 224
LEVELS = 255  # int(t · 255) for t = 0, .001 … .999 takes each of 0 … 254
THRESHOLDS = np.arange(0, 1, 0.001)
OVERLAPS = (0.3, 0.5, 0.7)


def score_map(full: Tensor) -> Tensor:
    """A map [H, W] as it is judged: float32 [224, 224], resized by OpenCV's cubic kernel (a = −0.75), 0 to 1.

    (m − min m) / max(m − min m); zeros where the map is constant.
    """
    low, high = full.aminmax()
    if bool(low == high):  # resized it would be nothing but rounding
        return torch.zeros(SIDE, SIDE)
    resized = F.interpolate(full[None, None].float(), (SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0]
    return normalised(resized)


def normalised(scores: Tensor) -> Tensor:
    """float32 [h, w] to 0 .. 1; zeros where it is constant or holds a NaN."""
    low, high = scores.aminmax()
    if not bool(low < high):
        return torch.zeros_like(scores)
    raised = scores - low
    return raised / raised.max()


def scaled_box(corners: Sequence[float], height: int, width: int) -> tuple[int, ...]:
    """Corners x0 y0 x1 y1 in an image of that size, at 224 x 224, truncated."""
    return tuple(
        int(float(side) * float(SIDE) / float(whole))
        for side, whole in zip(corners, (width, height, width, height), strict=True)
    )


def box_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes [N, 4] and [M, 4] of whole pixels, both corners included: float64 [N, M]."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low + 1).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1] - both
    return torch.where(union > 0, both.double() / union.clamp(min=1), 0.0)


class LevelOverlaps(NamedTuple):
    """At every level the greatest IoU with a true box: of the largest contour's box, and of any contour's box."""

    largest: Tensor  # float64 [255]
    any: Tensor  # float64 [255]


def overlaps_by_level(scores: Tensor, boxes: Sequence[Sequence[int]]) -> LevelOverlaps:
    """How the boxes of {uint8(255 · scores) > level} meet the true boxes, at every level.

    scores: float32 [224, 224] in 0 to 1 with maximum 1, or zeros; boxes: x0 y0 x1 y1 of scaled_box. A level without a
    contour has the box 0 0 0 0. The largest contour is that of the greatest polygon area, the first of equals.
    """
    image = (scores * 255).to(torch.uint8)
    found, areas, offsets = ops.component_boxes(image[None], torch.arange(LEVELS))
    truth = torch.tensor(boxes, dtype=torch.int64).view(-1, 4)
    nothing = float(box_overlaps(torch.zeros(1, 4, dtype=torch.int64), truth).max())
    overlaps = box_overlaps(found, truth).amax(1).numpy() if len(found) else np.zeros(0)
    ends, sizes = offsets.tolist(), areas.numpy()
    largest, every = np.full(LEVELS, nothing), np.full(LEVELS, nothing)
    for level, (begin, end) in enumerate(itertools.pairwise(ends)):
        if begin < end:
            largest[level] = overlaps[begin + int(sizes[begin:end].argmax())]
            every[level] = overlaps[begin:end].max()
    return LevelOverlaps(torch.from_numpy(largest), torch.from_numpy(every))


class BoxMeter:
    """Right boxes at every level over a set: one threshold for all of it, the best for each measure.

    Each image counts once for every class that has true boxes; in the WSOL sets that is one.
    """

    MEASURES = ("MaxBoxAcc", *(f"BoxAcc@{overlap}" for overlap in OVERLAPS), "Top-1 Loc", "Top-5 Loc")

    def __init__(self) -> None:
        self.right = GroupSums((len(self.MEASURES), LEVELS))
        self.count = GroupSums(())
        self.without_map = 0

    def add(self, number: int, overlaps: LevelOverlaps | None, rank: int | None = None) -> None:
        """Adds a class of image `number`, wrong without a map and so without overlaps. rank: as predicted, from 0."""
        self.count.of(number).add_(1)
        if overlaps is None:
            self.without_map += 1
            return
        good = overlaps.largest >= 0.5
        rows = [good, *(overlaps.any >= overlap for overlap in OVERLAPS)]
        rows += [good & (rank is not None and rank < k) for k in (1, 5)]
        self.right.of(number).add_(torch.stack(rows))

    def accuracy(self) -> Tensor:
        """Every measure at every level: float64 [measures, 255]."""
        return self.right.total.double() / self.count.total

    def best(self) -> int:
        """The level of the greatest MaxBoxAcc, the first of equals."""
        return int(self.accuracy()[0].argmax())

    def samples(self, weights: Tensor, measure: str) -> Tensor:
        """The measure at its best threshold, of every sample."""
        if measure == "MaxBoxAccV2":
            return torch.stack([self.samples(weights, f"BoxAcc@{overlap}") for overlap in OVERLAPS]).mean(0)
        right = self.right.resampled(weights, self.MEASURES.index(measure))
        return (right / self.count.resampled(weights)[:, None]).amax(1)

    def values(self, predicted: int | None) -> dict[str, float]:
        """Each measure that the run has, at its best threshold.

        predicted: how many classes an image the run's model chose, best first; None where tags were given.
        MaxBoxAcc and V2 want a map of the true class of every image: tags. Top-k Loc wants predictions, k at least.
        """
        best = self.accuracy().amax(1)
        wanted = (0,) if predicted is None else tuple(at for at, k in ((4, 1), (5, 5)) if predicted >= k)
        found = {self.MEASURES[at]: float(best[at]) for at in wanted}
        return found if predicted is not None else found | {"MaxBoxAccV2": float(best[1 : 1 + len(OVERLAPS)].mean())}

    def summary(self, weights: Tensor, predicted: int | None) -> dict[str, Any]:
        """`values` with their thresholds, intervals and curves."""
        accuracy = self.accuracy()
        result: dict[str, Any] = {"counted": int(self.count.total), "without_map": self.without_map}
        result["thresholds"] = [threshold_of(level) for level in range(LEVELS)]
        values = self.values(predicted)
        for measure in [name for name in values if name in self.MEASURES]:
            curve = accuracy[self.MEASURES.index(measure)]
            result[measure] = {
                "value": values[measure],
                "threshold": threshold_of(int(curve.argmax())),
                "interval": known_interval(self.samples(weights, measure)),
                "curve": curve.tolist(),
            }
        if predicted is None:
            parts = accuracy[1 : 1 + len(OVERLAPS)].amax(1)
            result["GT-known Loc"] = {key: value for key, value in result["MaxBoxAcc"].items() if key != "curve"}
            result["MaxBoxAccV2"] = {
                "value": values["MaxBoxAccV2"],
                "at": dict(zip(map(str, OVERLAPS), parts.tolist(), strict=True)),
                "interval": known_interval(self.samples(weights, "MaxBoxAccV2")),
            }
        return result


def threshold_of(level: int) -> float:
    """The least of the evaluator's 1,000 thresholds with int(t · 255) = level."""
    return float(THRESHOLDS[np.flatnonzero((THRESHOLDS * 255).astype(int) == level)[0]])


class PixelMeter:
    """PxAP: the average precision of pixels over a set, from histograms of 1,002 bins."""

    EDGES = np.append(THRESHOLDS, [1.0, 2.0, 3.0])

    def __init__(self) -> None:
        self.histograms = GroupSums((2, len(self.EDGES) - 1))

    def add(self, number: int, histograms: Tensor) -> None:
        """Adds pixel_histograms of a map of image `number`."""
        self.histograms.of(number).add_(histograms)

    def samples(self, weights: Tensor) -> Tensor:
        """PxAP of every sample."""
        return average_precision(self.histograms.resampled(weights))

    def value(self) -> float:
        total = self.histograms.total.double()
        if not total[0].sum():
            raise UsageError("PxAP: no pixel of the set is foreground in the truth")
        return float(average_precision(total))

    def summary(self, weights: Tensor) -> dict[str, Any]:
        return {"PxAP": {"value": self.value(), "interval": known_interval(self.samples(weights))}}


def pixel_histograms(scores: Tensor, inside: Tensor) -> Tensor:
    """How often the scores of true and of false pixels fall in each bin [edge, next edge): int64 [2, 1002].

    scores: float32 in 0 to 1; inside: uint8 of the same shape, 1 inside, 0 outside, 255 ignored.
    """
    known = inside != IGNORE
    bins = np.searchsorted(PixelMeter.EDGES, scores[known].double().numpy(), side="right") - 1
    count = len(PixelMeter.EDGES) - 1
    rows = 1 - inside[known].long()
    return torch.bincount(rows * count + torch.from_numpy(bins), minlength=2 * count).view(2, count)


def average_precision(histograms: Tensor) -> Tensor:
    """Sum of precision · Δrecall from the highest bin down: [..., 2, bins] -> [...]; NaN without true pixels."""
    true, false = histograms.flip(-1).cumsum(-1).unbind(-2)
    recall = true / true[..., -1:]
    precision = true / (true + false).clamp(min=1)  # where nothing is predicted recall does not rise either
    return (precision[..., 1:] * recall.diff(dim=-1)).sum(-1)
