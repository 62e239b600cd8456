"""train_classifier: it learns, survives a kill to the same bits, trains in two processes, says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
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
from tolerances import close
from torch import nn
from train.classifier_toy import BROKEN, CLASSES, CONFIG, TOGETHER, Squares, toy_net

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.models import TrainableClassifier
from advcam_fast.train import RECIPES, TrainedClassifier, class_logits, train_classifier
from advcam_fast.train.classifier import _optimizer
from advcam_fast.train.classifier_views import Views
from advcam_fast.train.judging import fit_probe, normaliser

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TrainedClassifier:
    """A training that nobody stopped: 2 steps an epoch, 3 epochs, judged after each."""
    torch.set_num_threads(1)
    return train_classifier(toy_net(), Squares(), CLASSES, tmp_path_factory.mktemp("done"), CONFIG, judge=Squares(5))


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_speed(folder: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines(folder)]


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("single", [False, True])
def test_it_learns(tmp_path: Path, single: bool) -> None:
    config = dataclasses.replace(CONFIG, epochs=16)
    trained = train_classifier(
        toy_net(), Squares(28, single), CLASSES, tmp_path, config, judge=Squares(21, single), single_label=single
    )
    losses = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    assert len(losses) == 16 * 7
    assert sum(losses[-14:]) < 0.7 * sum(losses[:14])
    assert trained.score["top1" if single else "mAP"] > 0.95
    net = toy_net(5)
    net.network.load_state_dict(load_file(trained.weights))
    found = class_logits(net, Squares(21, single), 3, config)
    right = found.values.argmax(1) == found.classes.argmax(1) if single else (found.values > 0) == (found.classes > 0)
    assert float(right.double().mean()) > 0.9


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    tmp_path: Path, done: TrainedClassifier, steps: int
) -> None:
    """Killed while images are read: before the first checkpoint of a step, after a judgement, and after a step more."""
    command = [sys.executable, "-m", "train.classifier_toy", str(tmp_path), str(steps * CONFIG.batch + 1)]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL
    assert max(line["step"] for line in lines(tmp_path)) == steps - 1
    net = toy_net(1)
    net.network.load_state_dict(toy_net().network.state_dict())
    torch.manual_seed(99)
    again = train_classifier(net, Squares(), CLASSES, tmp_path, CONFIG, judge=Squares(5), resume=True)
    assert same_weights(again.weights, done.weights)
    assert again.best and done.best and same_weights(again.best, done.best)
    assert again.score == done.score and without_speed(tmp_path) == without_speed(done.weights.parent)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", [{"workers": 1}, {"save_every": 1}])
def test_workers_and_checkpoints_change_no_bit(tmp_path: Path, done: TrainedClassifier, change: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIG, **change)
    trained = train_classifier(toy_net(), Squares(), CLASSES, tmp_path, config, judge=Squares(5))
    assert same_weights(trained.weights, done.weights)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """The parts of a batch are averaged: as one process learns it, an image that cannot be read among them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "train.classifier_toy", str(tmp_path), "-1"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    said = sorted(line for line in ended.stdout.splitlines() if line)
    assert [line[2:] for line in said] == [said[0][2:]] * 2 and said[0].startswith("0 {3: '3.png: the file is empty'}")
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [0, 1, 2, 3, 4, 5]
    alone, data = tmp_path / "alone", Squares(broken=BROKEN)
    one = train_classifier(toy_net(), data, CLASSES, alone, TOGETHER, judge=Squares(5))
    weights, both = load_file(one.weights), load_file(tmp_path / "weights.safetensors")
    began = toy_net().network.state_dict()
    for key, weight in weights.items():
        if weight.is_floating_point():
            close(both[key], weight)
            assert "running" in key or float((weight - began[key]).abs().max()) > 1e-2, "nothing was learned"
    losses = [[line["loss"] for line in lines(folder) if "loss" in line] for folder in (alone, tmp_path)]
    close(torch.tensor(losses[1]), torch.tensor(losses[0]))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["settings"]["processes"] == 2
    with pytest.raises(UsageError, match="was begun with processes = 2, now 1"):
        train_classifier(toy_net(), data, CLASSES, tmp_path, TOGETHER, judge=Squares(5), resume=True)


