"""The climb against the plain one-by-one loop, and many images in one call against one call each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import CamModel, ClimbConfig, compute_maps
from advcam_fast.bench.networks import best_class, plain_peer, random_model
from advcam_fast.bench.plain_loop import plain_step
from advcam_fast.climb.climber import Climber

STEPS = 3  # a round of the engine
NETWORKS = ("resnet50_stride16", "efficientnet_lite0")
PAPER = ClimbConfig.preset("voc-cvpr2021")


@cache
def model_of(name: str) -> CamModel:
    return random_model(name)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def views_of(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("threads", [2], indirect=True, ids=["two_threads"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loop", ["ours", "plain"])
def test_step(benchmark: BenchmarkFixture, loop: str, name: str, threads: int, shrink: int) -> None:
    """Seconds per step of one flip pair; plain_step leaves out the update of the image, which ours contains."""
    model, views = model_of(name), views_of(1, 375 // shrink, 500 // shrink)
    label = best_class(model, views)
    climber, labels = Climber(model, PAPER), torch.tensor([[label]])
    network, pair = plain_peer(model, views)
    plain = partial(plain_step, network, model.class_weights, pair, [label], config=PAPER)

    want, got = plain(start=None).pair_map, climber.climb(views, labels, 1, 1).initial[0, 0]
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= 1e-4, f"the engine's map differs from the plain loop's by {error:.1e}"

    benchmark.group = f"step of one flip pair, {name}, {threads} threads"
    benchmark.extra_info["implementation"] = loop
    if loop == "plain":
        benchmark.pedantic(plain, kwargs={"start": want}, rounds=5, warmup_rounds=1)
        return
    # STEPS + 1 maps are STEPS whole steps and one forward pass more, which is taken off.
    forward = median(seconds(lambda: climber.climb(views, labels, 1, 1)) for _ in range(3))
    benchmark.extra_info |= {"less": forward, "per": STEPS}
    benchmark.pedantic(climber.climb, args=(views, labels, STEPS + 1, 1), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("calls", ["one", "each"])
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["two_threads"])
def test_images_in_one_call(benchmark: BenchmarkFixture, calls: str, threads: int, shrink: int) -> None:
    model, config = model_of("efficientnet_lite0"), replace(PAPER, steps=3, scales=(0.5, 1.0), steps_at_scale={})
    images = list(views_of(4, 240 // shrink, 320 // shrink))
    labels = [[index] for index in range(len(images))]
    together = compute_maps(model, images, labels, config)
    for image, own, result in zip(images, labels, together, strict=True):
        assert torch.equal(compute_maps(model, [image], [own], config)[0].full, result.full)

    def one() -> None:
        compute_maps(model, images, labels, config)

    def each() -> None:
        for image, own in zip(images, labels, strict=True):
            compute_maps(model, [image], [own], config)

    benchmark.group = f"{len(images)} images, efficientnet_lite0, {threads} threads"
    benchmark.extra_info["implementation"] = "ours" if calls == "one" else "a call each"
    benchmark.pedantic(one if calls == "one" else each, rounds=5, warmup_rounds=1)
