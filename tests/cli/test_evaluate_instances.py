"""evaluate on the command line: the average precision of instances, beside pycocotools on the files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Ended
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from advcam_fast.store import InstanceFolder, RunFolder, StoredInstance

SIZE = (60, 80)
BOXES = {"one": [("cat", 5, 6, 40, 30), ("cat", 50, 10, 25, 40)], "two": [("dog", 10, 10, 30, 40)]}  # x, y, w, h
FOUND = {
    "one": [("cat", 0.9, 5, 6, 40, 30), ("cat", 0.8, 48, 10, 25, 40), ("dog", 0.7, 0, 0, 9, 9)],
    "two": [("dog", 0.6, 12, 14, 26, 36), ("dog", 0.95, 40, 0, 20, 20)],
}


def box(x: int, y: int, width: int, height: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two images in the layout of COCO, and a run with maps and instances of both."""
    images, annotations = [], []
    names = {"cat": 7, "dog": 9}
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "val2017").mkdir()
    for number, (item_id, objects) in enumerate(BOXES.items(), start=1):
        Image.new("RGB", SIZE[::-1], (90, 80, 70)).save(tmp_path / "coco" / "val2017" / f"{item_id}.jpg")
        images.append({"id": number, "file_name": f"{item_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for name, x, y, width, height in objects:
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            own = {"segmentation": [corners], "area": width * height, "bbox": [x, y, width, height], "iscrowd": 0}
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": names[name]}
            annotations.append({**place, **own})
    categories = [{"id": number, "name": name} for name, number in names.items()]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(data))
    with RunFolder.open(tmp_path / "run", {"data": f"coco:{tmp_path / 'coco'}#val2017"}) as run:
        for item_id, objects in BOXES.items():
            labels = sorted({name for name, *_ in objects})
            strided, full = torch.ones(len(labels), 15, 20), torch.ones(len(labels), *SIZE)
            classes = torch.arange(len(labels))
            run.finish(item_id, {"classes": classes, "strided": strided, "initial": full}, labels=labels)
    save_instances(tmp_path / "run", SIZE)
    return tmp_path


def save_instances(run: Path, size: tuple[int, int]) -> None:
    with InstanceFolder.open(run / "instances", {"classes": ["cat", "dog"]}) as folder:
        for item_id, objects in FOUND.items():
            stored = [StoredInstance(name, score, box(*where)[: size[0]]) for name, score, *where in objects]
            folder.finish(item_id, size, stored)
        folder.write_coco(run / "instances.json", ["cat", "dog"], {})


def by_pycocotools(tree: Path) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tree / "coco" / "annotations" / "instances_val2017.json")
        number = {7: 1, 9: 2}
        for annotation in truth.dataset["annotations"]:
            annotation["category_id"] = number[annotation["category_id"]]
        truth.dataset["categories"] = [{"id": 1}, {"id": 2}]
        truth.createIndex()
        found = truth.loadRes(json.loads((tree / "run" / "instances.json").read_text())["annotations"])
        evaluator = COCOeval(truth, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats[:6]]


def test_it_is_that_of_pycocotools(run: Callable[..., Ended], tree: Path) -> None:
    ended = run("evaluate", "--run", tree / "run")
    assert ended.code == 0, ended.err
    figures = json.loads((tree / "run" / "metrics.json").read_text())["instances"]
    wanted = by_pycocotools(tree)
    assert list(figures.values()) == pytest.approx(wanted, abs=1e-12)
    assert 0.2 < figures["AP"] < figures["AP50"] < 0.95
    assert "AP75" in ended.err and "none of that size" in ended.err


def test_instances_of_another_size_or_class_are_named(run: Callable[..., Ended], tree: Path) -> None:
    path = tree / "run" / "instances" / "one.json"
    content = json.loads(path.read_text())
    for change, text in (
        ({"height": 70}, "its instances are of 80 x 70, its annotation is of 80 x 60"),
        ({"instances": [{**content["instances"][0], "label": "owl"}]}, "owl"),
    ):
        write_same_size(path, {**content, **change})
        ended = run("evaluate", "--run", tree / "run", "--json")
        assert ended.code == 3
        assert [failure["id"] for failure in ended.json()["failures"]] == ["one"]
        assert text in ended.json()["failures"][0]["reason"]


def write_same_size(path: Path, content: dict) -> None:
    """The manifest knows how long the file is."""
    size = path.stat().st_size
    text = json.dumps(content, separators=(",", ":"))
    assert len(text) <= size
    path.write_text(text.ljust(size))
