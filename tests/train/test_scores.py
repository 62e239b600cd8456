"""Average precision and top-1 against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advcam_fast.errors import UsageError
from advcam_fast.train.scores import average_precision, multi_label_scores, top1


def plain(scores: list[float], truth: list[bool]) -> float:
    """Over all thresholds, from the top: precision times what the recall gained."""
    total, before = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        taken = [hit for score, hit in zip(scores, truth, strict=True) if score >= threshold]
        total += (sum(taken) - before) / sum(truth) * sum(taken) / len(taken)
        before = sum(taken)
    return total


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_the_plain_sum(levels: int) -> None:
    draw = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (40, 5), generator=draw).float()
    truth = torch.rand(40, 5, generator=draw) < 0.3
    expected = [plain(scores[:, c].tolist(), truth[:, c].tolist()) for c in range(5)]
    assert average_precision(scores, truth).tolist() == pytest.approx(expected, abs=1e-12)
    pairs = plain(scores.flatten().tolist(), truth.flatten().tolist())
    found = multi_label_scores(scores, truth)
    assert found == pytest.approx({"mAP": sum(expected) / 5, "micro_AP": pairs}, abs=1e-12)


def test_a_class_that_does_not_occur_does_not_count() -> None:
    scores, truth = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]), torch.zeros(3, 2, dtype=torch.bool)
    truth[1, 0] = True
    found = average_precision(scores, truth)
    assert float(found[0]) == 0.5 and math.isnan(float(found[1]))
    assert multi_label_scores(scores, truth)["mAP"] == 0.5


@pytest.mark.parametrize(
    ("scores", "truth", "reason"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.bool), r"scores are \[3, 2\], truth is \[3, 1\]"),
        (torch.tensor([[math.nan]]), torch.ones(1, 1, dtype=torch.bool), "scores hold a NaN"),
    ],
)
def test_what_is_no_score_is_refused(scores: Tensor, truth: Tensor, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        average_precision(scores, truth)


def test_top1() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [5.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.5]])
    assert top1(scores, torch.tensor([1, 1, 2, 0])) == {"top1": 0.75}
