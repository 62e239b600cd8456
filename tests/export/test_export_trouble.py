"""Exports that cannot be, or not of everything: one line each, and nothing half-done left behind."""

import json
from pathlib import Path

import pytest
import torch
import webdataset
from exporting import export
from PIL import Image
from pycocotools.coco import COCO
from sample_run import HOSTILE, IMAGES, SampleRun, make_run

from advcam_fast.errors import UsageError
from advcam_fast.export import FORMATS
from advcam_fast.export.voc import map_label
from advcam_fast.pipelines.export import export_name, parse_formats
from advcam_fast.pipelines.refine import run_digest
from advcam_fast.store import InstanceFolder, MaskFolder, RunFolder, StoredInstance


@pytest.fixture
def small(tmp_path: Path) -> SampleRun:
    return make_run(tmp_path, IMAGES[:2])


def test_an_export_that_is_there_is_refused(small: SampleRun, tmp_path: Path) -> None:
    assert export(small, tmp_path / "out", "voc") == []
    with pytest.raises(UsageError, match="out/voc is there and not empty"):
        export(small, tmp_path / "out", "coco", "voc")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["voc"]
    assert export(small, tmp_path / "out", "coco") == []


def test_what_stops_leaves_nothing(small: SampleRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(FORMATS["coco"], "close", broken)
        with pytest.raises(OSError, match="No space left"):
            export(small, tmp_path / "out", "voc", "coco")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / ".voc.tmp" / "left").mkdir(parents=True)  # of one that was killed
    assert export(small, tmp_path / "out", "voc") == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["voc"]


def test_items_that_cannot_be_are_told_and_the_rest_is_written(tmp_path: Path) -> None:
    sample = make_run(tmp_path, IMAGES[:5])
    photos = tmp_path / "photos"
    (photos / "a.jpg").write_bytes(b"no image")
    Image.new("RGB", (60, 60)).save(photos / "b" / "c d.png")
    (sample.path / "masks" / "turned.png").unlink()
    reasons = export(sample, tmp_path / "out", *FORMATS)
    assert [reason.split(": ")[0] for reason in reasons] == ["a", "b/c d", "turned"]
    assert "not a JPEG" in reasons[0]
    assert "this one is 60 x 60" in reasons[1]
    assert "masks: 'turned' has no file: its file is not whole" in reasons[2]
    coco = COCO(tmp_path / "out" / "coco" / "annotations" / "instances_rle.json")
    assert [image["item_id"] for image in coco.loadImgs(coco.getImgIds())] == ["empty", "odd"]
    assert len(list((tmp_path / "out" / "voc" / "SegmentationClass").iterdir())) == 2


def test_masks_are_asked_for_where_they_are_needed(small: SampleRun, tmp_path: Path) -> None:
    masks = small.path / "masks"
    masks.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"masks: no masks, which voc,yolo needs: run refine first"):
        export(small, tmp_path / "out", "voc", "released", "yolo")
    assert export(small, tmp_path / "out", "released") == []


@pytest.mark.parametrize("failed", [0, 1])
def test_a_run_without_maps_is_refused(tmp_path: Path, failed: int) -> None:
    with RunFolder.open(tmp_path / "run", {"data": "folder:photos", "full": False}) as run:
        for number in range(failed):
            run.fail(str(number), "no image")
    with pytest.raises(UsageError, match="run: no image of this run has maps"):
        export(SampleRun(tmp_path / "run", "folder:photos", []), tmp_path / "out", "released")
    assert not (tmp_path / "out").exists()


def test_masks_of_other_maps_are_refused(small: SampleRun, tmp_path: Path) -> None:
    with RunFolder.open(small.path, RunFolder.read(small.path).settings) as run:
        run.fail("late", "an image more")
    with pytest.raises(UsageError, match="run refine again"):
        export(small, tmp_path / "out", "voc")


def test_instances_of_refine_are_taken(small: SampleRun, tmp_path: Path) -> None:
    labels = {"a": IMAGES[0][1], "b/c d": IMAGES[1][1]}
    mask = torch.zeros(small.masks["a"].shape, dtype=torch.bool)
    mask[3:9, 5:20] = True
    other = torch.ones(small.masks["b/c d"].shape, dtype=torch.bool)
    settings = {"classes": small.classes, "maps": run_digest(RunFolder.read(small.path))}
    with InstanceFolder.open(small.path / "instances", settings) as folder:
        one, two = StoredInstance(labels["a"][0], 0.25, mask), StoredInstance("of no class", 0.5, other)
        folder.finish("a", tuple(mask.shape), [one, one], labels=labels["a"])
        folder.finish("b/c d", tuple(other.shape), [two], labels=labels["b/c d"])
    (reason,) = export(small, tmp_path / "out", "coco")
    assert reason == "b/c d: an instance without a known label, score or run lengths"
    coco = COCO(tmp_path / "out" / "coco" / "annotations" / "instances_polygons.json")
    for found in coco.loadAnns(coco.getAnnIds()):
        category = 1 + small.classes.index(labels["a"][0])
        assert (found["category_id"], found["score"], found["bbox"]) == (category, 0.25, [5, 3, 15, 6])
        assert (coco.annToMask(found) == mask.numpy()).all()
    assert len(coco.getAnnIds()) == 2


