"""train-classifier: from tags to weights that label reads."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, Ended, arrays, manifest, save_list
from PIL import Image
from safetensors.torch import load_file

from advcam_fast.data import open_dataset
from advcam_fast.models import load_model
from advcam_fast.pipelines.train_classifier import without_fold

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
TINY = (
    "--model",
    "squeezenet1_1",
    "--weights",
    "none",
    "--set",
    "crop=64",
    "--set",
    "test_side=64",
    "--set",
    "batch=4",
)


def save_squares(folder: Path, count: int = 8, single: bool = False) -> str:
    """Grey photos with a square of each of their tags' colours, left to right."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        names = list(COLOURS)
        tags = [names[number % 3]] if single else [name for i, name in enumerate(names) if (number % 7) >> i & 1]
        pixels = np.full((64, 72, 3), 128, np.uint8)
        for place, tag in enumerate(tags):
            pixels[8:56, 2 + 24 * place : 22 + 24 * place] = COLOURS[tag]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", ";".join(tags)))
    return save_list(folder, rows, photos=False)


def steps(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_tags_to_weights_to_maps(run: Callable[..., Ended], tmp_path: Path) -> None:
    data, out = save_squares(tmp_path / "photos", 21), tmp_path / "net"
    more = ("--set", "rate=0.001", "--set", "head_rate=0.001", "--set", "epochs=40", "--set", "color=false")
    ended = run("train-classifier", "--data", data, "--out", out, *TINY, *more, "--val-fold", "1/3", "--json")
    assert ended.code == 0, ended.err
    summary = ended.json()
    assert (summary["task"], summary["trained_on"], summary["classes"]) == ("multi-label", 14, 3)
    assert summary["head"] == "new"
    found = steps(out)
    losses = [line["loss"] for line in found if "loss" in line]
    assert len(losses) == 3 * 40 and sum(losses[-6:]) < 0.7 * sum(losses[:6])
    best = max(found, key=lambda line: line.get("mAP", 0))
    assert summary["score"] == {"mAP": best["mAP"], "micro_AP": best["micro_AP"]} and best["mAP"] > 0.8
    assert load_model("squeezenet1_1", out / "best.safetensors").class_names == ("blue", "green", "red")
    given = ("--data", data, "--model", "squeezenet1_1", "--weights", out / "weights.safetensors", "--preset", "cam")
    labelled = run("label", *given, "--set", "scales=1", "--out", tmp_path / "run")
    assert labelled.code == 0, labelled.err
    records = manifest(tmp_path / "run")
    assert records["3"]["labels"] == ["red", "green"]
    maps = arrays(tmp_path / "run" / "maps" / "3.npz")
    assert maps["classes"].tolist() == [2, 1]  # in the order of the data's tags, of blue, green, red
    predicted = run("label", *given, "--set", "scales=1", "--labels", "predicted", "--out", tmp_path / "predicted")
    assert predicted.code == 0, predicted.err
    counts = {len(record["labels"]) for record in manifest(tmp_path / "predicted").values()}
    assert len(counts) > 1, "the file says sigmoid: an image has any number of classes"


def test_a_fold_and_the_rest_are_all_images_once(tmp_path: Path) -> None:
    rest, held = without_fold(open_dataset(save_squares(tmp_path / "photos", 8)), "2/3")
    assert [item.id for item in held.items] == ["1", "4", "7"]
    assert [item.id for item in rest.items] == ["0", "2", "3", "5", "6"]


def test_killed_it_goes_on_to_the_same_weights(run: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_squares(tmp_path / "photos")
    more = ("--set", "epochs=8", "--set", "save_every=3", "--val", data)
    command = ("train-classifier", "--data", data, *TINY, *more)
    assert run(*command, "--out", tmp_path / "whole").code == 0
    log = tmp_path / "killed" / "log.jsonl"
    started = Command(*command, "--out", tmp_path / "killed", folder=tmp_path / "said")
    while started.process.is_alive() and (not log.exists() or log.read_text().count("\n") < 7):
        time.sleep(0.01)
    started.send(signal.SIGKILL)
    assert started.end().code == -signal.SIGKILL, "it was done before it could be killed"
    assert run(*command, "--out", tmp_path / "killed").code == 0
    for file in ("weights.safetensors", "best.safetensors"):
        one, other = (load_file(tmp_path / name / file) for name in ("whole", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    changed = run(*command, "--out", tmp_path / "killed", "--set", "rate=0.1")
    assert changed.code == 2 and "was begun with rate = 3e-05, now 0.1: use the same" in changed.error


def test_one_tag_an_image_is_a_choice_of_one(run: Callable[..., Ended], tmp_path: Path) -> None:
    data, out = save_squares(tmp_path / "photos", single=True), tmp_path / "net"
    command = ("train-classifier", "--data", data, *TINY, "--set", "epochs=1", "--freeze", "features")
    ended = run(*command, "--val-fold", "2/4", "--out", out)
    assert ended.code == 0, ended.err
    assert "top1" in steps(out)[-1]
    assert f"weights: {out / 'weights.safetensors'}; best, top1 " in ended.err
    assert load_model("squeezenet1_1", out / "weights.safetensors").activation == "softmax"
    many = run(*command, "--task", "multi-label", "--out", tmp_path / "many", "--json")
    assert (many.code, many.json()["task"]) == (0, "multi-label")
    goes_on = run(*command, "--weights", out / "weights.safetensors", "--out", tmp_path / "tuned", "--json")
    assert (goes_on.code, goes_on.json()["head"]) == (0, "of the weights")


def test_a_bad_image_is_said_and_the_training_goes_on(run: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_squares(tmp_path / "photos")
    (tmp_path / "photos" / "5.png").write_bytes(b"damaged")
    more = ("--set", "epochs=1", "--set", "batch=8")
    ended = run("train-classifier", "--data", data, *TINY, *more, "--out", tmp_path / "net")
    assert ended.code == 3
    assert "failed: 5: " in ended.err and (tmp_path / "net" / "weights.safetensors").exists()


def test_tensorboard_that_is_not_there_is_said(run: Callable[..., Ended], tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401

        pytest.skip("TensorBoard is installed here")
    except ImportError:
        pass
    data = save_squares(tmp_path / "photos")
    ended = run(
        "train-classifier", "--data", data, *TINY, "--set", "epochs=1", "--tensorboard", "--out", tmp_path / "net"
    )
    assert ended.code == 0
    assert "TensorBoard is not installed (pip install tensorboard): only log.jsonl is written" in ended.err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--recipe", "voc"), "no preset 'voc', there are modern, voc-cvpr2021, cub-wsol, imagenet-wsol"),
        (("--set", "epoch=1"), "--set 'epoch=1': wanted is KEY=VALUE with a key of optimizer"),
        (("--set", "optimizer=lion"), "optimizer: lion came, wanted is sgd or adamw"),
        (("--task", "some"), "--task some: wanted is auto, multi-label, single-label"),
        (("--freeze", "head"), "--freeze head: wanted is none or features"),
        (("--val-fold", "9/5"), "--val-fold 9/5: wanted is K/N"),
        (("--val-fold", "1/2", "--val", "csv:x"), "--val and --val-fold both came"),
        (("--set", "frozen_stages=2"), "squeezenet1_1: its five stages are not known"),
        (("--model", "squeezenet9"), "unknown model 'squeezenet9'"),
        (("--device", "cuda:77"), "--device cuda:77: not there"),
    ],
)
def test_bad_options_are_one_line(run: Callable[..., Ended], tmp_path: Path, more: tuple, text: str) -> None:
    data = save_squares(tmp_path / "photos", 3)
    ended = run("train-classifier", "--data", data, "--out", tmp_path / "net", *TINY, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (tmp_path / "net" / "log.jsonl").exists()


def test_data_without_tags_and_a_folder_in_use(run: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_squares(tmp_path / "photos", 3)
    (tmp_path / "bare").mkdir()
    (tmp_path / "photos" / "0.png").rename(tmp_path / "bare" / "0.png")
    ended = run("train-classifier", "--data", f"folder:{tmp_path / 'bare'}", "--out", tmp_path / "net", *TINY)
    assert ended.code == 2 and "has no tags: a classifier is trained on some" in ended.error
    (tmp_path / "net").write_text("a file")
    ended = run("train-classifier", "--data", data, "--out", tmp_path / "net", *TINY)
    assert ended.code == 2 and "no training can be written here: File exists" in ended.error
