"""export on the command line: label, refine and export of the small network, and what cannot be done named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CLASSES, Ended, save_list
from PIL import Image
from pycocotools.coco import COCO

from advcam_fast.export import FORMATS

ROWS = [("a.png", CLASSES[0]), ("b/c.png", f"{CLASSES[1]};{CLASSES[0]}"), ("d.png", ""), ("e.png", CLASSES[2])]


@pytest.fixture
def refined(label: Callable[..., Ended], run: Callable[..., Ended], tmp_path: Path) -> Path:
    assert label(save_list(tmp_path / "photos", ROWS), tmp_path / "run").code == 0
    assert run("refine", "--run", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_all_formats_of_a_run(refined: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("export", "--run", refined, "--to", ",".join(FORMATS), "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FORMATS)
    assert "4 of 4 images have been exported as voc, coco" in ended.err
    assert "label --full" in ended.err
    coco = COCO(tmp_path / "out" / "coco" / "annotations" / "instances_polygons.json")
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == sorted(CLASSES[:3])
    mask = np.zeros_like(np.asarray(Image.open(refined / "masks" / "e.png")))
    number = next(image["id"] for image in coco.loadImgs(coco.getImgIds()) if image["item_id"] == "e")
    for found in coco.loadAnns(coco.getAnnIds(number)):
        mask[coco.annToMask(found) > 0] = found["category_id"]
    assert mask.any() and (mask == np.asarray(Image.open(refined / "masks" / "e.png"))).all()
    again = run("export", "--run", refined, "--to", "voc", "--out", tmp_path / "out")
    assert again.code == 2 and "out/voc is there and not empty" in again.error


def test_an_image_that_is_gone_is_told(refined: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "photos" / "a.png").unlink()
    ended = run("export", "--run", refined, "--to", "yolo", "--out", tmp_path / "out", "--json")
    assert ended.code == 3
    assert [failure["id"] for failure in ended.json()["failures"]] == ["a"]
    assert (ended.json()["ok"], ended.json()["formats"]) == (3, ["yolo"])


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--to", "kitti"), "--to kitti: wanted is one or several of voc,coco"),
        (("--to", "voc", "--masks", "nowhere"), "nowhere: no masks, which voc needs: run refine first"),
        (("--to", "voc", "--data", "csv:nowhere.csv"), "nowhere.csv"),
        (("--to", "voc", "--out", "/dev/null/out"), "no export can be written here"),
        (("--to", "voc", "--run", "nothing"), "nothing is no run folder"),
    ],
)
def test_bad_options_are_one_line(
    refined: Path, run: Callable[..., Ended], tmp_path: Path, more: tuple, text: str
) -> None:
    ended = run("export", "--run", refined, "--out", tmp_path / "out", *more)
    assert ended.code == 2
    assert text in ended.error
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_that_may_not_be_written(refined: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    ended = run("export", "--run", refined, "--to", "voc", "--out", tmp_path / "closed" / "out", powerless=True)
    assert ended.code == 2 and "Permission denied" in ended.error
