"""threshold_sweep and component_boxes against what they stand in for, in one process; equal first, or no time.

Thresholds: the released evaluation of seeds, which reads every file again for each threshold, pads the maps with it,
takes the argmax and counts. Both read the same files; the truth is in memory. Boxes: the common evaluator's contours,
1,000 thresholds a map, and 255, one for each value that a map of bytes can be above; without its boxes and areas,
which ours has made.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import ops

CLASSES = 20
Images = list[tuple[Path, np.ndarray]]  # file of maps, truth [H, W]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Images:
    """Four images of 375x500 with two smooth maps each, fp32, as a run folder stores them."""
    folder, random = tmp_path_factory.mktemp("maps"), torch.Generator().manual_seed(0)
    size = (23, 31) if request.config.getoption("--tiny") else (375, 500)
    made = []
    for index in range(4):
        maps = F.interpolate(torch.rand(1, 2, 6, 8, generator=random), size, mode="bicubic")[0].clamp(min=0)
        classes = torch.randperm(CLASSES, generator=random)[:2]
        near = (maps + 0.1 * torch.rand(maps.shape, generator=random)).max(0)
        truth = torch.where(near.values > 0.5, classes[near.indices] + 1, 0)
        truth[torch.rand(truth.shape, generator=random) < 0.05] = 255
        maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
        np.savez(folder / f"{index}.npz", classes=classes.numpy(), full=maps.numpy())
        made.append((folder / f"{index}.npz", truth.to(torch.uint8).numpy()))
    return made


def swept(images: Images, thresholds: list[float]) -> np.ndarray:
    total = torch.zeros(len(thresholds), CLASSES + 1, CLASSES + 1, dtype=torch.int64)
    for path, truth in images:
        with np.load(path) as stored:
            maps, classes = torch.from_numpy(stored["full"]), torch.from_numpy(stored["classes"])
        total += ops.threshold_sweep(maps, classes, torch.from_numpy(truth), thresholds, CLASSES)
    return total.numpy()


def pass_by_pass(images: Images, thresholds: list[float]) -> np.ndarray:
    """As released: a pass over all files for each threshold."""
    sides, counts = CLASSES + 1, []
    for threshold in thresholds:
        predictions, labels = [], []
        for path, truth in images:
            with np.load(path) as stored:
                maps = np.pad(stored["full"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
                names = np.pad(stored["classes"] + 1, (1, 0), mode="constant")
            predictions.append(names[np.argmax(maps, axis=0)])
            labels.append(truth)
        confusion = np.zeros((sides, sides), np.int64)
        for predicted, truth in zip(predictions, labels, strict=True):
            predicted, truth = predicted.flatten(), truth.flatten()
            known = truth != 255
            pairs = sides * truth[known].astype(int) + predicted[known]
            confusion += np.bincount(pairs, minlength=sides**2).reshape(sides, sides)
        counts.append(confusion)
    return np.stack(counts)


@pytest.mark.parametrize("implementation", ["ours", "pass by pass"])
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one_thread"])
@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.benchmark(timer=time.process_time)
def test_thresholds(benchmark: BenchmarkFixture, images: Images, steps: int, threads: int, implementation: str) -> None:
    thresholds = np.linspace(0.05, 0.9, steps).tolist()
    run = swept if implementation == "ours" else pass_by_pass
    if implementation == "ours":
        assert np.array_equal(swept(images, thresholds), pass_by_pass(images, thresholds))
    benchmark.group = f"threshold_sweep, {steps} thresholds, from map files of 375x500, an image, 1 thread"
    benchmark.extra_info |= {"implementation": implementation, "per": len(images)}
    benchmark.pedantic(run, (images, thresholds), rounds=20 if implementation == "ours" else 3, warmup_rounds=1)


def maps_of_7x7(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side], from 0 to 255."""
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        fine = cv2.resize(random.random((7, 7), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
        made.append(((fine - fine.min()) / (fine.max() - fine.min()) * 255).astype(np.uint8))
    return np.stack(made)


def contours(maps: np.ndarray, levels: list[int]) -> list[list[Any]]:
    """As the common evaluator has them, map by map and level by level."""
    import cv2

    found = []
    for image in maps:
        for level in levels:
            _, above = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
            found.append(list(cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]))
    return found


def ours(maps: np.ndarray, levels: torch.Tensor) -> ops.ComponentBoxes:
    return ops.component_boxes(torch.from_numpy(maps), levels)


@pytest.mark.parametrize("implementation", ["ours", "1,000 contour calls", "255 contour calls"])
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one_thread"])
@pytest.mark.benchmark(timer=time.process_time)
def test_boxes(benchmark: BenchmarkFixture, threads: int, shrink: int, implementation: str) -> None:
    maps, levels = maps_of_7x7(8, 224 // shrink), torch.arange(256)
    import cv2

    cv2.setNumThreads(1)
    if implementation == "ours":
        areas = ours(maps, levels)
        want = [[cv2.contourArea(c) for c in found] for found in contours(maps, list(range(256)))]
        got = [part.tolist() for part in areas.polygon_area.tensor_split(areas.offsets[1:-1])]
        assert got == want
    benchmark.group = "component_boxes, every level of a map of 224x224 from 7x7, 1 thread"
    benchmark.extra_info |= {"implementation": implementation, "per": len(maps)}
    if implementation == "ours":
        benchmark.pedantic(ours, (maps, levels), rounds=50, warmup_rounds=3)
    else:
        wanted = list(range(255)) if "255" in implementation else [int(step * 255) for step in np.arange(0, 1, 0.001)]
        benchmark.pedantic(contours, (maps, wanted), rounds=3, warmup_rounds=1)
