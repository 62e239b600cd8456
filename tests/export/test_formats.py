"""Every format read back by its own tool or by a reader of its documented layout: nothing is lost."""

import io
import json
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import webdataset
import yaml
from exporting import IDS, NAMES, drawn, export, painted
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from sample_run import IMAGES, SampleRun, item_id, make_run

from advcam_fast.data import voc_palette
from advcam_fast.export import components
from advcam_fast.export.labelstudio import brush_rle
from advcam_fast.store import RunFolder

LABELS = {item_id(file): labels for file, labels, _ in IMAGES}
COLOURS = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)


def seen(file: Path) -> np.ndarray:
    """Pixels as a reader that knows no EXIF sees them."""
    return np.asarray(Image.open(file).convert("RGB"))


def test_voc(sample: SampleRun, exported: Path) -> None:
    folder = exported / "voc"
    lines = [line for line in (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    fields = [line.split(":") for line in lines]
    assert {len(row) for row in fields} == {4}  # a reader splits at colons
    names = [row[0] for row in fields]
    assert names[0] == "background" and len(set(names)) == 1 + len(sample.classes)
    assert "%62ackground" in names and "colon%3A #hash, %2525" in names
    assert (folder / "classes.txt").read_text(encoding="utf-8").splitlines() == sample.classes
    value_of = {tuple(map(int, row[1].split(","))): value for value, row in enumerate(fields)}
    assert (folder / "ImageSets/Segmentation/default.txt").read_text().splitlines() == NAMES
    for item, name in zip(IDS, NAMES, strict=True):
        image = Image.open(folder / "SegmentationClass" / f"{name}.png")
        assert image.mode == "P" and (np.asarray(image) == sample.masks[item]).all()
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)  # as CVAT reads it
        values = np.array([value_of[tuple(colour)] for colour in colours.tolist()]).reshape(sample.masks[item].shape)
        assert (values == sample.masks[item]).all()
        photo = next((folder / "JPEGImages").glob(f"{name}.*"))
        assert seen(photo).shape[:2] == sample.masks[item].shape
    assert (folder / "JPEGImages/a.jpg").is_symlink()
    assert not (folder / "JPEGImages/turned.png").is_symlink()


@pytest.mark.parametrize("kind", ["rle", "polygons"])
def test_coco(sample: SampleRun, exported: Path, kind: str) -> None:
    coco = COCO(exported / "coco" / "annotations" / f"instances_{kind}.json")
    assert [(entry["id"], entry["name"]) for entry in coco.loadCats(coco.getCatIds())] == list(
        enumerate(sample.classes, start=1)
    )
    images = coco.loadImgs(coco.getImgIds())
    assert [image["id"] for image in images] == list(range(1, 1 + len(IDS)))
    assert [image["item_id"] for image in images] == IDS
    assert min(coco.getAnnIds()) == 1
    for image in images:
        item = image["item_id"]
        assert seen(exported / "coco" / "images" / image["file_name"]).shape[:2] == (image["height"], image["width"])
        objects = []
        for found in coco.loadAnns(coco.getAnnIds(image["id"])):
            pixels = coco.annToMask(found).astype(bool)
            down, across = np.nonzero(pixels)
            assert found["bbox"] == [across.min(), down.min(), np.ptp(across) + 1, np.ptp(down) + 1]
            assert found["area"] == pixels.sum() and found["iscrowd"] == 0 and 0 < found["score"] <= 1
            objects.append((found["category_id"] - 1, pixels))
        assert (painted(sample, item, objects) == sample.masks[item]).all()


def test_yolo(sample: SampleRun, exported: Path) -> None:
    folder = exported / "yolo"
    data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == dict(enumerate(sample.classes)) and "path" not in data
    for item, name in zip(IDS, NAMES, strict=True):
        assert len(list((folder / data["train"]).glob(f"{name}.*"))) == 1
        height, width = sample.masks[item].shape
        objects = []
        for line in (folder / "labels" / "train" / f"{name}.txt").read_text().splitlines():
            category, *numbers = line.split()
            points = np.array(numbers, np.float64).reshape(-1, 2)
            assert len(points) >= 3 and points.min() >= 0 and points.max() <= 1
            objects.append((int(category), points))
        assert (drawn(objects, (height, width)) != sample.masks[item]).mean() < 0.03


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parquet(sample: SampleRun, exported: Path, tmp_path: Path) -> None:
    table = datasets.load_dataset(str(exported / "parquet"), cache_dir=str(tmp_path))["train"]
    assert table["id"] == IDS
    names = table.features["labels"].feature.names
    assert names == sample.classes == table.features["objects"]["category"].feature.names
    run = RunFolder.read(sample.path)
    for row in table:
        item, objects = row["id"], row["objects"]
        assert row["image"].convert("RGB").size == row["mask"].size == (row["width"], row["height"])
        assert (np.asarray(row["mask"]) == sample.masks[item]).all()
        assert [names[number] for number in row["labels"]] == list(LABELS[item])
        size = [row["height"], row["width"]]
        pixels = [coco_mask.decode({"size": size, "counts": counts}).astype(bool) for counts in objects["counts"]]
        assert (painted(sample, item, list(zip(objects["category"], pixels, strict=True))) == sample.masks[item]).all()
        maps = run.read_maps(item)["strided"].numpy()
        expected = [found.score for found in components(sample.masks[item], sample.classes, LABELS[item], maps)]
        assert np.allclose(objects["score"], expected, atol=0)


def test_webdataset(sample: SampleRun, exported: Path) -> None:
    folder = exported / "webdataset"
    shards = sorted(map(str, folder.glob("*.tar")))
    classes = json.loads((folder / "classes.json").read_text())
    assert classes == sample.classes
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [json.loads(one["json"])["id"] for one in samples] == IDS
    for one in samples:
        facts = json.loads(one["json"])
        mask = np.asarray(Image.open(io.BytesIO(one["mask.png"])))
        assert (mask == sample.masks[facts["id"]]).all()
        photo = Image.open(io.BytesIO(one.get("jpg") or one["png"]))
        assert photo.size == (facts["width"], facts["height"]) and photo.format == ("JPEG" if "jpg" in one else "PNG")
        assert tuple(facts["labels"]) == LABELS[facts["id"]]
        objects = [
            (classes.index(found["class"]), coco_mask.decode(found["segmentation"]).astype(bool))
            for found in facts["objects"]
        ]
        assert (painted(sample, facts["id"], objects) == mask).all()
    with tarfile.open(shards[0]) as tar:
        assert {member.mtime for member in tar} == {0}


def decoded_brush(rle: list[int]) -> np.ndarray:
    """Label Studio's own decoding, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        count = 1 + read(sizes[read(2)])
        values += [read(word)] * count if repeated else [read(word) for _ in range(count)]
    return np.array(values)


@pytest.mark.parametrize("lit", [0, 1, 2**14, 2**14 + 1, 200 * 200])
def test_runs_of_every_length(lit: int) -> None:
    mask = np.arange(200 * 200).reshape(200, 200) < lit
    assert (decoded_brush(brush_rle(mask)).reshape(200, 200, 4) == 255 * mask[..., None]).all()


def test_label_studio(sample: SampleRun, exported: Path) -> None:
    folder = exported / "labelstudio"
    view = ElementTree.parse(folder / "config.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == sample.classes
    brush, image = view.find("BrushLabels"), view.find("Image")
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["id"] for task in tasks] == IDS
    for task, name in zip(tasks, NAMES, strict=True):
        prefix, place = task["data"]["image"].split("?d=")
        assert prefix == "/data/local-files/" and "labelstudio/images/" in place
        assert next((folder / "images").glob(f"{name}.*")).exists()
        item, objects = task["data"]["id"], []
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
            assert (result["type"], result["value"]["format"]) == ("brushlabels", "rle")
            size = (result["original_height"], result["original_width"])
            rgba = decoded_brush(result["value"]["rle"]).reshape(*size, 4)
            assert set(np.unique(rgba).tolist()) <= {0, 255}
            objects.append((sample.classes.index(result["value"]["brushlabels"][0]), rgba[..., 3] > 0))
        assert len({result["id"] for result in prediction["result"]}) == len(objects)
        assert (painted(sample, item, objects) == sample.masks[item]).all()


def test_fiftyone(sample: SampleRun, exported: Path) -> None:
    folder = exported / "fiftyone"
    stems = {file.relative_to(folder / "data").with_suffix("").as_posix() for file in (folder / "data").rglob("*.*")}
    assert stems == set(NAMES)
    targets = {int(value): name for value, name in json.loads((folder / "mask_targets.json").read_text()).items()}
    assert [targets[value] for value in range(1, 1 + len(sample.classes))] == sample.classes
    for item, name in zip(IDS, NAMES, strict=True):
        mask = Image.open(folder / "labels" / f"{name}.png")
        assert mask.mode == "L", "a palette is read as colours"
        assert (np.asarray(mask) == sample.masks[item]).all()


@pytest.mark.parametrize("full", [False, True])
def test_released(tmp_path: Path, full: bool) -> None:
    sample = make_run(tmp_path, IMAGES[:4], full=full)
    assert export(sample, tmp_path / "out", "released") == []
    for item, name in zip(IDS[:4], NAMES[:4], strict=True):
        # as the released steps read it
        stored = np.load(tmp_path / "out" / "released" / f"{name}.npy", allow_pickle=True).item()
        keys = np.pad(stored["keys"] + 1, (1, 0), mode="constant")
        assert keys.tolist() == list(range(1 + len(LABELS[item])))
        scores = np.pad(stored["high_res"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=0.15)
        assert np.argmax(scores, axis=0).shape == sample.masks[item].shape
        maps = RunFolder.read(sample.path).read_maps(item)
        assert (stored["cam"].cpu() == maps["strided"]).all() and stored["high_res"].dtype == np.float32
        if full:
            assert (stored["high_res"] == maps["full"].numpy()).all()
        elif len(LABELS[item]):
            assert stored["high_res"].max() <= 1
