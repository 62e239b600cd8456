"""The search for presets: what it records of one climb is what climbs of every length would give."""

from __future__ import annotations

import json

import explore
import pytest
import torch

from advcam_fast.bench.networks import random_model
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.climber import Climber

CONFIG = ClimbConfig(steps=4, steps_at_scale={}, scales=(0.5, 1.0, 2.0), base_side=64, other_classes="present")


def test_sums_are_those_of_climbs_of_every_length() -> None:
    model = random_model("squeezenet1_1")
    view = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sums = explore.Recorder(model, CONFIG).sums(view, [3, 5], 4)
    assert sums.shape[:2] == (4, 2)
    for steps in (1, 2, 4):
        wanted = Climber(model, CONFIG).climb(view, torch.tensor([[3, 5]]), steps, 1).total[0]
        torch.testing.assert_close(sums[steps - 1], wanted, rtol=1e-6, atol=0)


def test_rows() -> None:
    rows = explore.rows_of(CONFIG, mixed=False)
    assert len(rows) == 7 * 4  # sets of scales, and 1 to 4 steps
    assert {0.5: 3, 2.0: 3} in rows
    mixed = explore.rows_of(CONFIG, mixed=True)
    assert {0.5: 2, 1.0: 4, 2.0: 2} in mixed
    assert len(mixed) == 4 + 2**3 - 2  # the equal ones once
    assert all(list(row.values()).count(1) in (0, len(row)) for row in mixed)


def test_cost_is_pixels_times_steps() -> None:
    sizes = [(64, 64), (32, 128)]  # of one area, so that base_side makes them alike
    assert explore.cost(CONFIG, {1.0: 2, 2.0: 1}, sizes) == pytest.approx((1.5 + 4 * 0.5) * 64**2 / 420**2)


def test_only_rows_worth_their_cost_are_shown() -> None:
    rows = [{"cost": cost, "iou": iou} for cost, iou in ((3, 0.6), (1, 0.5), (2, 0.4), (3, 0.7), (4, 0.7))]
    assert [(row["cost"], row["iou"]) for row in explore.frontier(rows)] == [(3, 0.7), (1, 0.5)]


def test_results_are_json_with_a_row_a_line() -> None:
    results = {"a": {"items": 2, "rows": [{"iou": 0.5}, {"iou": 0.25}]}, "b": {"items": 1, "rows": [{"iou": 1.0}]}}
    text = explore.text_of(results)
    assert json.loads(text) == results
    assert sum('"iou"' in line for line in text.splitlines()) == 3