def test_the_log_and_what_the_weights_say(done: TrainedClassifier) -> None:
    folder, watched = done.weights.parent, lines(done.weights.parent)
    assert [(line["step"], "mAP" in line) for line in watched if line["step"] > 3] == [
        (4, False),
        (5, False),
        (5, True),
    ]
    shares = [CONFIG.share(step, 6, 2) for step in range(6)]
    assert [line["rate"] for line in watched if "rate" in line] == pytest.approx([0.01 * share for share in shares])
    best = max(line["mAP"] for line in watched if "mAP" in line)
    for file in ("weights.safetensors", "best.safetensors"):
        with safe_open(folder / file, framework="pt") as weights:
            said = weights.metadata()
        assert json.loads(said["class_names"]) == list(CLASSES)
        assert (said["activation"], said["model"]) == ("sigmoid", "toy")
        assert json.loads(said["score"])["mAP"] == best == done.score["mAP"]
    assert load_file(done.weights).keys() == toy_net().network.state_dict().keys()


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    config, data = dataclasses.replace(CONFIG, epochs=1), Squares(4, broken=2)
    trained = train_classifier(toy_net(), data, CLASSES, tmp_path, config, judge=Squares(5, broken=1))
    before, data.reads = trained.weights.stat().st_mtime_ns, 0
    again = train_classifier(toy_net(), data, CLASSES, tmp_path, config, judge=Squares(5, broken=1), resume=True)
    assert again == trained and trained.score and again.problems == {2: "2.png: the file is empty"}
    assert again.judged_problems == {1: "1.png: the file is empty"}
    assert (again.weights.stat().st_mtime_ns, data.reads) == (before, 0)
    with pytest.raises(UsageError, match=r"already holds a training \(checkpoint\.pt\)"):
        train_classifier(toy_net(), data, CLASSES, tmp_path, config)


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    config, names = dataclasses.replace(CONFIG, epochs=1), list(CLASSES)
    train_classifier(toy_net(), Squares(4), CLASSES, tmp_path, config, data_digest="a")
    for net, data, digest, changed, reason in (
        (toy_net(), Squares(4), "a", dataclasses.replace(config, rate=0.5), "rate = 0.01, now 0.5"),
        (toy_net(), Squares(5), "a", config, "images = 4, now 5"),
        (toy_net(), Squares(4), "b", config, "data = 'a', now 'b'"),
        (toy_net(1), Squares(4), "a", config, "began_with = "),
    ):
        with pytest.raises(UsageError, match=f"was begun with {reason}"):
            train_classifier(net, data, names, tmp_path, changed, data_digest=digest, resume=True)


def changed_by(config: object, folder: Path, net: TrainableClassifier) -> set[str]:
    before = {key: value.clone() for key, value in net.network.state_dict().items()}
    train_classifier(net, Squares(8), CLASSES, folder, config)  # type: ignore[arg-type]
    return {key for key, value in net.network.state_dict().items() if not torch.equal(value, before[key])}


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    learned = {key for key, _ in toy_net().network.named_parameters()}
    statistics = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    assert changed_by(config, tmp_path / "all", toy_net()) == learned | statistics
    frozen = dataclasses.replace(config, batch_norm="frozen")
    assert changed_by(frozen, tmp_path / "norms", toy_net()) == learned
    head_only = dataclasses.replace(config, frozen_stages=5)
    assert changed_by(head_only, tmp_path / "head", toy_net()) == {"fc.weight", "fc.bias"}
    with pytest.raises(UsageError, match="toy: its five stages are not known"):
        changed_by(dataclasses.replace(config, frozen_stages=3), tmp_path / "some", toy_net())


def test_the_average_of_the_weights_comes_out(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, batch=3, ema=0.9, batch_norm="frozen", optimizer="sgd")
    seen: list[torch.Tensor] = []
    net = toy_net()
    train_classifier(
        net, Squares(9), CLASSES, tmp_path, config, report=lambda _: seen.append(net.head.weight.detach().clone())
    )
    average = seen[0]
    for count, weight in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * weight
    assert len(seen) == 3 and torch.allclose(load_file(tmp_path / "weights.safetensors")["fc.weight"], average)


