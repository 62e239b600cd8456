"""evaluate on the command line: the figures of known maps, comparisons, and what cannot be evaluated named."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Ended, arrays
from judged_runs import GIVEN, NAMES, NUMBERS, ROWS, save_data, save_masks, save_run, truth_of
from metrics import plain_evaluator as plain
from PIL import Image

from advcam_fast.metrics.localization import score_map

Run = Callable[..., Ended]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return save_data(tmp_path / "data")


def boxes_of(data: str) -> str:
    return data.replace("list.csv", "boxes.csv")


def plain_miou(run: Path, which: str, threshold: float) -> float:
    """One confusion of the whole set, by NumPy alone, from the files."""
    confusion = np.zeros((4, 4), np.int64)
    for number, (name, tags) in enumerate(ROWS):
        truth = truth_of(number, tags.split(";") if tags else [])
        maps = arrays(run / "maps" / f"{name}.npz")
        index = [0] + [1 + [NUMBERS[label] for label in NAMES].index(c) for c in maps["classes"]]
        scores = np.concatenate([np.full((1, *truth.shape), np.float32(threshold)), maps[which]])
        labels = np.array(index)[scores.argmax(0)]
        known = truth != 255
        confusion += np.bincount(4 * truth[known].astype(int) + labels[known], minlength=16).reshape(4, 4)
    hits = confusion.diagonal()
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


def plain_iou(run: Path, number: int, threshold: float) -> float:
    """The mean IoU of the classes that an image's AdvCAM and truth have, by NumPy alone."""
    name, tags = ROWS[number]
    truth, maps = truth_of(number, tags.split(";")), arrays(run / "maps" / f"{name}.npz")
    index = [1 + [NUMBERS[label] for label in NAMES].index(c) for c in maps["classes"]]
    labels = np.array([0, *index])[np.concatenate([np.full((1, *truth.shape), threshold), maps["full"]]).argmax(0)]
    known = truth != 255
    ious = []
    for value in sorted({*np.unique(truth[known]).tolist()} - {0}):
        hit, either = (labels == value) & (truth == value) & known, ((labels == value) | (truth == value)) & known
        ious.append(hit.sum() / either.sum())
    return float(np.mean(ious))


