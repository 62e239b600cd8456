"""Mean foreground IoU at the one best threshold of a set, with bootstrap intervals over its images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255


class BestThreshold(NamedTuple):
    value: float  # mean over the items of the foreground IoU
    threshold: float


def iou_curve(heat: Tensor, truth: Tensor, foreground: int, thresholds: Tensor) -> Tensor:
    """IoU of {heat > t} and {truth = foreground} for every threshold t, over the pixels that are not ignored.

    heat [H, W] and thresholds [T] in 0 to 1; truth uint8 [H, W] with 255 ignored. Returns float64 [T]; where union
    and so both are empty, 0. Raises ValueError when the sizes differ.
    """
    if heat.shape != truth.shape:
        raise ValueError(f"the map is {tuple(heat.shape)} and the mask {tuple(truth.shape)}, wanted is one size")
    scores, inside = heat[truth != IGNORE], truth[truth != IGNORE] == foreground
    order = torch.sort(thresholds)
    # An item above t counts for every threshold below it: one histogram by the last such threshold, then a sum.
    bucket = torch.bucketize(scores, order.values)  # number of thresholds < score
    size = len(thresholds) + 1
    above = torch.bincount(bucket, minlength=size).flip(0).cumsum(0).flip(0)[1:]
    hits = torch.bincount(bucket[inside], minlength=size).flip(0).cumsum(0).flip(0)[1:]
    union = above + inside.sum() - hits
    curve = torch.empty(len(thresholds), dtype=torch.float64)
    curve[order.indices] = hits / union.clamp(min=1).double()
    return curve


def best_threshold(curves: Tensor, thresholds: Tensor) -> BestThreshold:
    """The best mean over items of curves [N, T], and where it is reached: one threshold for the whole set."""
    mean = curves.mean(0)
    best = int(mean.argmax())
    return BestThreshold(float(mean[best]), float(thresholds[best]))


def bootstrap_best(curves: Tensor, samples: int = 2000, seed: int = 0) -> Tensor:
    """Best mean of `samples` resamplings of the items, each with its own threshold: [samples].

    curves [N, T], or [N, V, T] for V variants measured on the same items: then [samples, V], resampled together, so
    that differences between variants have their own (paired) interval.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(curves), (samples, len(curves)), generator=generator)
    return torch.stack([curves[draw].mean(0).amax(-1) for draw in draws])


def interval(samples: Tensor) -> tuple[float, float]:
    """The central 95 % of the samples."""
    low, high = torch.quantile(samples.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