def test_a_new_head_begins_as_the_best_one(tmp_path: Path) -> None:
    """Nothing is left of the gradient of the decayed soft margin over what can be read."""
    config, data = dataclasses.replace(CONFIG, new_head="probe", epochs=1), Squares(9, broken=2)
    net = toy_net()
    losses = functools.partial(nn.functional.multilabel_soft_margin_loss, reduction="none")
    fit_probe(net, data, losses, 3, config)
    fitted = net.head.weight.detach().clone()
    found = class_logits(net, data, 3, config)
    assert found.indices == [0, 1, 3, 4, 5, 6, 7, 8] and found.problems == {2: "2.png: the file is empty"}
    net.head.requires_grad_(True)
    views = Views(data, normaliser(net), 3, config)
    logits = torch.cat([net(views[None, index].image[None]) for index in found.indices])
    (losses(logits, found.classes).mean() + 1e-3 * net.head.weight.square().sum()).backward()
    assert float(net.head.weight.grad.abs().max()) < 1e-4 < float(fitted.abs().max())  # type: ignore[union-attr, arg-type]
    state = []
    again = toy_net(0)
    train_classifier(
        again, data, CLASSES, tmp_path / "a", dataclasses.replace(config, head_rate=1e-12, ema=0.0), report=state.append
    )
    assert state and torch.allclose(again.head.weight, fitted, atol=1e-6)  # type: ignore[arg-type]
    kept, config = toy_net(), dataclasses.replace(config, head_rate=1e-12, ema=0.0)
    kept.kept_head = True
    train_classifier(kept, data, CLASSES, tmp_path / "b", config)
    assert torch.allclose(kept.head.weight, toy_net().head.weight, atol=1e-6)  # type: ignore[arg-type]


def test_biases_and_norms_decay_with_sgd_only() -> None:
    adamw = _optimizer(toy_net(), dataclasses.replace(CONFIG, weight_decay=0.1, rate=0.5, head_rate=2.0))
    found = sorted((group["lr"], group["weight_decay"], len(group["params"])) for group in adamw.param_groups)
    assert found == [(0.5, 0.0, 3), (0.5, 0.1, 2), (2.0, 0.0, 1), (2.0, 0.1, 1)]
    sgd = _optimizer(toy_net(), RECIPES["voc-cvpr2021"])
    assert sorted((group["lr"], group["weight_decay"]) for group in sgd.param_groups) == [(0.1, 1e-4), (1.0, 1e-4)]


def test_the_loss_is_the_soft_margin_of_what_could_be_read(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, batch=4, epochs=1, batch_norm="frozen")
    net, data = toy_net(), Squares(4, broken=1)
    shift = torch.tensor(net.recipe.mean).view(3, 1, 1)
    scale = torch.tensor(net.recipe.std).view(3, 1, 1)
    views = Views(data, lambda image: (image / 255 - shift) / scale, 3, config)
    read = [views[0, index] for index in (0, 2, 3)]
    with torch.no_grad():
        y = net.eval()(torch.stack([view.image for view in read])).double()
    t = torch.stack([view.classes for view in read])
    expected = -(t * y.sigmoid().log() + (1 - t) * (-y).sigmoid().log()).mean()
    train_classifier(net, data, CLASSES, tmp_path, config)
    assert math.isclose(lines(tmp_path)[0]["loss"], float(expected), rel_tol=1e-5)


def test_bf16_trains_in_float32_weights(tmp_path: Path) -> None:
    types = []
    net = toy_net()
    net.features.register_forward_hook(lambda _, __, found: types.append(found.dtype))
    config = dataclasses.replace(CONFIG, autocast="bf16", epochs=1)
    trained = train_classifier(net, Squares(4), CLASSES, tmp_path, config)
    assert types == [torch.bfloat16]
    assert {t.dtype for t in load_file(trained.weights).values()} == {torch.float32, torch.int64}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    net = toy_net()
    nn.init.constant_(net.head.bias, math.inf)  # type: ignore[arg-type]
    with pytest.raises(StoppedError, match=r"step 0: the loss is (nan|inf); try a lower rate than 0\.0"):
        train_classifier(net, Squares(4), CLASSES, tmp_path, CONFIG)


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data: 0 images came; wanted 1 or more"):
        train_classifier(toy_net(), Squares(0), CLASSES, tmp_path / "a", CONFIG)
    with pytest.raises(UsageError, match="judge: 0 images came; wanted 1 or more"):
        train_classifier(toy_net(), Squares(1), CLASSES, tmp_path / "b", CONFIG, judge=Squares(0))
    with pytest.raises(StoppedError, match=r"none of the 1 images can be read; the first: 0\.png: the file is empty"):
        train_classifier(toy_net(), Squares(1, broken=0), CLASSES, tmp_path / "c", CONFIG)
    with pytest.raises(StoppedError, match="none of the 1 images to judge by can be read"):
        train_classifier(toy_net(), Squares(4), CLASSES, tmp_path / "d", CONFIG, judge=Squares(1, broken=0))
