"""The engine on a device: graphs, several sizes in a batch, batches that fit; all against plain runs there."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from networks import photo, tensor, tiny

from advcam_fast import CamModel, ClimbConfig
from advcam_fast.bench.networks import random_model
from advcam_fast.climb import MapMaker

CONFIG = ClimbConfig(steps=8, scales=(1.0,), steps_at_scale={}, dtype="fp64")
SIZES = [(96, 128), (99, 125), (97, 131), (100, 121), (96, 128)]


def on(model: CamModel, device: str) -> CamModel:
    return copy.deepcopy(model).to(device)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_replayed_steps_are_those_that_are_launched(device: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = on(tiny(), device), replace(CONFIG, dtype=dtype)
    images, labels = [tensor(photo(96, 128, seed)) for seed in range(4)], [[0, 1]] * 4
    recording = MapMaker(model, config, max_pairs=8)
    got = recording.compute(images, labels)
    assert not recording.climber.replay.problem
    assert recording.climber.replay.wanted == (device == "cuda")
    monkeypatch.setenv("ADVCAM_CUDA_GRAPHS", "0")
    for result, want in zip(got, MapMaker(model, config, max_pairs=8).compute(images, labels), strict=True):
        assert torch.equal(result.full, want.full)
        assert result.flags == want.flags == ()


@pytest.mark.parametrize("name", ["tiny", "resnet18", "regnet_y_400mf"])
def test_images_of_several_sizes_have_the_maps_of_their_own_runs(device: str, name: str) -> None:
    model = on(tiny() if name == "tiny" else random_model(name), device)
    images, labels = [tensor(photo(*size, seed)) for seed, size in enumerate(SIZES)], [[1, 3]] * len(SIZES)
    config = replace(CONFIG, steps=8 if name == "tiny" else 2)  # a deeper network's climb magnifies rounding
    maker = MapMaker(model, config, max_pairs=16)
    assert maker.climber.features.ragged
    for image, own, result in zip(images, labels, maker.compute(images, labels), strict=True):
        alone = MapMaker(model, config, max_pairs=2).compute([image], [own])[0]
        assert (result.full - alone.full).abs().max() < 1e-8


def test_no_step_waits_for_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cuda":
        pytest.skip("only a GPU runs beside the host")  # gpu.py counts a skip on a GPU as a fault
    maker = MapMaker(on(tiny(), device), replace(CONFIG, dtype="bf16"), max_pairs=16)
    climber = maker.climber
    ascend = climber._ascend

    def watched(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return ascend(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    images = [tensor(photo(96, 128, seed)) for seed in range(3)]
    want = maker.compute(images, [[0], [1], [2]])
    monkeypatch.setattr(climber, "_ascend", watched)
    for result, other in zip(maker.compute(images, [[0], [1], [2]]), want, strict=True):
        assert torch.equal(result.full, other.full)
