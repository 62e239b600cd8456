"""refine on the command line: masks in the palette of VOC, resumed, and what cannot be done named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CLASSES, Ended, manifest, save_list, save_photo
from PIL import Image

from advcam_fast.data import voc_palette

ROWS = [("a.png", CLASSES[0]), ("b/c.png", f"{CLASSES[1]};{CLASSES[0]}"), ("d.png", ""), ("e.png", CLASSES[2])]
NAMES = sorted(CLASSES[:3])


@pytest.fixture
def labelled(label: Callable[..., Ended], tmp_path: Path) -> Path:
    assert label(save_list(tmp_path / "photos", ROWS), tmp_path / "run").code == 0
    return tmp_path / "run"


def mask_files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


@pytest.mark.parametrize("more", [(), ("--preset", "crf"), ("--preset", "color-walk", "--crf"), ("--walk", "none")])
def test_every_image_gets_a_mask_of_its_own_classes(labelled: Path, run: Callable[..., Ended], more: tuple) -> None:
    ended = run("refine", "--run", labelled, *more)
    assert ended.code == 0, ended.err
    masks = labelled / "masks"
    assert ('crf = "soft"' in (masks / "run.toml").read_text()) == ("crf" in " ".join(more))
    assert sorted(mask_files(masks)) == ["a.png", "b/c.png", "d.png", "e.png"]
    assert (masks / "classes.txt").read_text(encoding="utf-8").splitlines() == NAMES
    allowed = {"a.png": [0], "b/c.png": [0, 1], "d.png": [], "e.png": [2]}
    seen = set()
    for name, classes in allowed.items():
        image = Image.open(masks / name)
        assert image.mode == "P"
        assert image.size == Image.open(labelled.parent / "photos" / name).size
        assert bytes(image.getpalette())[:768] == voc_palette()
        values = set(np.unique(np.array(image)).tolist())
        assert values <= {0, *(1 + NAMES.index(CLASSES[number]) for number in classes)}
        seen |= values
    assert len(seen) > 1, "masks of nothing prove nothing"
    assert manifest(masks)["d"]["flags"] == ["no_labels"]
    assert "4 of 4 images have masks" in ended.err


def test_the_palette_is_the_development_kits() -> None:
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]
    assert colours[20] == [0, 64, 128]
    assert colours[255] == [224, 224, 192]


def test_the_same_command_goes_on_and_other_settings_are_refused(labelled: Path, run: Callable[..., Ended]) -> None:
    assert run("refine", "--run", labelled).code == 0
    before = mask_files(labelled / "masks")
    (labelled / "masks" / "a.png").unlink()
    again = run("refine", "--run", labelled, "--json")
    assert again.code == 0
    assert (json.loads(again.out)["done_before"], json.loads(again.out)["done_now"]) == (3, 1)
    assert mask_files(labelled / "masks") == before
    other = run("refine", "--run", labelled, "--set", "sigma=3")
    assert other.code == 2
    assert "sigma" in other.error
    beside = run("refine", "--run", labelled, "--set", "sigma=3", "--out", labelled.parent / "other")
    assert beside.code == 0
    assert mask_files(labelled / "masks") == before


def test_masks_of_maps_that_have_changed_are_not_mixed(
    labelled: Path, run: Callable[..., Ended], label: Callable[..., Ended]
) -> None:
    assert run("refine", "--run", labelled).code == 0
    lines = (labelled / "manifest" / "main.jsonl").read_text().splitlines(keepends=True)
    (labelled / "manifest" / "main.jsonl").write_text("".join(lines[:-1]))
    ended = run("refine", "--run", labelled)
    assert ended.code == 2
    assert "maps" in ended.error


def test_what_has_no_mask_is_recorded_and_the_rest_is_done(
    labelled: Path, run: Callable[..., Ended], label: Callable[..., Ended]
) -> None:
    photos = labelled.parent / "photos"
    save_photo(photos / "a.png", 9, (50, 60))  # another size than the maps were made for
    (photos / "b" / "c.png").write_bytes(b"no image")
    file = labelled / "maps" / "e.npz"
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))
    ended = run("refine", "--run", labelled, "--json")
    assert ended.code == 3
    reasons = {failure["id"]: failure["reason"] for failure in json.loads(ended.out)["failures"]}
    assert sorted(reasons) == ["a", "b/c", "e"]
    assert "came for an image of 50 x 60" in reasons["a"]
    assert "not a JPEG, PNG" in reasons["b/c"]
    assert "not a whole map file" in reasons["e"]
    assert sorted(mask_files(labelled / "masks")) == ["d.png"]


def test_a_cut_map_file_is_told_and_made_again(
    labelled: Path, run: Callable[..., Ended], label: Callable[..., Ended]
) -> None:
    """The manifest knows its size. Once `label` has made it again, to the same bits, the masks go on."""
    file = labelled / "maps" / "e.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    ended = run("refine", "--run", labelled)
    assert ended.code == 3
    assert (
        "failed: e: no maps: its file is not whole" in ended.err and "3 of 4 images have masks, 1 failed" in ended.err
    )
    assert label(f"csv:{labelled.parent / 'photos' / 'labels.csv'}", labelled).code == 0
    assert file.read_bytes() == whole
    again = run("refine", "--run", labelled, "--retry-failed")
    assert again.code == 0 and "4 of 4 images have masks, 0 failed; 1 done now" in again.err


def test_images_that_failed_have_no_masks_either(
    label: Callable[..., Ended], run: Callable[..., Ended], tmp_path: Path
) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    (tmp_path / "photos" / "e.png").write_bytes(b"no image")
    assert label(data, tmp_path / "run").code == 3
    ended = run("refine", "--run", tmp_path / "run")
    assert ended.code == 3
    assert "failed: e: no maps: " in ended.err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--preset", "colour-walk"), "no preset 'colour-walk', there are irn, crf, color-walk"),
        (("--set", "sigma=0"), "sigma: 0.0 came"),
        (("--walk", "random"), "--walk random: wanted is color, none or a file, the weights of an affinity net"),
        (("--data", "csv:nowhere.csv"), "nowhere.csv"),
        (("--out", "/dev/null/masks"), "no run can be written here"),
    ],
)
def test_bad_options_are_one_line(labelled: Path, run: Callable[..., Ended], more: tuple, text: str) -> None:
    ended = run("refine", "--run", labelled, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (labelled / "masks").exists()


def test_no_run_no_maps(run: Callable[..., Ended], label: Callable[..., Ended], tmp_path: Path) -> None:
    missing = run("refine", "--run", tmp_path / "nothing")
    assert missing.code == 2
    assert str(tmp_path / "nothing") in missing.error
    label(save_list(tmp_path / "photos", [("a.png", "")]), tmp_path / "empty")
    ended = run("refine", "--run", tmp_path / "empty")
    assert ended.code == 2
    assert "no image of this run has maps" in ended.error
    assert "RuntimeError" not in ended.err


def test_another_data_set_is_told(labelled: Path, run: Callable[..., Ended], tmp_path: Path) -> None:
    other = save_list(tmp_path / "others", [("z.png", CLASSES[0])])
    ended = run("refine", "--run", labelled, "--data", other)
    assert ended.code == 3
    assert "failed: a: this data set has no image of this id: --data names another" in ended.err
