"""dense_crf at IRN's settings against pydensecrf2, which has one thread: `pytest benchmarks/test_crf_peer.py`.

The photographs are those of scikit-image, cut to 375x500, and noise, whose lattice is as large as one can be. A pair is
IRN's two calls an image, which share a lattice here and are two calls there. Times are those of the processor, so that
neighbours on the machine count less; the last group is of the clock, for the threads.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import ops

PICTURES = ("astronaut", "coffee", "chelsea", "noise")


def picture(name: str, shrink: int) -> torch.Tensor:
    """uint8 [H, W, 3]."""
    height, width = 375 // shrink, 500 // shrink
    if name == "noise":
        return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    pixels = np.asarray(getattr(data, name)())
    pad = [(0, max(0, 375 - pixels.shape[0])), (0, max(0, 500 - pixels.shape[1])), (0, 0)]
    return torch.from_numpy(np.pad(pixels, pad, mode="reflect")[:height, :width].copy())


def energies(labels: int, sets: int, height: int, width: int) -> torch.Tensor:
    """Hard labels of cells of 32 pixels, [sets, labels, height, width]."""
    random = torch.Generator().manual_seed(labels)
    cells = torch.randint(0, labels, (sets, height // 32 + 1, width // 32 + 1), generator=random)
    large = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width]
    return ops.hard_unary(large, labels)


def of_peer(image: torch.Tensor, unary: torch.Tensor) -> torch.Tensor:
    peer = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    results = []
    for energy in unary:
        labels, height, width = energy.shape
        field = peer.DenseCRF2D(width, height, labels)
        field.setUnaryEnergy(energy.flatten(1).numpy())
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image.numpy(), compat=10)
        results.append(torch.from_numpy(np.array(field.inference(10))).view_as(energy))
    return torch.stack(results)


def ours(image: torch.Tensor, unary: torch.Tensor) -> torch.Tensor:
    return ops.dense_crf(image[None], unary[None])[0]


@pytest.mark.parametrize("implementation", ["ours", "pydensecrf2"])
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one_thread"])
@pytest.mark.parametrize("sets", [1, 2], ids=["one", "a pair"])
@pytest.mark.parametrize("labels", [2, 21])
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.benchmark(timer=time.process_time, min_rounds=3, max_time=0.5)
def test_dense_crf(
    benchmark: BenchmarkFixture, name: str, labels: int, sets: int, threads: int, implementation: str, shrink: int
) -> None:
    image = picture(name, shrink)
    unary = energies(labels, sets, *image.shape[:2])
    if implementation == "ours":
        got, want = ours(image, unary), of_peer(image, unary)
        assert (got.argmax(1) == want.argmax(1)).double().mean() >= 0.999
        assert (got - want).abs().max() <= 1e-3
    benchmark.group = f"dense_crf, {name} 375x500, {labels} labels, {'a pair' if sets == 2 else 'one'}, 1 thread"
    benchmark.extra_info["implementation"] = implementation
    run: Any = ours if implementation == "ours" else of_peer
    benchmark(run, image, unary)


@pytest.mark.parametrize("threads", [1, 0], indirect=True, ids=["one_thread", "all_threads"])
@pytest.mark.parametrize("labels", [2, 21])
@pytest.mark.parametrize("images", [1, 4])
def test_threads(benchmark: BenchmarkFixture, images: int, labels: int, threads: int, shrink: int) -> None:
    """Threads share an image, or take one each where there are as many."""
    image = picture("astronaut", shrink)[None].repeat(images, 1, 1, 1)
    unary = energies(labels, images, *image.shape[1:3])
    benchmark.group = f"dense_crf, {images} of 375x500, {labels} labels, by the clock, {threads} threads"
    benchmark.extra_info["implementation"] = "ours"
    benchmark(ops.dense_crf, image, unary)