def test_the_figures_are_the_plain_ones(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    ended = run("evaluate", "--run", folder, "--data", data)
    assert ended.code == 0, ended.err
    assert "6 images evaluated, 0 failed, 0 without ground truth" in ended.err
    written = json.loads((folder / "metrics.json").read_text())
    curves = {}
    for method, which in (("advcam", "full"), ("cam", "initial")):
        part = written["segmentation"][method]
        assert part["thresholds"] == [step / 100 for step in range(100)]
        curves[method] = [plain_miou(folder, which, threshold) for threshold in part["thresholds"]]
        assert part["miou"] == pytest.approx(curves[method], abs=1e-12)
        best, paper = part["best"]["ours"], part["best"]["voc-cvpr2021"]
        assert best["miou"] == max(part["miou"])
        assert paper["miou"] == max(part["miou"][15:35]) and 0.15 <= paper["threshold"] <= 0.34
        assert best["interval"][0] <= best["miou"] <= best["interval"][1]
        assert sum(size["objects"] for size in part["by_size"].values()) == 6
    gain = written["segmentation"]["gain"]
    assert (
        gain["ours"]["miou"] == pytest.approx(max(curves["advcam"]) - max(curves["cam"])) and gain["ours"]["miou"] > 0
    )
    assert set(gain["by_size"]) == {name for name, size in part["by_size"].items() if size["objects"]}
    assert written["images"] == {"evaluated": 6, "failed": 0, "without_truth": 0}
    at = written["segmentation"]["advcam"]["best"]["ours"]["threshold"]
    lines = [json.loads(line) for line in (folder / "evaluation" / "per_image.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [name for name, tags in ROWS if tags]
    wanted = [plain_iou(folder, number, at) for number, (_, tags) in enumerate(ROWS) if tags]
    assert [line["iou"] for line in lines] == pytest.approx(wanted, abs=1e-6)
    for name in ("curve", "by_class", "by_size", "best", "worst"):
        assert Image.open(folder / "evaluation" / f"{name}.png").size[0] > 300
    assert not list(folder.rglob("*.tmp"))


def test_json_is_one_object_and_thresholds_can_be_chosen(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    ended = run("evaluate", "--run", folder, "--data", data, "--thresholds", "0.6,0.2,0.6", "--json")
    part = ended.json()["runs"][0]["segmentation"]["advcam"]
    assert part["thresholds"] == [0.2, 0.6] and set(part["best"]) == {"ours"}, "these are not the paper's thresholds"
    assert part["miou"] == pytest.approx([plain_miou(folder, "full", threshold) for threshold in (0.2, 0.6)])


def test_masks_of_refine_are_measured_in_their_own_classes(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    save_masks(folder)
    figures = run("evaluate", "--run", folder, "--data", data, "--json").json()["runs"][0]["segmentation"]
    assert figures["masks"]["best"]["ours"]["miou"] == 1 and figures["masks"]["boundary_miou"] == 1
    shutil.move(folder / "masks", tmp_path / "elsewhere")
    assert "masks" not in run("evaluate", "--run", folder, "--data", data, "--json").json()["runs"][0]["segmentation"]
    other = run("evaluate", "--run", folder, "--data", data, "--masks", tmp_path / "elsewhere", "--json").json()
    assert other["runs"][0]["segmentation"]["masks"] == figures["masks"]
    (tmp_path / "elsewhere" / "classes.txt").unlink()
    ended = run("evaluate", "--run", folder, "--data", data, "--masks", tmp_path / "elsewhere")
    assert (ended.code, "classes.txt: No such file" in ended.error) == (2, True)


def test_a_mask_of_another_size_fails_its_image(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    save_masks(folder, spoiled="f")
    ended = run("evaluate", "--run", folder, "--data", data)
    assert ended.code == 3
    assert "failed: f: its refined mask is [44, 60], its maps are [45, 60]" in ended.err


def test_boxes_of_given_tags(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", noise=0.1)
    ended = run("evaluate", "--run", folder, "--data", boxes_of(data), "--json")
    assert ended.code == 0, ended.err
    figures = ended.json()
    assert figures["images"] == {"evaluated": 5, "failed": 0, "without_truth": 0}
    boxes = figures["runs"][0]["boxes"]
    assert boxes["advcam"]["counted"] == 6 and boxes["advcam"]["without_map"] == 0
    assert boxes["advcam"]["MaxBoxAcc"]["value"] == 1 == boxes["advcam"]["GT-known Loc"]["value"]
    assert "Top-1 Loc" not in boxes["advcam"] and "segmentation" not in figures["runs"][0]
    assert boxes["gain"]["MaxBoxAcc"]["value"] == 1 - boxes["cam"]["MaxBoxAcc"]["value"]


def test_boxes_alone_have_their_curve_and_examples(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", noise=0.4)
    two = (truth_of(0, ["cat"]) == 1) | (np.arange(60) >= 30)  # the right box is not that of the largest contour
    rewrite(folder / "maps" / "a.npz", full=two[None].astype(np.float32))
    assert run("evaluate", "--run", folder, "--data", data).code == 0
    assert run("evaluate", "--run", folder, "--data", boxes_of(data)).code == 0
    pictures = {file.name for file in (folder / "evaluation").glob("*.png")}
    assert pictures == {"boxes.png", "best.png", "worst.png"}, "those of the masks are no longer true"
    part = json.loads((folder / "metrics.json").read_text())["boxes"]["advcam"]
    curve, threshold = part["MaxBoxAcc"]["curve"], part["MaxBoxAcc"]["threshold"]
    at = part["thresholds"].index(threshold)
    assert curve[at] == max(curve) == part["MaxBoxAcc"]["value"] and curve.index(max(curve)) == at
    lines = [json.loads(line) for line in (folder / "evaluation" / "per_image.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [name for name, tags in ROWS if tags]
    right = 0
    for line, (number, (name, tags)) in zip(lines, ((n, row) for n, row in enumerate(ROWS) if row[1]), strict=True):
        ious = []
        for label, full in zip(tags.split(";"), arrays(folder / "maps" / f"{name}.npz")["full"], strict=True):
            found, largest = plain.boxes_at(score_map(torch.from_numpy(full)).numpy(), threshold)
            ys, xs = np.nonzero(truth_of(number, tags.split(";")) == 1 + NAMES.index(label))
            true = plain.scaled([xs.min(), ys.min(), xs.max(), ys.max()], *full.shape)
            ious.append(plain.overlap(found[largest], true))
        right += sum(iou >= 0.5 for iou in ious)
        assert line["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert right / part["counted"] == part["MaxBoxAcc"]["value"]
    with Image.open(folder / "evaluation" / "worst.png") as picture:
        assert picture.height > 4 * 240


def test_top_k_of_predicted_classes(run: Run, data: str, tmp_path: Path) -> None:
    """The true class is predicted first only for cats, and second for dogs; of owls there is no map."""
    settings = {"labels": {"from": "predicted", "top_k": 5}}
    guess = {"cat": ["cat", "owl"], "dog": ["cat", "dog"], "owl": ["dog"]}
    folder = save_run(tmp_path / "run", 0.1, settings, lambda tags: guess[tags[0]] if len(tags) == 1 else tags)
    with open(boxes_of(data).removeprefix("csv:"), newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] != "b/c.png"]
    with open(boxes_of(data).removeprefix("csv:"), "w", newline="") as file:
        csv.writer(file).writerows(rows)
    ended = run("evaluate", "--run", folder, "--data", boxes_of(data), "--json")
    boxes = ended.json()["runs"][0]["boxes"]["advcam"]
    assert (boxes["counted"], boxes["without_map"]) == (4, 1)
    assert (boxes["Top-1 Loc"]["value"], boxes["Top-5 Loc"]["value"]) == (2 / 4, 3 / 4)
    assert "MaxBoxAcc" not in boxes
    less = save_run(tmp_path / "less", 0.1, settings, lambda tags: ["owl", "dog"])
    ended = run("evaluate", "--run", folder, "--run", less, "--data", boxes_of(data), "--json")
    differences = ended.json()["differences"][0]["boxes"]
    assert {name: part["value"] for name, part in differences.items()} == {"Top-1 Loc": 1 / 4, "Top-5 Loc": 1 / 4}


def test_pixels(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    figures = run("evaluate", "--run", folder, "--data", data, "--pixels", "--json").json()["runs"][0]
    assert 0.2 < figures["pixels"]["cam"]["PxAP"]["value"] < figures["pixels"]["advcam"]["PxAP"]["value"] <= 1
    assert "segmentation" in figures


def test_strided_maps_are_enlarged(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", noise=0.05, full=False)
    figures = run("evaluate", "--run", folder, "--data", data, "--json").json()["runs"][0]
    assert figures["maps"] == "strided, enlarged"
    assert figures["segmentation"]["advcam"]["best"]["ours"]["miou"] > 0.5


def test_runs_are_compared_on_the_same_images(run: Run, data: str, tmp_path: Path) -> None:
    good, same = (save_run(tmp_path / name) for name in ("good", "same"))
    bad = save_run(tmp_path / "bad", noise=0.9, left_out=["d"])
    ended = run("evaluate", "--run", good, "--run", same, "--run", bad, "--data", data, "--json")
    assert ended.code == 3
    figures = ended.json()
    assert figures["images"]["evaluated"] == 5 and [entry["id"] for entry in figures["failures"]] == ["d"]
    to_same, to_bad = (entry["segmentation"]["ours"] for entry in figures["differences"])
    assert (to_same["miou"], to_same["interval"]) == (0, [0, 0])
    assert to_bad["miou"] > 0.1 and to_bad["interval"][0] > 0
    assert json.loads((good / "evaluation/comparison/comparison.json").read_text()) == figures
    assert not (good / "metrics.json").exists(), "its own figures would be those of all its images"
    assert "AdvCAM: voc-cvpr2021 +" in run("evaluate", "--run", good, "--run", bad, "--data", data).err


def test_masks_and_pixels_are_compared_too(run: Run, data: str, tmp_path: Path) -> None:
    good, bad = save_run(tmp_path / "good"), save_run(tmp_path / "bad", noise=0.9)
    figures = run("evaluate", "--run", good, "--run", bad, "--data", data, "--pixels", "--json").json()
    values = [part["pixels"]["advcam"]["PxAP"]["value"] for part in figures["runs"]]
    (entry,) = figures["differences"]
    assert "masks" not in entry and entry["pixels"]["PxAP"]["value"] == values[0] - values[1] > 0
    assert entry["pixels"]["PxAP"]["interval"][0] > 0
    for folder in (good, bad):
        save_masks(folder)
    ended = run("evaluate", "--run", good, "--run", bad, "--data", data)
    entry = json.loads((good / "evaluation/comparison/comparison.json").read_text())["differences"][0]
    assert entry["masks"]["ours"] == {"miou": 0, "interval": [0, 0]} and "voc-cvpr2021" not in entry["masks"]
    assert f"{good} over {bad}, masks: ours +0.000" in ended.err


def rewrite(file: Path, **changes: np.ndarray) -> None:
    """A map file with other arrays, of the size it had: the manifest knows it."""
    stored = arrays(file) | changes
    size = file.stat().st_size
    np.savez(file, **stored)
    assert file.stat().st_size == size


def test_what_cannot_be_evaluated_is_named_and_the_rest_is_done(run: Run, data: str, tmp_path: Path) -> None:
    folder, masks = save_run(tmp_path / "run", left_out=["g"]), tmp_path / "data" / "masks"
    Image.fromarray(np.full((45, 60), 4, np.uint8)).save(masks / "a.png")
    Image.fromarray(np.zeros((60, 45), np.uint8)).save(masks / "b/c.png")
    stored = arrays(folder / "maps" / "d.npz")
    rewrite(folder / "maps" / "d.npz", initial=np.where(stored["initial"] > 0.5, np.nan, stored["initial"]))
    (folder / "maps" / "f.npz").write_bytes(b"x" * (folder / "maps" / "f.npz").stat().st_size)
    ended = run("evaluate", "--run", folder, "--data", data)
    assert ended.code == 3
    for line in (
        "failed: a: its mask holds the value 4, the data has 3 classes",
        "failed: b/c: its mask is 45 x 60, its maps are 60 x 45",
        "failed: d: its initial maps hold a NaN or a value that is not in 0 to 1",
        f"failed: g: no map in {folder}: it is not in the run",
        "1 images evaluated, 5 failed, 0 without ground truth",
    ):
        assert line in ended.err, ended.err
    assert "f.npz: not a whole map file" in ended.err
    with open(folder / "maps" / "f.npz", "ab") as file:
        file.write(b"more")
    assert (
        f"failed: f: no map in {folder}: its file is not whole" in run("evaluate", "--run", folder, "--data", data).err
    )
    assert len(json.loads((folder / "metrics.json").read_text())["failures"]) == 5


def test_images_without_truth_are_counted(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    file = Path(data.removeprefix("csv:"))
    file.write_text(file.read_text().replace("masks/d.png", "").replace("masks/e.png", ""))
    ended = run("evaluate", "--run", folder, "--data", data)
    assert ended.code == 0
    assert "4 images evaluated, 0 failed, 2 without ground truth" in ended.err


def test_classes_meet_by_the_tags_that_were_climbed(run: Run, data: str, tmp_path: Path) -> None:
    """The model calls them otherwise; without its class map the names alone would not do."""
    called = {"cat": "tabby", "dog": "retriever", "owl": "great grey owl"}
    folder = save_run(tmp_path / "run")
    lines = (folder / "manifest" / "main.jsonl").read_text()
    for name, other in called.items():
        lines = lines.replace(f'"{name}"', f'"{other}"')
    (folder / "manifest" / "main.jsonl").write_text(lines)
    figures = run("evaluate", "--run", folder, "--data", data, "--json").json()
    best = figures["runs"][0]["segmentation"]["advcam"]["best"]["ours"]
    assert best["miou"] == pytest.approx(plain_miou(folder, "full", best["threshold"]))
    toml = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(toml.replace("cat = 281", "dog_ = 281"))
    ended = run("evaluate", "--run", folder, "--data", data)
    assert ended.code == 3
    assert "failed: a: 'tabby' is no class of the data" in ended.err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--thresholds", "0.1,x"), "--thresholds 0.1,x: wanted are numbers from 0 to 1, by commas"),
        (("--thresholds", "nan"), "--thresholds nan: wanted are numbers"),
        (("--boxes",), "has no boxes to evaluate with"),
        (("--masks", "nowhere"), "nowhere is no run folder"),
        (("--data", "csv:nowhere.csv"), "nowhere.csv: No such file"),
        (("--run", "nothing"), "nothing is no run folder"),
    ],
)
def test_bad_options_are_one_line(run: Run, data: str, tmp_path: Path, more: tuple, text: str) -> None:
    folder = save_run(tmp_path / "run")
    ended = run("evaluate", "--run", folder, "--data", data, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (folder / "metrics.json").exists() and not (folder / "evaluation").exists()


def test_nothing_to_evaluate_is_one_line(run: Run, data: str, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    bare = tmp_path / "data" / "bare.csv"
    bare.write_text("image,labels\na.png,cat\n")
    ended = run("evaluate", "--run", folder, "--data", f"csv:{bare}")
    assert (ended.code, "has no ground truth: none of its 1 images has a mask or boxes" in ended.error) == (2, True)
    others = save_data(tmp_path / "others")
    list_ = Path(others.removeprefix("csv:"))
    rows = list_.read_text().splitlines()
    list_.write_text("image,labels,mask\nz.png,cat,masks/a.png\n")
    ended = run("evaluate", "--run", folder, "--data", others)
    assert (ended.code, "it has maps of none of the 1 images" in ended.error) == (2, True)
    list_.write_text("\n".join(rows[:2]) + "\n")
    Image.fromarray(np.full((45, 60), 255, np.uint8)).save(list_.parent / "masks/a.png")
    ended = run("evaluate", "--run", folder, "--data", others)
    assert (ended.code, "every pixel of the true masks is 255" in ended.error) == (2, True)
    assert not (folder / "metrics.json").exists()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(list_.parent / "masks/a.png")
    ended = run("evaluate", "--run", folder, "--data", others)
    assert (ended.code, "none of 1 images could be evaluated; 1 of them: its mask is 3 x 3" in ended.error) == (2, True)
    empty = save_run(tmp_path / "empty", left_out=[name for name, _ in ROWS])
    ended = run("evaluate", "--run", empty, "--data", data)
    assert (ended.code, "no image of this run has maps" in ended.error) == (2, True)
    assert "say where its images are: add --data" in run("evaluate", "--run", folder).error
    assert "--run: wanted are different runs" in run("evaluate", "--run", folder, "--run", folder, "--data", data).error


def test_after_label_and_refine_no_data_need_be_named(
    run: Run, label: Callable[..., Ended], data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    classes = tmp_path / "map.csv"
    classes.write_text("dataset,model\nowl,[bold]:cat:\n")
    assert label(data, folder, "--class-map", classes, "--full").code == 0
    assert run("refine", "--run", folder).code == 0
    ended = run("evaluate", "--run", folder, "--pixels")
    assert ended.code == 0, ended.err
    written = json.loads((folder / "metrics.json").read_text())
    assert set(written["segmentation"]) == {"advcam", "cam", "masks", "gain"} and written["preset"] == "cam"
    assert GIVEN["climb"]["preset"] != written["preset"]