def test_instances_of_other_maps_are_refused(small: SampleRun, tmp_path: Path) -> None:
    with InstanceFolder.open(small.path / "instances", {"classes": small.classes, "maps": "others"}):
        pass
    with pytest.raises(UsageError, match=r"instances: not made of the maps in .*: run refine again"):
        export(small, tmp_path / "out", "coco")


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = [f"class {number} <b>" for number in range(1000)]
    images = [(f"{number}.png", names[4 * number : 4 * number + 4], (16, 12)) for number in range(250)]
    sample = make_run(tmp_path, images[:60])
    with MaskFolder.open(tmp_path / "all", {"classes": names, "maps": run_digest(RunFolder.read(sample.path))}) as all_:
        all_.finish("0", torch.full((12, 16), 4, dtype=torch.uint8), labels=names[:4])
    (sample.path / "masks").rename(tmp_path / "some")
    (tmp_path / "all").rename(sample.path / "masks")
    reasons = export(sample, tmp_path / "out", *FORMATS)
    assert len(reasons) == 59
    coco = COCO(tmp_path / "out" / "coco" / "annotations" / "instances_rle.json")
    assert coco.getCatIds() == list(range(1, 1001))


def test_copies_where_they_are_wanted(small: SampleRun, tmp_path: Path) -> None:
    export(small, tmp_path / "out", "coco", copy_images=True)
    file = tmp_path / "out" / "coco" / "images" / "a.jpg"
    assert not file.is_symlink() and file.read_bytes() == (tmp_path / "photos" / "a.jpg").read_bytes()


def test_names_with_dots_stay_apart(tmp_path: Path) -> None:
    sample = make_run(tmp_path, [("x.1.png", HOSTILE[:1], (12, 9)), ("x.2.png", HOSTILE[1:2], (9, 12))])
    assert export(sample, tmp_path / "out", "webdataset", "fiftyone") == []
    shards = [str(tmp_path / "out" / "webdataset" / "shard-000000.tar")]
    ids = [json.loads(one["json"])["id"] for one in webdataset.WebDataset(shards, shardshuffle=False)]
    assert ids == ["x.1", "x.2"]
    assert sorted(path.name for path in (tmp_path / "out" / "fiftyone" / "data").iterdir()) == ["x.1.png", "x.2.png"]


def test_yolo_labels_are_found_by_the_last_folder_called_images(tmp_path: Path) -> None:
    files = ["images/x.png", "a/images/labels/y.1.png", "images.png", "train/images.d/z.png"]
    sample = make_run(tmp_path, [(file, HOSTILE[:1], (12, 9)) for file in files])
    assert export(sample, tmp_path / "out", "yolo") == []
    photos = [str(path) for path in (tmp_path / "out" / "yolo" / "images").rglob("*.png")]
    labels = [Path("/labels/".join(path.rsplit("/images/", 1)).rpartition(".")[0] + ".txt") for path in photos]
    assert len(set(labels)) == len(files)
    assert all(label.read_text() for label in labels)


def test_format_names() -> None:
    assert parse_formats("voc, coco,voc") == ["voc", "coco"]
    for text in ("", ",", "voc,kitti"):
        with pytest.raises(UsageError, match="wanted is one or several of voc,coco,yolo"):
            parse_formats(text)


def test_names_of_files_are_plain_and_different() -> None:
    late = ["q%22", "%7E", "é" * 150]
    ids = ["a", "a b", "b/c", "ä🐈", "x%20y", "x y", "..", "a/../b", ".hidden", 'q"', "n\n", "~", "", "a//b", *late]
    names = [export_name(one) for one in ids]
    assert names[:4] == ids[:4]
    assert len(set(names)) == len(ids)
    for name in names:
        assert all(part and not part.startswith(".") and len(part.encode()) <= 255 for part in name.split("/"))


def test_map_labels_hold_no_colon_and_stay_different() -> None:
    names = ["a:b", "a%3Ab", "#a", "%23a", "background", "%62ackground", "x\ny", "y", " y", "y\u00a0"]
    safe = [map_label(name).strip() for name in names]
    assert len(set(safe)) == len(names)
    assert not any(set(name) & set(":\n") or name.startswith("#") for name in safe)
