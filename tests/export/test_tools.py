"""Exports opened by the tools they are for. Those are large, and contradict one another's versions: an environment for
each (docs/formats.md), and where one is not installed its tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import IDS, NAMES, drawn, export, painted
from pycocotools import mask as coco_mask
from sample_run import HOSTILE, IMAGES, SampleRun, item_id, make_run

from advcam_fast.export.voc import map_label

NOT_INSTALLED = "not installed: `pip install {}` in an environment of its own"


def tool(package: str, module: str) -> Any:
    return pytest.importorskip(module, reason=NOT_INSTALLED.format(package))


def test_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    data = tool("ultralytics", "ultralytics.data")
    large = [row for row in IMAGES if min(row[2]) >= 10]  # it takes no other
    images = [("images/x.1.png", HOSTILE[:2], (36, 30)), *large]
    sample = make_run(tmp_path, images)
    assert export(sample, tmp_path / "out", "yolo") == []
    facts = data.utils.check_det_dataset(str(tmp_path / "out" / "yolo" / "data.yaml"), autodownload=False)
    assert list(facts["names"].values()) == sample.classes
    read = data.YOLODataset(img_path=facts["train"], data=facts, task="segment", augment=False, imgsz=64)
    assert len(read) == len(images) == len([read[number] for number in range(len(read))])
    found = {}
    for row in read.labels:
        objects = zip(row["cls"].ravel().astype(int).tolist(), row["segments"], strict=True)
        found[Path(row["im_file"]).stem] = drawn(objects, row["shape"])
    for file, _, _ in images:
        stem = "per%25cent%20%22q%22" if file.startswith("per") else Path(file).stem
        assert (found[stem] != sample.masks[item_id(file)]).mean() < 0.03


@pytest.fixture(scope="module")
def copied(sample: SampleRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """datumaro opens no picture that a link leads to, outside of the folder."""
    out = tmp_path_factory.mktemp("copied") / "out"
    assert export(sample, out, "voc", "coco", copy_images=True) == []
    return out


def test_datumaro_reads_voc(sample: SampleRun, copied: Path) -> None:
    read = tool("datumaro", "datumaro").Dataset.import_from(str(copied / "voc"), "voc_segmentation")
    names = [label.name for label in next(iter(read.categories().values())).items]
    assert names == ["background", *map(map_label, sample.classes)]
    items = {item.id: item for item in read}
    assert sorted(items) == sorted(NAMES)
    for item, name in zip(IDS, NAMES, strict=True):
        assert items[name].media.size == sample.masks[item].shape
        classes = [(note.label - 1, note.image.astype(bool)) for note in items[name].annotations if note.label]
        assert (painted(sample, item, classes) == sample.masks[item]).all()


@pytest.mark.parametrize("kind", ["rle", "polygons"])
def test_datumaro_reads_coco(sample: SampleRun, copied: Path, kind: str) -> None:
    datumaro = tool("datumaro", "datumaro")
    file = copied / "coco" / "annotations" / f"instances_{kind}.json"
    read = datumaro.Dataset.import_from(str(file), "coco_instances")
    assert [label.name for label in next(iter(read.categories().values())).items] == sample.classes
    items = {item.id: item for item in read}
    assert sorted(items) == sorted(NAMES)
    for item, name in zip(IDS, NAMES, strict=True):
        size = sample.masks[item].shape
        assert items[name].media.size == size
        mask = np.zeros_like(sample.masks[item])
        for note in items[name].annotations:
            if note.type.name == "mask":
                mask[note.image.astype(bool)] = 1 + note.label
            elif note.type.name == "polygon":  # a part each
                runs = coco_mask.frPyObjects([list(note.points)], *size)
                mask[coco_mask.decode(coco_mask.merge(runs)).astype(bool)] = 1 + note.label
        assert (mask == sample.masks[item]).all()


def test_label_studio(sample: SampleRun, exported: Path) -> None:
    interface = tool("label-studio-sdk", "label_studio_sdk.label_interface")
    brush = tool("label-studio-sdk", "label_studio_sdk.converter.brush")
    view = interface.LabelInterface((exported / "labelstudio" / "config.xml").read_text(encoding="utf-8"))
    view.validate()
    assert list(view.get_control("label").labels) == sample.classes
    for task in json.loads((exported / "labelstudio" / "tasks.json").read_text()):
        assert view.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        assert view.validate_prediction(prediction, return_errors=True) == []
        objects = []
        for result in prediction["result"]:
            value, size = result["value"], (result["original_height"], result["original_width"])
            pixels = brush.decode_rle(value["rle"]).reshape(*size, 4)[..., 3] > 0
            objects.append((sample.classes.index(value["brushlabels"][0]), pixels))
        item = task["data"]["id"]
        assert (painted(sample, item, objects) == sample.masks[item]).all()


def test_fiftyones_importers(sample: SampleRun, exported: Path) -> None:
    """They need no data base, which a data set of FiftyOne does."""
    importers = tool("fiftyone", "fiftyone.utils.data.importers")
    coco = tool("fiftyone", "fiftyone.utils.coco")
    read_mask = tool("fiftyone", "fiftyone.core.labels")._read_mask
    masks = {}
    with importers.ImageSegmentationDirectoryImporter(str(exported / "fiftyone"), compute_metadata=True) as read:
        for path, facts, label in read:
            name = Path(path).relative_to(exported / "fiftyone" / "data").with_suffix("").as_posix()
            masks[name] = read_mask(label.mask_path)
            assert (facts.height, facts.width) == masks[name].shape
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        name: sample.masks[item].tolist() for item, name in zip(IDS, NAMES, strict=True)
    }
    files = {"data_path": exported / "coco/images", "labels_path": exported / "coco/annotations/instances_rle.json"}
    options = {"label_types": "segmentations", **{name: str(path) for name, path in files.items()}}
    with coco.COCODetectionDatasetImporter(**options) as read:
        for path, facts, label in read:
            item = IDS[NAMES.index(Path(path).relative_to(exported / "coco/images").with_suffix("").as_posix())]
            objects = list(label.detections) if label else []
            assert all(0 < one.confidence <= 1 for one in objects)
            pixels = [(sample.classes.index(one.label), whole(one, facts.height, facts.width)) for one in objects]
            assert (painted(sample, item, pixels) == sample.masks[item]).all()


def whole(detection: Any, height: int, width: int) -> np.ndarray:
    """The pixels, bool [H, W], of a Detection's box, relative to the image, and the mask in it."""
    left, top, _, _ = detection.bounding_box
    inner = np.asarray(detection.mask, bool)
    pixels = np.zeros((height, width), bool)
    y, x = round(top * height), round(left * width)
    pixels[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return pixels
