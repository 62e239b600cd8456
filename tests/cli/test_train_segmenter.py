"""train-segmenter: from masks to a segmenter and its own masks."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, Ended, manifest
from PIL import Image
from safetensors.torch import load_file

from advcam_fast.data import open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.models import load_segmenter
from advcam_fast.pipelines.train_segmenter import masked_images
from advcam_fast.store.mask_folder import voc_palette

TINY = ("--model", "efficientnet_lite0", "--weights", "none", "--set", "crop=48", "--set", "batch=2")
TINY += ("--set", "scales=1,1", "--set", "test_scales=1")


def save_palette(file: Path, mask: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, mode="P")
    image.putpalette(voc_palette())
    image.save(file)


def save_scenes(folder: Path, count: int = 4) -> str:
    """Photos of a bright "lamp" (2) or a dark "hole" (1) on grey, with true masks; pseudo masks swap the values."""
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("hole\nlamp\n")
    rows = ["image,labels,mask"]
    for number in range(count):
        lamp, mask = number % 2, np.zeros((56, 64), np.uint8)
        mask[8:40, 10 + number : 44 + number] = 1 + lamp
        pixels = np.full((56, 64, 3), 128, np.uint8)
        pixels[mask > 0] = 250 if lamp else 5
        Image.fromarray(pixels).save(folder / f"{number}.png")
        save_palette(folder / "true" / f"{number}.png", mask)
        save_palette(folder / "pseudo" / f"{number}.png", np.where(mask > 0, 3 - mask, 0).astype(np.uint8))
        rows.append(f"{number}.png,{('hole', 'lamp')[lamp]},true/{number}.png")
    (folder / "pseudo" / "classes.txt").write_text("lamp\nhole\n")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{folder / 'labels.csv'}"


def test_masks_to_a_segmenter_to_masks(run: Callable[..., Ended], tmp_path: Path) -> None:
    data, out = save_scenes(tmp_path / "scenes"), tmp_path / "net"
    given = ("--data", data, "--masks", tmp_path / "scenes" / "pseudo", "--out", out, *TINY, "--predict", data)
    ended = run("train-segmenter", *given, "--set", "steps=3", "--json")
    assert ended.code == 0, ended.err
    summary = ended.json()
    assert (summary["trained_on"], summary["ok"], summary["failed"]) == (4, 4, 0)
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1, 2]
    net = load_segmenter(out / "weights.safetensors")
    assert (net.classes, net.kind) == (("hole", "lamp"), "v2")
    assert (out / "predictions" / "classes.txt").read_text() == "hole\nlamp\n"
    for name, record in manifest(out / "predictions").items():
        mask = Image.open(out / "predictions" / f"{name}.png")
        values = set(np.unique(np.array(mask)).tolist())
        assert mask.mode == "P" and mask.size == (64, 56) and values <= {0, 1, 2}
        assert record["labels"] == [net.classes[value - 1] for value in sorted(values - {0})]
    before = {file: file.stat().st_mtime_ns for file in (out / "predictions").glob("*.png")}
    (out / "predictions" / "2.png").unlink()
    again = run("train-segmenter", *given, "--set", "steps=3", "--json")
    assert (again.code, again.json()["done_now"]) == (0, 1)
    after = {file: file.stat().st_mtime_ns for file in before}
    assert {file.name for file in before if before[file] != after[file]} == {"2.png"}


def test_true_masks_for_a_list_and_pseudo_masks_for_the_rest(tmp_path: Path) -> None:
    data = open_dataset(save_scenes(tmp_path / "scenes"))
    (tmp_path / "list.txt").write_text("1\n2\n")
    lying = Image.open(tmp_path / "scenes" / "true" / "0.png").size
    save_palette(tmp_path / "scenes" / "pseudo" / "0.png", np.full(lying[::-1], 255, np.uint8))
    for number in (1, 3):
        save_palette(tmp_path / "scenes" / "pseudo" / f"{number}.png", np.ones(lying[::-1], np.uint8))
    images = masked_images(data, tmp_path / "scenes" / "pseudo", tmp_path / "list.txt")
    truth = [np.array(Image.open(tmp_path / "scenes" / "true" / f"{number}.png")) for number in range(4)]
    assert all(np.array_equal(images[number][1].numpy(), truth[number]) for number in (1, 2))
    assert set(images[3][1].unique().tolist()) == {2}  # its value 1 is "lamp", which is 2 of the data's classes
    right, failures, _ = images.usable()
    assert len(right) == 3 and failures == [
        {"id": "0", "reason": f"{tmp_path / 'scenes' / 'pseudo' / '0.png'}: every pixel is 255, ignored"}
    ]
    own = masked_images(data, None, None)
    assert all(np.array_equal(own[number][1].numpy(), truth[number]) for number in range(4))
    (tmp_path / "list.txt").write_text("1\n9\n")
    with pytest.raises(UsageError, match=r"list\.txt: 1 ids are not in .*, the first: 9"):
        masked_images(data, tmp_path / "scenes" / "pseudo", tmp_path / "list.txt")


def test_killed_it_goes_on_to_the_same_weights(run: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_scenes(tmp_path / "scenes")
    command = ("train-segmenter", "--data", data, *TINY, "--set", "steps=8", "--set", "save_every=3")
    assert run(*command, "--out", tmp_path / "whole").code == 0
    log = tmp_path / "killed" / "log.jsonl"
    started = Command(*command, "--out", tmp_path / "killed", folder=tmp_path / "said")
    while started.process.is_alive() and (not log.exists() or log.read_text().count("\n") < 4):
        time.sleep(0.01)
    started.send(signal.SIGKILL)
    assert started.end().code == -signal.SIGKILL, "it was done before it could be killed"
    assert run(*command, "--out", tmp_path / "killed").code == 0
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    (tmp_path / "scenes" / "true" / "0.png").write_bytes((tmp_path / "scenes" / "true" / "1.png").read_bytes())
    changed = run(*command, "--out", tmp_path / "killed")
    assert changed.code == 2 and "was begun with data = " in changed.error


def test_bad_masks_are_said_and_the_training_goes_on(run: Callable[..., Ended], tmp_path: Path) -> None:
    data, pseudo = save_scenes(tmp_path / "scenes"), tmp_path / "scenes" / "pseudo"
    (pseudo / "0.png").unlink()
    save_palette(pseudo / "1.png", np.full((56, 64), 7, np.uint8))
    save_palette(pseudo / "2.png", np.zeros((5, 6), np.uint8))
    command = ("train-segmenter", "--data", data, "--masks", pseudo, *TINY, "--set", "steps=1")
    ended = run(*command, "--out", tmp_path / "net", "--json")
    assert ended.code == 3 and ended.json()["trained_on"] == 1
    reasons = {failure["id"]: failure["reason"] for failure in ended.json()["failures"]}
    assert "No such file" in reasons["0"] and "value 7 is no class; wanted 0 to 2 or 255" in reasons["1"]
    assert "[5, 6]; wanted [56, 64] as its image" in reasons["2"]
    (pseudo / "3.png").unlink()
    ended = run(*command, "--out", tmp_path / "none")
    assert ended.code == 2 and "none of 4 images has a mask to learn from; the first: " in ended.error


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--recipe", "v3"), "no preset 'v3', there are v3plus, voc-cvpr2021"),
        (("--set", "head=v4"), "head: v4 came, wanted is v2 or v3plus"),
        (("--set", "batch=99", "--set", "step=1"), "--set 'step=1': wanted is KEY=VALUE with a key of head"),
        (("--masks", "nowhere"), "--masks nowhere: no such folder"),
        (("--true-masks", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--model", "squeezenet1_1"), "squeezenet1_1: its five stages are not known"),
        (("--predict", "csv:nowhere.csv"), "nowhere.csv"),
    ],
)
def test_bad_options_are_one_line(run: Callable[..., Ended], tmp_path: Path, more: tuple, text: str) -> None:
    data = save_scenes(tmp_path / "scenes", 2)
    ended = run("train-segmenter", "--data", data, "--out", tmp_path / "net", *TINY, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (tmp_path / "net" / "log.jsonl").exists()
