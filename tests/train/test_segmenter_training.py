"""train_segmenter: its loss, what it learns, and that it survives a kill to the same bits."""

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
from safetensors.torch import load_file
from tolerances import close
from torch import Tensor
from train.affinity_toy import TwoRegions
from train.segmenter_toy import CONFIG, toy_net

from advcam_fast.errors import UsageError
from advcam_fast.pipelines.train_segmenter import predicted_mask
from advcam_fast.train import SEGMENTER_RECIPES, SegmenterConfig, train_segmenter
from advcam_fast.train.segmenter import segmentation_loss
from advcam_fast.train.team import Team


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train_segmenter(toy_net(), TwoRegions(), tmp_path_factory.mktemp("done"), CONFIG)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_the_plain_sum(balanced: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (2, 5, 6), generator=draw).to(torch.uint8)
    labels[labels == 3] = 255
    labels[1, 2:] = 0
    chosen: dict[int, list[float]] = {}
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        label = int(labels[b, y, x])
        if label != 255:
            scores = logits[b, :, y, x].exp()
            kind = min(label, 1) if balanced else 0
            chosen.setdefault(kind, []).append(-math.log(scores[label] / scores.sum()))
    expected = sum(sum(values) / len(values) for values in chosen.values()) / len(chosen)
    assert math.isclose(float(segmentation_loss(logits, labels, balanced)), expected, rel_tol=1e-12)
    assert float(segmentation_loss(logits, torch.full_like(labels, 255), balanced)) == 0
    only = torch.where(labels == 0, 255, labels).to(torch.uint8)
    assert math.isclose(
        float(segmentation_loss(logits, only, True)), float(segmentation_loss(logits, only, False)), rel_tol=1e-12
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_the_losses_of_two_processes_average_to_that_of_one(balanced: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=draw, dtype=torch.float64)
    labels = torch.randint(3, (2, 5, 6), generator=draw).to(torch.uint8)
    labels[0, 1:] = 255  # few pixels
    labels[1, 0] = 0

    def counts(of: Tensor) -> Tensor:
        kinds = (of == 0, (of > 0) & (of < 255)) if balanced else (of < 255,)
        return torch.stack([kind.sum() for kind in kinds]).double()

    class Half(Team):
        """One of two processes, of which the other counts the other image's pixels."""

        def mean(self, value: Tensor) -> Tensor:
            assert torch.equal(value, counts(labels[self.rank]))
            return (value + counts(labels[1 - self.rank])) / 2

    parts = [segmentation_loss(logits[at : at + 1], labels[at : at + 1], balanced, Half(at, 2)) for at in (0, 1)]
    close((parts[0] + parts[1]) / 2, segmentation_loss(logits, labels, balanced))
    assert abs(float(parts[0] - parts[1])) > 0.01  # nor would each mean by itself do


@pytest.mark.parametrize("head", ["v2", "v3plus"])
def test_it_learns_the_regions(tmp_path: Path, head: str) -> None:
    config = dataclasses.replace(CONFIG, head=head, steps=60, rate=0.002)
    data, net = TwoRegions(16), toy_net(head)
    train_segmenter(net, data, tmp_path, config)
    found = losses(tmp_path)
    assert sum(found[-10:]) < 0.4 * sum(found[:10])
    for index in (0, 7):
        image, labels = data[index]
        mask = predicted_mask(net, image, config)
        sure = labels != 255
        assert mask.dtype == torch.uint8 and float((mask == labels)[sure].double().mean()) > 0.9


@pytest.mark.parametrize("steps", [1, 5])
def test_a_training_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path, done: Path, steps: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "train.segmenter_toy", str(tmp_path), str(steps * CONFIG.batch + 1)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert len(losses(tmp_path)) == steps
    again = train_segmenter(toy_net(), TwoRegions(), tmp_path, CONFIG, resume=True)
    one, other = load_file(again), load_file(done)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert losses(tmp_path) == losses(done.parent)


def test_other_settings_do_not_resume(done: Path) -> None:
    for config, net, reason in (
        (dataclasses.replace(CONFIG, crop=40), toy_net(), "crop = 32, now 40"),
        (CONFIG, toy_net(head_seed=1), "began_with = "),
    ):
        with pytest.raises(UsageError, match=f"was begun with {reason}"):
            train_segmenter(net, TwoRegions(), done.parent, config, resume=True)
    with pytest.raises(UsageError, match="0 images came"):
        train_segmenter(toy_net(), TwoRegions(0), done.parent, CONFIG, resume=True)
    free = dataclasses.replace(CONFIG, crf=True, test_scales=(0.5, 1.0), workers=1)
    assert train_segmenter(toy_net(), TwoRegions(), done.parent, free, resume=True) == done


def test_statistics_of_the_backbone_stay(done: Path) -> None:
    before, after = toy_net().state_dict(), load_file(done)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key, _ in toy_net().named_parameters()}


def test_the_method_s_settings() -> None:
    voc = SEGMENTER_RECIPES["voc-cvpr2021"]
    assert (voc.head, voc.batch, voc.steps, voc.rate, voc.scales) == ("v2", 10, 30_000, 2.5e-4, (0.5, 2.0))
    assert voc.crf and voc.test_flip and len(voc.test_scales) > 1 and voc.balance == "foreground"
    for change, reason in (({"head": "v4"}, "head: v4 came, wanted is v2 or v3plus"), ({"steps": 0}, "steps: 0 came")):
        with pytest.raises(UsageError, match=reason):
            SegmenterConfig(**change)  # type: ignore[arg-type]
