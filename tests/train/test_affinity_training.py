"""train_affinity: it learns, it survives a kill to the same bits, it says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from train.affinity_toy import CONFIG, TwoRegions, toy_net

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.train import affinity as trainer
from advcam_fast.train.affinity import AffinityConfig, mean_displacement, train_affinity


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped: 2 steps an epoch, 3 epochs."""
    torch.set_num_threads(1)
    return train_affinity(toy_net(), TwoRegions(), tmp_path_factory.mktemp("done"), CONFIG).parent


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_learns_where_the_edge_is(tmp_path: Path) -> None:
    data, net = TwoRegions(16), toy_net()
    config = dataclasses.replace(CONFIG, epochs=50, boundary_rate=0.1, scales=(0.9, 1.1))
    train_affinity(net, data, tmp_path, config)
    totals = [line["total"] for line in lines(tmp_path)[:-1]]
    assert len(totals) == 200
    assert sum(totals[-10:]) < 0.4 * sum(totals[:10])
    for index in range(0, 16, 5):
        boundary, _ = net.predict(data[index][0], canvas=None)
        cell = data.edge(index) // 4
        near = boundary[2:-2, cell - 1 : cell + 2].amax(1)
        far = torch.cat([boundary[2:-2, 1 : cell - 1], boundary[2:-2, cell + 3 : -1]], 1)
        assert float(near.min()) > 0.3 and float(near.mean()) > 0.5 and float(far.mean()) < 0.05


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path, done: Path, steps: int) -> None:
    """Killed while images are read: before the first checkpoint of a step, two steps after it, in the last pass."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "train.affinity_toy", str(tmp_path), str(steps * CONFIG.batch + 1)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(tmp_path)] == list(range(steps))
    (tmp_path / "log.jsonl").open("a").write('{"step": 9, "tot')  # as a power cut may leave it
    torch.manual_seed(99)
    net = toy_net(head_seed=1)  # not the heads that it began with
    train_affinity(net, TwoRegions(), tmp_path, CONFIG, resume=True)
    assert same_weights(tmp_path, done)
    strip = [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines(tmp_path)]
    assert strip == [{key: v for key, v in line.items() if key != "images_per_second"} for line in lines(done)]
    assert not list(tmp_path.glob(".*"))


def test_only_the_heads_and_the_mean_change(done: Path) -> None:
    before, after = toy_net().state_dict(), load_file(done / "weights.safetensors")
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key.split(".")[0] for key in before if not key.startswith("stage")}
    with safe_open(done / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["settings"])["radius"] == 4


def test_the_mean_is_that_of_all_images(done: Path) -> None:
    net, data = toy_net(), TwoRegions()
    net.load_state_dict(load_file(done / "weights.safetensors"))
    net.eval()
    with torch.no_grad():
        crops = torch.stack([net.normalise(data[i][0][:, :32, :32]) for i in range(len(data))])
        left = net(crops)[1].mean((0, 2, 3))
    assert float(net.mean_shift.running_mean.abs().min()) > 1e-3
    assert float(left.abs().max()) < 1e-5
    assert torch.allclose(mean_displacement(net, data, CONFIG).float(), net.mean_shift.running_mean, atol=1e-6)


def test_the_log(done: Path) -> None:
    *steps, last = lines(done)
    assert [line["step"] for line in steps] == [0, 1, 2, 3, 4, 5]
    assert [line["epoch"] for line in steps] == [0, 0, 1, 1, 2, 2]
    for line in steps:
        rate = 0.02 * (1 - line["step"] / 6) ** 0.9
        assert math.isclose(line["boundary_rate"], rate) and math.isclose(line["displacement_rate"], rate)
        positive = line["background"] / 2 + line["foreground"] / 2
        moved = line["foreground_displacement"] + line["background_displacement"]
        assert math.isclose(line["total"], (positive + line["negative"]) / 2 + moved / 2, rel_tol=1e-5)
        assert line["images_per_second"] > 0
    assert last["step"] == 6 and len(last["mean_shift"]) == 2  # type: ignore[arg-type]


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    path = train_affinity(toy_net(), TwoRegions(4), tmp_path, config)
    before = path.stat().st_mtime_ns
    net, data = toy_net(head_seed=1), TwoRegions(4)
    assert train_affinity(net, data, tmp_path, config, resume=True) == path
    assert (path.stat().st_mtime_ns, data.reads) == (before, 0)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in load_file(path).items())
    with pytest.raises(UsageError, match=r"already holds a training \(checkpoint\.pt\): resume it or choose another"):
        train_affinity(net, data, tmp_path, config)


def test_workers_change_no_bit(tmp_path: Path, done: Path) -> None:
    train_affinity(toy_net(), TwoRegions(), tmp_path, dataclasses.replace(CONFIG, workers=1))
    assert same_weights(tmp_path, done)


@pytest.mark.parametrize("crop", [30, 41])
def test_any_crop_and_batch(tmp_path: Path, crop: int) -> None:
    config = dataclasses.replace(CONFIG, crop=crop, batch=7, epochs=1)
    train_affinity(toy_net(), TwoRegions(3), tmp_path, config)
    assert len(lines(tmp_path)) == 2


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    train_affinity(toy_net(), TwoRegions(4), tmp_path, config)
    for changed, data, reason in (
        (dataclasses.replace(config, radius=5), TwoRegions(4), "radius = 4, now 5"),
        (config, TwoRegions(5), "images = 4, now 5"),
    ):
        with pytest.raises(UsageError, match=rf"was begun with {reason}: use the same"):
            train_affinity(toy_net(), data, tmp_path, changed, resume=True)
    net = toy_net()
    next(net.stage3.parameters()).data.mul_(1.1)
    with pytest.raises(UsageError, match="was begun with stages = "):
        train_affinity(net, TwoRegions(4), tmp_path, config, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"checkpoint\.pt: not a checkpoint of a training"):
        train_affinity(toy_net(), TwoRegions(4), tmp_path, config, resume=True)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(boundary: Tensor, *rest: Tensor) -> trainer.AffinityLosses:
        return trainer.AffinityLosses(*[boundary.sum() * math.nan] * 6)

    monkeypatch.setattr(trainer, "affinity_loss", broken)
    with pytest.raises(StoppedError, match=r"step 0: the loss is nan; try a lower rate than 0\.02"):
        train_affinity(toy_net(), TwoRegions(4), tmp_path, CONFIG)


def test_a_disk_that_takes_nothing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = trainer.TrainingFolder(tmp_path, resume=False)
    files.save_checkpoint({"settings": {}, "step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoppedError, match=r"checkpoint\.pt: cannot be written: .*No space left"):
        files.save_checkpoint({"settings": {}, "step": 2})
    saved = files.read_checkpoint({})
    assert saved is not None and saved["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 images came; wanted 1 or more"):
        train_affinity(toy_net(), TwoRegions(0), tmp_path / "a", CONFIG)
    image, labels = TwoRegions()[0]
    for item, reason in (
        ((image.float(), labels), r"image 0 is torch\.float32 \[3, 48, 48\]; wanted torch\.uint8 \[3, H, W\]"),
        ((image, labels[1:]), r"labels of image 0 are torch\.uint8 \[47, 48\]; wanted torch\.uint8 \[48, 48\]"),
    ):
        with pytest.raises(UsageError, match=reason):
            train_affinity(toy_net(), [item], tmp_path / str(len(reason)), CONFIG)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop": 3}, "crop is 3; wanted 4 or more"),
        ({"batch": 0}, "batch is 0; wanted 1 or more"),
        ({"boundary_rate": 0.0}, r"boundary_rate is 0\.0; wanted above 0"),
        ({"momentum": 1.0}, r"momentum is 1\.0; wanted 0 to below 1"),
        ({"radius": 1}, "radius is 1; wanted 2 to 64"),
        ({"scales": (1.5, 0.5)}, r"scales are \(1\.5, 0\.5\); wanted two numbers above 0"),
        ({"weight_decay": math.nan}, "weight_decay is nan; wanted 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        AffinityConfig(**change)  # type: ignore[arg-type]
