"""`label` done right: every kind of data in, and what lies in the run folder."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CLASSES, FAST, Ended, arrays, manifest, map_files, save_list, save_photo
from PIL import Image

import advcam_fast
from advcam_fast.climb import ClimbConfig, compute_maps
from advcam_fast.data import read_image
from advcam_fast.models import load_model
from advcam_fast.store import RunFolder

ROWS = [("a.png", "cat"), ("sub/b.png", "dog;cat"), ("c.png", "2"), ("d.png", CLASSES[3])]


def test_a_csv_list_with_names_indices_and_two_labels(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    ended = label(data, tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "4 of 4 images have maps, 0 failed" in ended.err and "images/s" in ended.err
    records = manifest(tmp_path / "run")
    assert [(key, record["status"], record["labels"]) for key, record in records.items()] == [
        ("a", "ok", ["cat"]),
        ("sub/b", "ok", ["dog", "cat"]),
        ("c", "ok", [CLASSES[2]]),
        ("d", "ok", [CLASSES[3]]),
    ]
    for name, (image, _) in zip(records, ROWS, strict=True):
        stored = arrays(tmp_path / "run" / "maps" / f"{name}.npz")
        width, height = Image.open(tmp_path / "photos" / image).size
        count = len(records[name]["labels"])
        assert stored["classes"].tolist() == [CLASSES.index(tag) for tag in records[name]["labels"]]
        assert stored["strided"].shape == (count, (height - 1) // 4 + 1, (width - 1) // 4 + 1)
        assert stored["initial"].shape == (count, height, width)
        assert {key: value.dtype.name for key, value in stored.items()} == {
            "classes": "int64",
            "strided": "float16",
            "initial": "float16",
        }
        for key in ("strided", "initial"):
            assert stored[key].min() >= 0
            assert np.abs(stored[key].max((1, 2)).astype(float) - 1).max() < 2e-3
        assert records[name]["flags"] == []


def test_classes_of_one_image_do_not_disturb_each_other(label: Callable[..., Ended], tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "photos" / "x.png", 1)
    for tags in ("cat", "dog", "dog;cat;0"):
        folder = tmp_path / tags
        folder.mkdir()
        (folder / "x.png").write_bytes(photo.read_bytes())
        assert label(save_list(folder, [("x.png", tags)]), folder / "run", "--store", "fp32").code == 0
    cat, dog, both = (arrays(tmp_path / tags / "run" / "maps" / "x.npz") for tags in ("cat", "dog", "dog;cat;0"))
    assert both["classes"].tolist() == [1, 0], "the index 0 is the cat again"
    for key in ("strided", "initial"):
        assert np.array_equal(both[key], np.concatenate([dog[key], cat[key]]))
    assert not np.array_equal(dog["strided"], cat["strided"])


def test_a_folder_with_a_subfolder_for_each_class(label: Callable[..., Ended], tmp_path: Path) -> None:
    for seed, name in enumerate(("cat/1.png", "cat/2.jpg", "DOG/1.png")):
        save_photo(tmp_path / "photos" / name, seed)
    assert label(f"folder:{tmp_path / 'photos'}", tmp_path / "run").code == 0
    labels = {key: record["labels"] for key, record in manifest(tmp_path / "run").items()}
    assert labels == {"DOG/1": ["dog"], "cat/1": ["cat"], "cat/2": ["cat"]}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for seed in range(5):
        save_photo(tmp_path / "flat" / f"{seed}.png", seed, (300, 270))
    return tmp_path / "flat"


def probabilities(flat: Path, network: Path) -> dict[str, list[float]]:
    """What the classifier says of photos of 300 x 270 pixels, the short side brought to 256."""
    model = load_model("squeezenet1_1", network)
    by_id = {}
    for file in flat.glob("*.png"):
        view = np.array(Image.open(file).resize((284, 256), Image.Resampling.BICUBIC))
        by_id[file.stem] = model.predict(torch.from_numpy(view).permute(2, 0, 1)[None])[0].tolist()
    return by_id


@pytest.mark.parametrize(
    ("options", "most", "least"), [((), 1, 0.0), (("--top-k", 2), 2, 0.0), (("--top-k", 3, "--min-score", 0.3), 3, 0.3)]
)
def test_predicted_labels(
    label: Callable[..., Ended], network: Path, flat: Path, options: tuple[object, ...], most: int, least: float
) -> None:
    assert label(f"folder:{flat}", flat / "run", "--labels", "predicted", *options).code == 0
    labels = {key: record["labels"] for key, record in manifest(flat / "run").items()}
    wanted = {}
    for key, scores in probabilities(flat, network).items():
        best = sorted(range(len(CLASSES)), key=lambda c, scores=scores: -scores[c])[:most]
        wanted[key] = [CLASSES[c] for c in best if scores[c] >= least]
    assert labels == wanted


def test_an_image_without_labels_has_empty_maps_and_a_flag(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", [("a.png", ""), ("b.png", "cat")])
    assert label(data, tmp_path / "run").code == 0
    assert manifest(tmp_path / "run")["a"]["flags"] == ["no_labels"]
    assert manifest(tmp_path / "run")["b"]["flags"] == []
    assert arrays(tmp_path / "run" / "maps" / "a.npz")["strided"].shape[0] == 0
    predicted = label(data, tmp_path / "predicted", "--labels", "predicted", "--min-score", 1)
    assert predicted.code == 0
    assert [record["flags"] for record in manifest(tmp_path / "predicted").values()] == [["no_labels"]] * 2


def test_the_voc_layout(label: Callable[..., Ended], tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    for folder in ("ImageSets/Segmentation", "Annotations", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n2007_2\n2007_3\n")
    for seed, objects in enumerate((["dog", "cat", "dog"], ["cat"], None), start=1):
        save_photo(root / "JPEGImages" / f"2007_{seed}.jpg", seed)
        if objects is not None:
            names = "".join(f"<object><name>{name}</name></object>" for name in objects)
            (root / "Annotations" / f"2007_{seed}.xml").write_text(f"<annotation>{names}</annotation>")
    ended = label(f"voc:{root}#train", tmp_path / "run")
    assert ended.code == 3
    assert "failed: 2007_3: annotation Annotations/2007_3.xml: No such file or directory" in ended.err
    records = manifest(tmp_path / "run")
    assert [records[key]["labels"] for key in ("2007_1", "2007_2")] == [["cat", "dog"], ["cat"]]
    assert sorted(map_files(tmp_path / "run")) == ["2007_1.npz", "2007_2.npz"]


@pytest.mark.parametrize("store", ["fp32", "uint8"])
def test_stores_and_full_maps(label: Callable[..., Ended], tmp_path: Path, store: str) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    assert label(data, tmp_path / "exact", "--store", "fp32", "--full").code == 0
    assert label(data, tmp_path / "run", "--store", store, "--full").code == 0
    for name in map_files(tmp_path / "run"):
        exact, stored = arrays(tmp_path / "exact" / "maps" / name), arrays(tmp_path / "run" / "maps" / name)
        assert set(stored) == {"classes", "strided", "initial", "full"}
        assert stored["full"].shape == stored["initial"].shape
        for key in ("strided", "initial", "full"):
            assert stored[key].dtype.name == {"fp32": "float32"}.get(store, store)
            values = stored[key] / 255 if store == "uint8" else stored[key]
            assert np.abs(values - exact[key]).max() <= (0.5 / 255 + 1e-6 if store == "uint8" else 0)


def test_a_layer_is_looked_at(label: Callable[..., Ended], network: Path, tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS[:1])
    ended = label(data, tmp_path / "run", "--layer", "features.7", "--full", "--store", "fp32", "--json")
    assert ended.code == 0, ended.err
    assert ended.json()["executor"] == "autograd Grad-CAM at features.7"
    model = load_model("squeezenet1_1", network, target_layer="features.7")
    config = ClimbConfig.preset("cam").with_settings(FAST[1::2])
    wanted = compute_maps(model, [read_image(tmp_path / "photos" / "a.png")], [[0]], config)[0]
    stored = arrays(tmp_path / "run" / "maps" / "a.npz")
    assert wanted.full.max() > 0.9
    assert np.allclose(stored["full"], wanted.full, atol=1e-5)
    again = label(data, tmp_path / "run", "--layer", "features.6", "--full", "--store", "fp32")
    assert again.code == 2 and '"features.7" -> "features.6"' in again.error


def test_a_vision_transformer(label: Callable[..., Ended], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    save_photo(tmp_path / "photos" / "a.png", 0)
    given = ("--model", "timm/vit_tiny_patch16_224", "--weights", "none", "--labels", "predicted")
    data = f"folder:{tmp_path / 'photos'}"
    ended = label(data, tmp_path / "run", *given, "--layer", "blocks.11.norm1")
    assert ended.code == 0, ended.err
    assert arrays(tmp_path / "run" / "maps" / "a.npz")["initial"].shape == (1, 33, 40)
    wrong = label(data, tmp_path / "wrong", *given, "--layer", "blocks.12.norm1")
    assert wrong.code == 2
    assert "no layer 'blocks.12.norm1'; did you mean" in wrong.error and "blocks.#.attn.qkv" in wrong.error
    assert not (tmp_path / "wrong").exists()
    without = label(data, tmp_path / "wrong", *given)
    assert without.code == 2 and "or a target layer (--layer)" in without.error


def repeated(settings: dict, class_map: Path) -> list[object]:
    """The command line that a run.toml stands for."""
    climb = dict(settings["climb"])
    assert settings["model"]["layer"] == ""
    options: list[object] = ["--data", settings["data"], "--model", settings["model"]["name"]]
    options += ["--weights", settings["model"]["weights"], "--labels", settings["labels"]["from"]]
    options += [
        "--store",
        settings["store"],
        "--preset",
        climb.pop("preset"),
        *(["--full"] if settings["full"] else []),
    ]
    class_map.write_text("".join(f"{name},{index}\n" for name, index in settings["class_map"].items()))
    options += ["--class-map", class_map]
    climb["scales"] = ",".join(map(str, climb["scales"]))
    climb["steps_at_scale"] = ",".join(f"{scale}:{steps}" for scale, steps in climb["steps_at_scale"].items())
    climb["flip"] = json.dumps(climb["flip"])
    return [*options, *(part for key, value in climb.items() for part in ("--set", f"{key}={value}"))]


def test_run_toml_repeats_the_run(
    label: Callable[..., Ended], run: Callable[..., Ended], network: Path, tmp_path: Path
) -> None:
    data = save_list(tmp_path / "photos", [("a.png", "feline"), ("b.png", "dog"), ("c.png", "feline;dog")])
    (tmp_path / "names.csv").write_text("dataset,model\nfeline,cat\n")
    changed = ("steps=4", "scales=1,1.5", "steps_at_scale=1.5:2", "step_size=0.1", "suppression=0.5", "flip=false")
    options = [part for setting in (*changed, "other_classes=present") for part in ("--set", setting)]
    options += ["--full", "--store", "fp32", "--class-map", tmp_path / "names.csv"]
    ended = label(data, tmp_path / "run", *options)
    assert ended.code == 0, ended.err
    stored = RunFolder.read(tmp_path / "run")
    assert stored.info["advcam_fast"] == advcam_fast.__version__ and stored.info["device"] == "cpu"
    again = run("label", *repeated(stored.settings, tmp_path / "again.csv"), "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert map_files(tmp_path / "again") == map_files(tmp_path / "run")
    plain = label(data, tmp_path / "plain", "--full", "--store", "fp32", "--class-map", tmp_path / "names.csv")
    assert plain.code == 0
    assert map_files(tmp_path / "plain") != map_files(tmp_path / "run"), "the settings changed nothing"


@pytest.mark.parametrize("options", [("--preset", "general"), ("--dtype", "bf16"), ("--dtype", "fp64")])
def test_other_presets_and_dtypes(label: Callable[..., Ended], tmp_path: Path, options: tuple[str, ...]) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    assert label(data, tmp_path / "run", *options).code == 0
    for name in map_files(tmp_path / "run"):
        stored = arrays(tmp_path / "run" / "maps" / name)
        assert np.isfinite(stored["strided"]).all() and stored["strided"].max() > 0.99


def test_json_is_all_that_a_machine_sees(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    (tmp_path / "photos" / "c.png").write_bytes(b"")
    ended = label(data, tmp_path / "run", "--json")
    assert ended.code == 3
    assert ended.err == ""
    summary = ended.json()
    wanted = {"ok": 3, "failed": 1, "images": 4, "done_before": 0, "done_now": 4, "interrupted": False}
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["images_per_second"] > 0 and summary["seconds"] > 0
    assert [failure["id"] for failure in summary["failures"]] == ["c"]
    assert "the file is empty" in summary["failures"][0]["reason"]


def test_a_class_that_never_scores_is_flagged(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", [("a.png", "never;cat"), ("b.png", "cat")])
    assert label(data, tmp_path / "run", "--store", "fp32", "--full").code == 0
    assert manifest(tmp_path / "run")["a"]["flags"] == ["no_positive_score:4"]
    stored = arrays(tmp_path / "run" / "maps" / "a.npz")
    for key in ("strided", "initial", "full"):
        assert np.array_equal(stored[key][0], np.zeros_like(stored[key][0]))
        assert stored[key][1].max() > 0.99


def test_shards_are_labelled_and_refined_as_files_are(
    label: Callable[..., Ended], run: Callable[..., Ended], tmp_path: Path
) -> None:
    rows = [("a.png", "cat"), ("b.png", "dog;cat"), ("c.png", "dog")]
    data = save_list(tmp_path / "photos", rows)
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, tags in rows:
            (tmp_path / "tags.txt").write_text(tags)
            shard.add(tmp_path / "photos" / name, name)
            shard.add(tmp_path / "tags.txt", name.replace(".png", ".txt"))
    files, shards = tmp_path / "files", tmp_path / "shards"
    assert label(data, files).code == 0
    assert label(f"webdataset:{tmp_path}/*.tar", shards).code == 0
    assert map_files(shards) == map_files(files) and len(map_files(files)) == 3
    assert [run("refine", "--run", folder).code for folder in (files, shards)] == [0, 0]
    for name in ("a.png", "b.png", "c.png"):
        assert (files / "masks" / name).read_bytes() == (shards / "masks" / name).read_bytes()
