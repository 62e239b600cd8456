"""The search for presets: what it records of one climb is what climbs of every length would give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import explore
import pytest
import quality
import torch
from kept import Kept
from torch import Tensor
from ways import Recorder, Way, climb_of

from advcam_fast.bench.networks import random_model
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.climber import Climber
from advcam_fast.data import resize_image
from advcam_fast.errors import UsageError

CONFIG = ClimbConfig(steps=4, steps_at_scale={}, scales=(0.5, 1.0, 2.0), base_side=64, other_classes="present")


def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_sums_are_those_of_climbs_of_every_length() -> None:
    model, config = random_model("squeezenet1_1"), CONFIG.with_settings(["steps_at_scale=2:3"])
    sums = Recorder(model, config).sums(image(), [3, 5])
    assert [maps.shape[:2] for maps in sums.values()] == [(4, 2), (4, 2), (3, 2)]
    for scale, maps in sums.items():
        view = resize_image(image(), config.factor(scale, 70, 90))[None]
        for steps in range(1, len(maps) + 1):
            wanted = Climber(model, config).climb(view, torch.tensor([[3, 5]]), steps, 1).total[0]
            torch.testing.assert_close(maps[steps - 1], wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("text", "along"),
    [
        ("momentum=0.9", lambda g, v: v / v.abs().max()),
        ("momentum=0.9;velocity=nesterov", lambda g, v: (g + 0.9 * v) / (g + 0.9 * v).abs().max()),
        ("momentum=0.5;velocity=heavy", lambda g, v: v),
        ("schedule=linear", lambda g, v: g / g.abs().max()),
    ],
)
def test_other_ways_are_those_of_a_plain_loop(text: str, along: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = random_model("squeezenet1_1").to(dtype=torch.float64)  # a climb magnifies rounding
    config, way = climb_of(f"general;steps=4;scales=1;base_side=0;dtype=fp64;{text}")
    recorder = Recorder(model, config, way)
    recorder.sums(image(), [3])
    x = model.normalise(image()[None])
    x = torch.cat([x, x.flip(-1)]).contiguous()
    v = torch.zeros_like(x)
    for factor in (5 / 3, 1.0, 1 / 3) if "linear" in text else (1.0,) * 3:
        x.requires_grad_()
        (g,) = torch.autograd.grad(model.logit_map(model.features(x))[:, 3].mean((1, 2)).sum(), x)
        g = g / (g.abs().max() if way.velocity == "heavy" else g.abs().sum())
        v = config.momentum * v + g
        x = x.detach()
        x = (x + config.step_size * factor * along(g, v)).clamp(x.min(), x.max())
    torch.testing.assert_close(recorder.image, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("carry", ["add", "instead", "follow"])
def test_a_scale_takes_over_the_perturbation_of_the_one_before(carry: str) -> None:
    model = random_model("squeezenet1_1")
    config, way = climb_of(f"general;steps=3;scales=1,1.5;base_side=0;carry={carry}")
    recorder = Recorder(model, config, way)
    recorder.sums(image(), [3, 5])
    recorder.sums(image(), [3, 5])  # nothing is left of the image before
    alone = Recorder(model, replace(config, scales=(1.5,)), way)
    alone.sums(image(), [3, 5])
    small = Recorder(model, replace(config, scales=(1.0,)), way)
    small.sums(image(), [3, 5])
    clean = recorder.clean.detach()
    for before, first, found in zip(small.trails, alone.trails, recorder.trails, strict=True):
        starts = {
            "add": {1: (first.off[1], before.off[2])},
            "instead": {1: (0, before.off[2])},
            "follow": {1: (0, before.off[1]), 2: (0, before.off[2])},
        }[carry]
        assert not found.off[0].any() and len(found.off) == 3
        for step, (own, carried) in starts.items():
            large = torch.nn.functional.interpolate(carried, clean.shape[-2:], mode="bilinear")
            wanted = (clean + own + large).clamp(clean.min(), clean.max()) - clean
            torch.testing.assert_close(found.off[step], wanted, rtol=0, atol=1e-5)


def test_bad_ways_are_refused() -> None:
    for text in ("momentum=2", "velocity=fast", "schedule=up", "carry=over", "moment=0.5"):
        with pytest.raises(UsageError, match=text.partition("=")[0]):
            climb_of(f"fast;{text}")


def test_rows() -> None:
    rows = explore.rows_of(CONFIG, "equal")
    assert len(rows) == 7 * 4  # sets of scales, and 1 to 4 steps
    assert {0.5: 3, 2.0: 3} in rows
    mixed = explore.rows_of(CONFIG, "mixed")
    assert {0.5: 2, 1.0: 4, 2.0: 2} in mixed
    assert len(mixed) == 4 + 2**3 - 2  # the equal ones once
    assert all(list(row.values()).count(1) in (0, len(row)) for row in mixed)
    last = explore.rows_of(CONFIG.with_settings(["steps_at_scale=0.5:2"]), "last")
    assert last == [dict(zip(CONFIG.scales, n, strict=True)) for n in ((1, 1, 1), (2, 4, 2), (2, 4, 3), (2, 4, 4))]


def test_cost_is_pixels_times_steps() -> None:
    row, base = {1.0: 2, 2.0: 3}, 64**2 / 420**2
    for size in ((64, 64), (32, 128)):  # of one area, so that base_side makes them alike
        assert explore.cost(CONFIG, row, size) == pytest.approx((1.5 + 4 * 2.5) * base)
    config = replace(CONFIG, scales=(1.0, 2.0))
    assert explore.cost(config, row, (64, 64), Way(carry="instead")) == pytest.approx((1.5 + 4 * 2) * base)
    assert explore.cost(config, row, (64, 64), Way(carry="follow")) == pytest.approx((1.5 + 4 * 1.5) * base)


def test_a_map_that_changes_little_is_settled() -> None:
    sums = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 4.4], [9.0, 20.0]])[
        :, None
    ]  # over their maxima: 1, .5, .45, .45
    assert [explore.settled(sums, change) for change in (0.3, 0.1, 0.01, 1e-3)] == [2, 3, 4, 4]


def test_only_rows_worth_their_cost_are_shown() -> None:
    rows = [{"cost": cost, "iou": iou} for cost, iou in ((3, 0.6), (1, 0.5), (2, 0.4), (3, 0.7), (4, 0.7))]
    assert [(row["cost"], row["iou"]) for row in explore.frontier(rows)] == [(3, 0.7), (1, 0.5)]


def test_results_are_json_with_a_row_a_line() -> None:
    results = {"a": {"items": 2, "rows": [{"iou": 0.5}, {"iou": 0.25}]}, "b": {"items": 1, "rows": [{"iou": 1.0}]}}
    text = explore.text_of(results)
    assert json.loads(text) == results
    assert sum('"iou"' in line for line in text.splitlines()) == 3


def test_a_stopped_run_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    made = map(torch.tensor, range(10))
    assert Kept(tmp_path, {"steps": 2}).get("a", made.__next__) == 0
    again = Kept[Tensor](tmp_path, {"steps": 2})
    assert [int(again.get(name, made.__next__)) for name in ("a", "b", "a")] == [0, 1, 0]
    assert Kept(tmp_path, {"steps": 3}).get("a", made.__next__) == 2
    assert [int(Kept(None, {"steps": 2}).get("a", made.__next__)) for _ in range(2)] == [3, 4]


def test_a_difference_is_paired() -> None:
    curves = torch.rand(20, len(quality.THRESHOLDS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = quality.difference(curves + 0.25, curves)
    assert found["iou"] == pytest.approx(0.25)
    assert found["interval"] == pytest.approx((0.25, 0.25))
