"""The recipes of the published data sets, each run whole on a small tree in just that layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Ended
from data.layouts import coco_content, save_coco, save_cub, save_imagenet, save_voc, write
from PIL import Image

from advcam_fast.cli.run import check_options
from advcam_fast.data import open_dataset
from advcam_fast.pipelines.recipe import read_recipe
from advcam_fast.pipelines.recipe_table import figures_of_step, images_of_step
from advcam_fast.store.mask_folder import encode_mask

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WIDTH, HEIGHT = 64, 48
VERBS = ("demo", "evaluate", "label", "refine", "train-affinity", "train-classifier", "train-segmenter")
SMALL = (
    *("model=efficientnet_lite0", "set=batch=2", "set=epochs=1", "set=crop=64", "set=test_side=64"),
    *("set=frozen_stages=0", "set=rate=1e-5", "set=head_rate=0.1", "set=new_head=zero", "set=batch_norm=frozen"),
)
FEW = ("model=efficientnet_lite0", "preset=cam", "set=scales=1,2", "set=steps=2", "set=scales=1")
TINY = {
    "classifier": SMALL,
    "maps": FEW,
    "predicted maps": FEW,
    "affinity": ("model=efficientnet_lite0", "set=crop=48", "set=batch=2", "set=epochs=1"),
    "masks": ("set=walk_steps=2",),
    "segmenter": ("model=efficientnet_lite0", "set=crop=48", "set=batch=2", "set=steps=1", "set=test_scales=1"),
}


def fill(spec: str) -> str:
    """Photos of a block in the place of the empty files of a tree, and masks that fit them."""
    dataset = open_dataset(spec)
    for number, item in enumerate(dataset.items):
        assert isinstance(item.path, Path)
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + 9 * number, np.uint8)
        pixels[8:40, 16:48] = (230, 180, 20 + 90 * number)
        item.path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(item.path)
        if isinstance(item.mask, Path) and item.labels and dataset.class_names:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[8:40, 16:48] = 1 + dataset.class_names.index(item.labels[-1])
            item.mask.write_bytes(encode_mask(torch.from_numpy(mask)))
    return spec


def voc(folder: Path) -> None:
    save_voc(folder)
    write(folder, {"ImageSets/Segmentation/val.txt": "2007_000032\n"})
    for split in ("train_aug", "train"):
        fill(f"voc:{folder}#{split}")


def coco(folder: Path) -> None:
    content = coco_content()
    for image in content["images"]:
        image |= {"width": WIDTH, "height": HEIGHT}
    content["annotations"][0]["segmentation"] = [[16, 8, 48, 8, 48, 40, 16, 40]]
    content["annotations"].append({**content["annotations"][0], "image_id": 4})
    content["annotations"][2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [0, 96, HEIGHT * WIDTH - 96]}
    for split in ("train2014", "val2014"):
        fill(save_coco(folder, content, split, split))


def cub(folder: Path) -> None:
    save_cub(folder)
    for split in ("train", "test"):
        fill(f"cub:{folder}#{split}")


def imagenet(folder: Path) -> None:
    save_imagenet(folder)
    for split in ("train", "val"):
        fill(f"imagenet:{folder}#{split}")


@pytest.mark.parametrize("tree", [voc, coco, cub, imagenet])
def test_a_recipe_runs_whole_in_the_layout_of_its_data(
    run: Callable[..., Ended], tmp_path: Path, tree: Callable[[Path], None]
) -> None:
    tree(tmp_path / "data")
    file = RECIPES / f"{tree.__name__}.toml"
    names = [step.name for step in read_recipe(file, tmp_path, VERBS, [f"data={tmp_path / 'data'}"])]
    settings = [f"{name}.{text}" for name in names for text in TINY.get(name, ())]
    steps = read_recipe(file, tmp_path / "out", VERBS, [f"data={tmp_path / 'data'}", *settings])
    figures: dict[str, set[str]] = {}
    for step in steps:
        check_options(step.name, step)
        ended = run(*step.arguments, "--json")
        assert ended.code == 0, f"{step}: {ended.err}"
        summary = ended.json()
        figures[step.name] = {one.name for one in figures_of_step(summary)}
        assert all(0 <= one.value <= 1 for one in figures_of_step(summary))
        assert images_of_step(summary), step
    if tree in (voc, coco):
        assert figures["classifier"] == {"mAP", "micro_AP"}
        assert figures["maps and masks"] == {"CAM mIoU", "AdvCAM mIoU", "masks mIoU"}
        assert figures["segmenter's masks"] == {"masks mIoU"}
    else:
        assert figures["classifier"] == {"top1"}
        wanted = {f"{method} {name}" for method in ("CAM", "AdvCAM") for name in ("MaxBoxAcc", "MaxBoxAccV2")}
        assert figures["boxes"] == wanted
        wanted = {f"{method} Top-{k} Loc" for method in ("CAM", "AdvCAM") for k in (1, 5)}
        assert figures["predicted boxes"] == wanted


def test_every_recipe_can_be_read_and_its_options_are_there(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,labels\n")
    files = sorted(RECIPES.glob("*.toml"))
    assert [file.stem for file in files] == ["coco", "cub", "imagenet", "photos", "tiny", "voc"]
    for file in files:
        given = [] if file.stem == "tiny" else [f"data={tmp_path / 'labels.csv'}"]
        for step in read_recipe(file, tmp_path, VERBS, given):
            check_options(f"{file.name}, {step.name}", step)


def test_the_figures_of_a_step() -> None:
    part = {"best": {"voc-cvpr2021": {"miou": 0.1, "interval": None}, "ours": {"miou": 0.5, "interval": [0.4, 0.6]}}}
    box = {"MaxBoxAcc": {"value": 0.7, "interval": [0.6, 0.8]}, "counted": 3}
    run = {"segmentation": {"cam": part, "gain": {}}, "boxes": {"advcam": box, "gain": box}}
    figures = figures_of_step({"runs": [run], "images": {"evaluated": 3}})
    assert [str(one) for one in figures] == ["CAM mIoU 0.500 [0.400, 0.600]", "AdvCAM MaxBoxAcc 0.700 [0.600, 0.800]"]
    assert [str(one) for one in figures_of_step({"score": {"mAP": 0.25}})] == ["mAP 0.250"]
    assert images_of_step({"trained_on": 4, "ok": 2, "images": 3}) == "4 learned from, 2 of 3"
