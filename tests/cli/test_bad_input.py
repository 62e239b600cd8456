"""What is wrong with the input is said in one line; one bad image never disturbs the others."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import CLASSES, Ended, arrays, manifest, map_files, save_list, save_network, save_photo
from PIL import Image

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import open_dataset
from advcam_fast.errors import StoppedError
from advcam_fast.models import CamModel
from advcam_fast.pipelines.label import Labeller, LabelRule, label_dataset
from advcam_fast.store import RunFolder

GOOD = [(f"good/{i}.png", "dog;cat") for i in range(3)]
BAD = {
    "truncated.jpg": "truncated",
    "empty.png": "the file is empty",
    "text.png": "not a JPEG, PNG, GIF",
    "missing.png": "No such file or directory",
    "folder.png": "not a regular file",
    "dot.png": "cannot take this image of 1 x 1",
    "strip.png": "cannot take this image of 20000 x 10",
    "[red]x[/].png": "the file is empty",
}


def save_bad(folder: Path) -> None:
    save_photo(folder / "whole.jpg", 0, (200, 200))
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1500])
    (folder / "empty.png").touch()
    (folder / "[red]x[").mkdir()
    (folder / "[red]x[" / "].png").touch()
    (folder / "text.png").write_text("no picture at all")
    (folder / "folder.png").mkdir()
    save_photo(folder / "dot.png", 0, (1, 1))
    save_photo(folder / "strip.png", 0, (20000, 10))


def test_bad_images_are_listed_and_the_others_are_whole(label: Callable[..., Ended], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    good = save_list(folder, GOOD)
    assert label(good, tmp_path / "undisturbed").code == 0
    save_bad(folder)
    bad = [(name, "cat") for name in BAD]
    data = save_list(folder, [*bad[:4], GOOD[0], *bad[4:6], *GOOD[1:], *bad[6:]], photos=False)
    for attempt in ("first", "again"):  # a finished run still tells what failed
        ended = label(data, tmp_path / "run")
        assert ended.code == 3, attempt
        assert "Traceback" not in ended.err
        assert "3 of 11 images have maps, 8 failed" in ended.err
        listed = dict(
            line.removeprefix("failed: ").split(": ", 1)
            for line in ended.err.splitlines()
            if line.startswith("failed: ")
        )
        assert listed.keys() == {name.rsplit(".", 1)[0] for name in BAD}
        for name, reason in BAD.items():
            assert reason in listed[name.rsplit(".", 1)[0]]
    assert map_files(tmp_path / "run") == map_files(tmp_path / "undisturbed")
    records = manifest(tmp_path / "run")
    assert records["missing"]["status"] == "failed" and "No such file" in records["missing"]["reason"]

    save_photo(folder / "missing.png", 7)
    retried = label(data, tmp_path / "run", "--retry-failed", "--json")
    assert retried.code == 3
    assert (retried.json()["ok"], retried.json()["failed"], retried.json()["done_now"]) == (4, 7, 8)
    assert "missing.npz" in map_files(tmp_path / "run")


def test_predicting_labels_fails_for_bad_images_only(label: Callable[..., Ended], tmp_path: Path) -> None:
    save_list(tmp_path / "photos", GOOD)
    (tmp_path / "photos" / "labels.csv").unlink()
    save_bad(tmp_path / "photos")
    ended = label(f"folder:{tmp_path / 'photos'}", tmp_path / "run", "--labels", "predicted", "--json")
    assert ended.code == 3
    assert ended.err == ""
    failed = {failure["id"]: failure["reason"] for failure in ended.json()["failures"]}
    assert failed.keys() == {"truncated", "empty", "[red]x[/]", "text", "dot", "strip"}
    assert "20000 x 10" in failed["strip"]


def test_a_long_list_of_failures_is_cut(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", [(f"{i}.png", "cat") for i in range(25)], photos=False)
    ended = label(data, tmp_path / "[run]")
    assert ended.code == 3
    assert ended.err.count("failed: ") == 20
    assert f"and 5 more, see {tmp_path / '[run]' / 'manifest'}" in ended.err


@pytest.mark.parametrize(
    ("size", "seen"),  # (width, height) of the image, (height, width) of what the classifier sees
    [((300, 270), (256, 284)), ((50, 20), (256, 640)), ((20000, 10), (10, 20000)), ((1, 1), (256, 256))],
)
def test_what_the_classifier_sees(tmp_path: Path, size: tuple[int, int], seen: tuple[int, int]) -> None:
    """The short side at 256 pixels; but a narrow strip is not enlarged without bound."""
    data = open_dataset(save_list(tmp_path, [("photo.png", "")], photos=False))
    save_photo(tmp_path / "photo.png", 0, size)
    sizes = []

    def features(images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape[2:]))
        return images.mean((2, 3), keepdim=True)

    model = CamModel(features, torch.ones(2, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    with RunFolder.open(tmp_path / "run", {}) as run:
        maker = MapMaker(model, ClimbConfig(steps=1, scales=(1.0,), steps_at_scale={}))
        label_dataset(data, Labeller(maker, LabelRule(predicted=True), {}), run)
    assert run.counts() == {"ok": 1, "failed": 0}
    assert sizes == [seen, size[::-1]], "once to predict, once for the map"


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, OverflowError])
def test_an_image_that_the_network_cannot_take_fails_alone(tmp_path: Path, kind: type[Exception]) -> None:
    data = open_dataset(save_list(tmp_path, [("a.png", "0"), ("b.png", "1"), ("c.png", "0")], photos=False))
    for name, width in (("a", 20), ("b", 13), ("c", 20)):
        save_photo(tmp_path / f"{name}.png", 0, (width, 20))

    def features(images: torch.Tensor) -> torch.Tensor:
        if images.shape[3] == 13:
            raise kind
        return images

    model = CamModel(features, torch.ones(2, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    with RunFolder.open(tmp_path / "run", {}) as run:
        maker = MapMaker(model, ClimbConfig(steps=1, scales=(1.0,), steps_at_scale={}))
        label_dataset(data, Labeller(maker, LabelRule(), {"0": 0, "1": 1}), run)
    assert {key: record["status"] for key, record in manifest(tmp_path / "run").items()} == {
        "a": "ok",
        "b": "failed",
        "c": "ok",
    }
    why = "too little memory for" if kind is MemoryError else "the network cannot take"
    assert manifest(tmp_path / "run")["b"]["reason"] == f"{why} this image of 13 x 20: {kind.__name__}"


def test_a_lost_device_stops_the_run_and_fails_no_image(tmp_path: Path) -> None:
    data = open_dataset(save_list(tmp_path, [("a.png", "0"), ("b.png", "1"), ("c.png", "0")]))

    climbed: list[torch.Tensor] = []

    def features(images: torch.Tensor) -> torch.Tensor:
        climbed.append(images)
        if len(climbed) > 1:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return images

    model = CamModel(features, torch.ones(2, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    maker = MapMaker(model, ClimbConfig(steps=1, scales=(1.0,), steps_at_scale={}))
    with RunFolder.open(tmp_path / "run", {}) as run:
        with pytest.raises(StoppedError, match=r"the device failed at an image of .* illegal memory access"):
            label_dataset(data, Labeller(maker, LabelRule(), {"0": 0, "1": 1}), run)
        assert run.counts() == {"ok": 1, "failed": 0}


def test_a_scale_beyond_all_bounds_is_no_traceback(label: Callable[..., Ended], tmp_path: Path) -> None:
    ended = label(save_list(tmp_path / "photos", GOOD), tmp_path / "run", "--set", "scales=1e12")
    assert ended.code == 3
    assert ended.err.count("cannot take this image of 3") == 3
    assert "Traceback" not in ended.err


def test_odd_names_come_through_whole(label: Callable[..., Ended], tmp_path: Path) -> None:
    rows = [("a b/é 🐈 [x].png", CLASSES[2]), ("#1%.png", f"{CLASSES[3]};{CLASSES[2]}"), (".hid/..den.png", "cat")]
    assert label(save_list(tmp_path / "photos", rows), tmp_path / "run").code == 0
    records = manifest(tmp_path / "run")
    assert [(key, record["labels"]) for key, record in records.items()] == [
        ("a b/é 🐈 [x]", [CLASSES[2]]),
        ("#1%", [CLASSES[3], CLASSES[2]]),
        (".hid/..den", ["cat"]),
    ]
    run = RunFolder.read(tmp_path / "run", verify=True)
    assert run.counts() == {"ok": 3, "failed": 0}
    assert [run.read_maps(name)["classes"].tolist() for name in records] == [[2], [3, 2], [0]]


def test_a_file_name_that_is_no_text(label: Callable[..., Ended], tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "photo.png", 0)
    for name in (b"\xff.png", b"bad\xfe.png"):
        path = Path(bytes(tmp_path).decode()) / "photos"
        path.mkdir(exist_ok=True)
        with open(bytes(path) + b"/" + name, "wb") as file:
            file.write(photo.read_bytes() if name == b"\xff.png" else b"")
    ended = label(f"folder:{path}", tmp_path / "run", "--labels", "predicted", "--top-k", 1)
    assert ended.code == 3
    assert "Traceback" not in ended.err and "1 of 2 images have maps" in ended.err


def no_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["classifier.1.weight"]


def wide_kernel(tensors: dict[str, torch.Tensor]) -> None:
    tensors["features.0.weight"] = torch.zeros(64, 3, 5, 5)


def no_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.1.bias"][0] = float("nan")


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no head", "classifier.1.weight [C, K] is missing"),
        ("other shape", "wanted [64, 3, 3, 3]"),
        ("nan", "classifier.1.bias holds NaN"),
        ("pickle.pt", "pickled code is never run"),
        ("torch.pt", "pickled code is never run"),
        ("pickle.safetensors", "not a safetensors file"),
        ("empty.pt", "not a weights file"),
        ("folder.pt", "no such file"),
        ("absent.pt", "no such file"),
    ],
)
def test_weights_that_do_not_fit(label: Callable[..., Ended], tmp_path: Path, kind: str, said: str) -> None:
    file, mark = tmp_path / kind, tmp_path / "was run"
    spoil = {"no head": no_head, "other shape": wide_kernel, "nan": no_number}
    if kind in spoil:
        file = save_network(file.with_suffix(".safetensors"), spoil[kind])
    elif kind.startswith("pickle"):
        file.write_bytes(pickle.dumps(Payload(mark)))
    elif kind == "torch.pt":
        torch.save({"state_dict": Payload(mark)}, file)
    elif kind == "empty.pt":
        file.touch()
    elif kind == "folder.pt":
        file.mkdir()
    ended = label(save_list(tmp_path / "photos", GOOD), tmp_path / "run", "--weights", file)
    assert ended.code == 2
    assert said in ended.error and str(file) in ended.error
    assert not mark.exists(), "code from a weights file was run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "squeezenet1_2"), "unknown model 'squeezenet1_2'; did you mean squeezenet1_"),
        (("--preset", "genral"), "did you mean general?"),
        (("--set", "stepz=3"), "with a key of steps,"),
        (("--set", "steps"), "wanted is KEY=VALUE"),
        (("--set", "steps=0"), "wanted is whole numbers >= 1"),
        (("--set", "steps=many"), "that is no value for steps"),
        (("--set", "step_size=1e999"), "step_size: inf came"),
        (("--set", "scales=0"), "scales > 0"),
        (("--set", "steps_at_scale=7:2"), "steps_at_scale"),
        (("--dtype", "fp8"), "fp32 or"),
        (("--device", "gpu"), "wanted is auto, cpu, cuda or cuda:N"),
        (("--device", "cuda:77"), "this machine has cpu"),
        (("--store", "fp8"), "wanted fp16, fp32, uint8"),
        (("--labels", "some"), "wanted is given or predicted"),
        (("--top-k", "1"), "add --labels predicted"),
        (("--labels", "predicted", "--top-k", "0"), "--top-k 0"),
        (("--labels", "predicted", "--min-score", "nan"), "--min-score nan"),
        (("--class-map", "nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("--data", "zip:photos"), "wanted folder:DIR, csv:FILE, webdataset:GLOB, voc:DIR#split"),
        (("--data", "coco:photos#val"), "photos lacks annotations/instances_val.json; wanted"),
        (("--data", "folder:nowhere"), "nowhere is not a folder"),
        (("--data", "csv:nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("--data", "voc:nowhere#train"), "nowhere lacks ImageSets"),
        (("--data", "two\nlines"), "wanted folder:DIR"),
    ],
)
def test_options_that_cannot_be(
    label: Callable[..., Ended], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    ended = label(save_list(tmp_path / "photos", GOOD[:1]), tmp_path / "run", *options)
    assert ended.code == 2, ended.err
    assert said in ended.error
    assert ended.out == ""
    assert not (tmp_path / "run" / "run.toml").exists()


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("cta", "'cta' (close: 'cat')"),
        ("[bold]:catt:", "'[bold]:catt:' (close: '[bold]:cat:')"),
        ("99", "class index 99 is outside the model's head: 5 classes, counted from 0"),
        ("-1", "class index -1 is outside"),
    ],
)
def test_tags_that_the_model_does_not_know(label: Callable[..., Ended], tmp_path: Path, tag: str, said: str) -> None:
    ended = label(save_list(tmp_path / "photos", [("a.png", "cat"), ("b.png", tag)]), tmp_path / "run")
    assert ended.code == 2
    assert said in ended.error
    assert not (tmp_path / "run").exists()


def test_a_list_may_not_leave_its_folder(label: Callable[..., Ended], tmp_path: Path) -> None:
    save_photo(tmp_path / "secret.png", 0)
    ended = label(save_list(tmp_path / "photos", [("../secret.png", "cat")], photos=False), tmp_path / "run")
    assert ended.code == 2
    assert "line 2: path '../secret.png' is not below the list's folder" in ended.error


def test_given_labels_need_tags(label: Callable[..., Ended], tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a.png", 0)
    ended = label(f"folder:{tmp_path / 'photos'}", tmp_path / "run")
    assert ended.code == 2
    assert "has no tags: add --labels predicted" in ended.error


def test_one_wrong_option_of_typer_is_no_traceback(run: Callable[..., Ended]) -> None:
    for arguments in (("label",), ("lable",), ("label", "--nonsense"), ("label", "--top-k", "two")):
        ended = run(*arguments)
        assert ended.code == 2
        assert "Traceback" not in ended.err and "Error" in ended.err


def test_all_maps_of_the_good_are_finite(label: Callable[..., Ended], tmp_path: Path) -> None:
    black = save_photo(tmp_path / "photos" / "black.png", 0)
    Image.new("RGB", (40, 33)).save(black)
    Image.new("RGB", (40, 33), "white").save(tmp_path / "photos" / "white.png")
    data = save_list(tmp_path / "photos", [("black.png", "cat;never"), ("white.png", "dog")], photos=False)
    assert label(data, tmp_path / "run", "--full", "--set", "steps=4").code == 0
    for name in ("black", "white"):
        for values in arrays(tmp_path / "run" / "maps" / f"{name}.npz").values():
            assert (values >= 0).all() and (values < 6).all()
