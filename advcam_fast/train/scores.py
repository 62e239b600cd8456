"""How good a classifier's scores are."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast.errors import UsageError


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """AP of each column: the sum over falling thresholds of precision * (recall gained); NaN without a true item.

    scores: float [N, C]; truth: bool [N, C]. Equal scores are one threshold. Returns float64 [C].
    Raises UsageError where the shapes differ or a score is NaN.
    """
    if scores.shape != truth.shape or scores.ndim != 2:
        raise UsageError(f"scores are {list(scores.shape)}, truth is {list(truth.shape)}; wanted [N, C] for both")
    if bool(scores.isnan().any()):
        raise UsageError("scores hold a NaN; wanted numbers")
    columns = [_precision(scores[:, c], truth[:, c]) for c in range(scores.shape[1])]
    return torch.stack(columns) if columns else torch.zeros(0, dtype=torch.float64)


def _precision(scores: Tensor, truth: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], truth[order].double().cumsum(0)
    last = torch.ones_like(ranked, dtype=torch.bool)  # of the items with one score
    last[:-1] = ranked[:-1] != ranked[1:]
    found, seen = hits[last], last.nonzero()[:, 0] + 1.0
    if len(found) == 0 or found[-1] == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return (found / seen * gained).sum() / found[-1]


def multi_label_scores(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """mAP over the classes that occur, and micro_AP of all pairs of image and class as one list."""
    by_class = average_precision(scores, truth)
    micro = average_precision(scores.reshape(-1, 1), truth.reshape(-1, 1))
    return {"mAP": float(by_class.nanmean()), "micro_AP": float(micro[0])}


def top1(scores: Tensor, classes: Tensor) -> dict[str, float]:
    """Share of the rows of [N, C] whose largest score is that of its class [N]."""
    return {"top1": float((scores.argmax(1) == classes).double().mean())}
