"""evaluate --masks without --run: masks alone, as train-segmenter predicts them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Ended
from judged_runs import HEIGHT, NAMES, ROWS, WIDTH, save_data, save_run, truth_of
from PIL import Image

from advcam_fast.store import MaskFolder

Run = Callable[..., Ended]
OTHER = ("owl", "cat", "dog")  # the folder's classes, in an order of its own


def shifted(number: int, tags: str) -> np.ndarray:
    """A mask that is the truth, moved by three pixels, in the classes of the data; 255 where it is 255."""
    return np.roll(truth_of(number, tags.split(";") if tags else []), 3, 1)


def save_shifted(folder: Path, left_out: str = "", spoiled: str = "", data: str = "") -> Path:
    value = np.arange(256).astype(np.uint8)
    value[1 : 1 + len(NAMES)] = [1 + OTHER.index(name) for name in NAMES]
    with MaskFolder.open(folder, {"data": data} if data else {}) as masks:
        for number, (name, tags) in enumerate(ROWS):
            if name == left_out:
                masks.fail(name, "the image is damaged")
                continue
            mask = value[shifted(number, tags)]
            masks.finish(name, torch.from_numpy(np.full_like(mask, 9) if name == spoiled else mask))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in OTHER))
    return folder


def plain_miou(names: tuple[str, ...]) -> float:
    confusion = np.zeros((4, 4), np.int64)
    for number, (name, tags) in enumerate(ROWS):
        if name in names:
            truth, mask = truth_of(number, tags.split(";") if tags else []), shifted(number, tags)
            known = truth != 255
            labels = np.where(mask == 255, 0, mask)[known]
            confusion += np.bincount(4 * truth[known].astype(int) + labels, minlength=16).reshape(4, 4)
    hits = confusion.diagonal()
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


def test_masks_are_judged_by_themselves(run: Run, tmp_path: Path) -> None:
    data = save_data(tmp_path / "data")
    folder = save_shifted(tmp_path / "masks", data=data)
    ended = run("evaluate", "--masks", folder)
    assert ended.code == 0, ended.err
    assert "6 images evaluated, 0 failed, 0 without ground truth" in ended.err and "CAM" not in ended.err
    written = json.loads((folder / "metrics.json").read_text())
    best = written["segmentation"]["masks"]["best"]["ours"]
    assert best["miou"] == pytest.approx(plain_miou(tuple(name for name, _ in ROWS)), abs=1e-12)
    assert best["interval"][0] < best["miou"] < best["interval"][1]
    assert list(written["segmentation"]) == ["masks"] and "boxes" not in written
    pictures = {file.name for file in (folder / "evaluation").glob("*.png")}
    assert pictures == {"by_class.png", "by_size.png", "best.png", "worst.png"}
    lines = [json.loads(line) for line in (folder / "evaluation" / "per_image.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {name for name, tags in ROWS if tags}
    with Image.open(folder / "evaluation" / "worst.png") as picture:
        assert picture.width > 3 * 240 * WIDTH // HEIGHT, "photo, truth and mask"


def test_masks_that_are_missing_or_wrong_are_said(run: Run, tmp_path: Path) -> None:
    data = save_data(tmp_path / "data")
    folder = save_shifted(tmp_path / "masks", left_out="a", spoiled="g")
    ended = run("evaluate", "--masks", folder, "--data", data, "--json")
    assert ended.code == 3, ended.err
    figures = ended.json()
    reasons = {failure["id"]: failure["reason"] for failure in figures["failures"]}
    assert set(reasons) == {"a", "g"} and "the image is damaged" in reasons["a"]
    assert reasons["g"] == "its mask holds 9, which is none of its folder's classes"
    found = figures["runs"][0]["segmentation"]["masks"]["best"]["ours"]["miou"]
    assert found == pytest.approx(plain_miou(("b/c", "d", "e", "f")), abs=1e-12)


def test_what_masks_alone_do_not_have(run: Run, tmp_path: Path) -> None:
    data = save_data(tmp_path / "data")
    folder = save_shifted(tmp_path / "masks")
    for given, said in (
        ((), "wanted is --run RUN, or for masks alone --masks FOLDER"),
        (("--masks", folder, "--boxes", "--data", data), "--masks FOLDER without --boxes"),
        (("--masks", folder), "it does not say where its images are: add --data"),
        (("--masks", folder, "--data", data.replace("list", "boxes")), "has no masks to evaluate with"),
        (("--masks", tmp_path, "--data", data), "is no run folder"),
    ):
        ended = run("evaluate", *given)
        assert ended.code == 2 and said in ended.error, given
    (folder / "classes.txt").write_text("owl\ncat\nwolf\n")
    ended = run("evaluate", "--masks", folder, "--data", data)
    assert ended.code == 2 and "'wolf'" in ended.error
    save_run(tmp_path / "run")
    assert run("evaluate", "--run", tmp_path / "run", "--data", data).code == 0
