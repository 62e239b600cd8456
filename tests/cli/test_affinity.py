"""train-affinity and what it makes possible: refine --walk FILE, instances."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CLASSES, Command, Ended, manifest, save_list
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file

from advcam_fast.models import load_affinity_net, new_affinity_net

ROWS = [("a.png", CLASSES[0]), ("b/c.png", f"{CLASSES[1]};{CLASSES[0]}"), ("d.png", ""), ("e.png", CLASSES[2])]
SMALL = ("--model", "efficientnet_lite0", "--weights", "none", "--set", "crop=64", "--set", "batch=1")


@pytest.fixture
def labelled(label: Callable[..., Ended], tmp_path: Path) -> Path:
    assert label(save_list(tmp_path / "photos", ROWS), tmp_path / "run").code == 0
    return tmp_path / "run"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = new_affinity_net("none", "efficientnet_lite0")
    file = tmp_path_factory.mktemp("net") / "weights.safetensors"
    save_file(net.state_dict(), file, {"backbone": "efficientnet_lite0"})
    return file


def test_trained_on_maps_it_gives_a_net_that_refines(labelled: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "affinity"
    ended = run("train-affinity", "--run", labelled, "--out", out, *SMALL, "--set", "epochs=2")
    assert ended.code == 0, ended.err
    assert f"trained on 3 images; weights: {out / 'weights.safetensors'}" in ended.err
    assert sorted(str(file.relative_to(out / "labels")) for file in out.rglob("*.png")) == ["a.png", "b/c.png", "e.png"]
    names = sorted(CLASSES[:3])
    for name, tags in (("a.png", CLASSES[:1]), ("b/c.png", CLASSES[:2]), ("e.png", CLASSES[2:3])):
        values = set(np.unique(np.array(Image.open(out / "labels" / name))).tolist())
        assert values <= {0, 255, *(1 + names.index(tag) for tag in tags)} and len(values - {0, 255}) > 0
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(7))
    assert load_affinity_net(out / "weights.safetensors").backbone == "efficientnet_lite0"
    refined = run("refine", "--run", labelled, "--walk", out / "weights.safetensors", "--instances", "--json")
    assert refined.code == 0, refined.err
    assert refined.json()["coco"] == str(labelled / "instances.json")


def test_a_cut_map_file_teaches_nothing_and_is_told(labelled: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    file = labelled / "maps" / "e.npz"
    file.write_bytes(file.read_bytes()[:100])
    ended = run("train-affinity", "--run", labelled, "--out", tmp_path / "affinity", *SMALL, "--set", "epochs=1")
    assert ended.code == 3
    assert "failed: e: no maps: its file is not whole" in ended.err and "trained on 2 images" in ended.err


def test_killed_it_goes_on_to_the_same_weights(labelled: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    command = ("train-affinity", "--run", labelled, *SMALL, "--set", "epochs=6")
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


def test_instances_are_a_coco_file_beside_the_masks(labelled: Path, run: Callable[..., Ended], net: Path) -> None:
    options = ("--walk", net, "--instances", "--set", "least_instance=0", "--set", "background=0.1")
    ended = run("refine", "--run", labelled, *options, "--json")
    assert ended.code == 0, ended.err
    coco = COCO(labelled / "instances.json")
    assert {number: one["name"] for number, one in coco.cats.items()} == dict(enumerate(sorted(CLASSES[:3]), start=1))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png", "c.png", "d.png", "e.png"]
    assert len(coco.anns) == ended.json()["instances"] > 0
    tags = {"a": CLASSES[:1], "b/c": CLASSES[:2], "d": [], "e": CLASSES[2:3]}
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"]) and mask.sum() == annotation["area"] > 0
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == box and 0.1 < annotation["score"] <= 1
        assert coco.cats[annotation["category_id"]]["name"] in tags[image["id_in_run"]]
    assert sorted(manifest(labelled / "masks")) == sorted(manifest(labelled / "instances")) == ["a", "b/c", "d", "e"]


def test_instances_can_be_added_later_and_go_on(labelled: Path, run: Callable[..., Ended], net: Path) -> None:
    assert run("refine", "--run", labelled, "--walk", net).code == 0
    settings = (labelled / "masks" / "run.toml").read_text()
    assert 'walk = "boundary"' in settings and "walk_steps = 256" in settings and "power = 1.5" in settings
    before = {file: file.stat().st_mtime_ns for file in (labelled / "masks").rglob("*.png")}
    assert len(before) == 4 and not (labelled / "instances").exists()
    first = run("refine", "--run", labelled, "--walk", net, "--instances", "--json")
    assert (first.code, first.json()["done_now"]) == (0, 4)
    whole = (labelled / "instances.json").read_bytes()
    (labelled / "instances" / "a.json").unlink()
    again = run("refine", "--run", labelled, "--walk", net, "--instances", "--json")
    assert (again.code, again.json()["done_now"]) == (0, 1)
    assert (labelled / "instances.json").read_bytes() == whole
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_masks_of_another_net_are_not_mixed(labelled: Path, run: Callable[..., Ended], net: Path) -> None:
    assert run("refine", "--run", labelled, "--walk", net).code == 0
    tensors = load_file(net)
    tensors["fc_edge6.bias"] += 1
    save_file(tensors, labelled.parent / "other.safetensors", {"backbone": "efficientnet_lite0"})
    ended = run("refine", "--run", labelled, "--walk", labelled.parent / "other.safetensors")
    assert ended.code == 2
    assert "net:" in ended.error


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--preset", "irn"), "a walk by the boundary needs an affinity net: add --walk FILE"),
        (("--instances",), "--instances needs an affinity net: add --walk FILE"),
        (("--walk", "nowhere.pth"), "--walk nowhere.pth: wanted is color, none or a file"),
        (("--walk", "MAP"), "not a weights file"),
    ],
)
def test_refine_without_a_net_that_is_one(labelled: Path, run: Callable[..., Ended], more: tuple, text: str) -> None:
    ended = run("refine", "--run", labelled, *(labelled / "maps" / "a.npz" if one == "MAP" else one for one in more))
    assert ended.code == 2
    assert text in ended.error
    assert not (labelled / "masks").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--foreground", "0.1"), "--foreground 0.1 --background 0.15: wanted is 0 <= background"),
        (("--set", "epochs=0"), "epochs is 0; wanted 1 or more"),
        (("--set", "epoch=1"), "--set 'epoch=1': wanted is KEY=VALUE with a key of crop"),
        (("--set", "mirror=maybe"), "--set mirror=maybe: that is no value for mirror"),
        (("--model", "squeezenet1_1"), "squeezenet1_1: its five stages are not known; wanted is a ResNet"),
        (("--data", "csv:nowhere.csv"), "nowhere.csv"),
    ],
)
def test_bad_trainings_are_one_line(
    labelled: Path, run: Callable[..., Ended], tmp_path: Path, more: tuple, text: str
) -> None:
    ended = run("train-affinity", "--run", labelled, "--out", tmp_path / "out", *SMALL, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (tmp_path / "out").exists()
