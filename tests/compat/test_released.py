"""The released script's command line: its files, whose numbers are those of the plain loop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_fast.bench.networks import random_model
from advcam_fast.bench.plain_loop import plain_maps
from advcam_fast.compat import released
from advcam_fast.data.voc import VOC_CLASSES
from advcam_fast.models import CamModel
from advcam_fast.models.recipe import IMAGENET_MEAN, IMAGENET_STD

TAGS = {"2007_000001": ("person", "head", "cat"), "2007_000002": ("dog",)}  # "head" is a part, and no class
CLIMB = ("--adv_iter", "3", "--AD_stepsize", "0.01", "--AD_coeff", "2", "--score_th", "0.4")


@pytest.fixture(scope="module")
def model() -> CamModel:
    torch.set_num_threads(1)
    return random_model("resnet50_stride16", len(VOC_CLASSES))


@pytest.fixture(scope="module")
def voc(model: CamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VOC tree, a list of it, and random weights in the released file's layout."""
    root, draw = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir()
    for name, tags in TAGS.items():
        pixels = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((47, 34), Image.Resampling.BICUBIC).save(root / "JPEGImages" / f"{name}.jpg")
        objects = "".join(f"<object><name>{tag}</name></object>" for tag in tags)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "train.txt").write_text("2007_000001\n2007000002\n")
    assert isinstance(model.features, torch.nn.Module)
    state = {f"resnet50.{key}": value for key, value in model.features.state_dict().items()}
    state["classifier.weight"] = model.class_weights[:, :, None, None]
    torch.save(state, root / "cam.pth")
    return root


def arguments(voc: Path, out: Path, *more: str) -> list[str]:
    given = {"voc12_root": voc, "train_list": voc / "train.txt", "cam_weights_name": voc / "cam", "cam_out_dir": out}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*CLIMB, *more]


def test_its_files_hold_the_plain_loops_maps(
    voc: Path, model: CamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: a climb magnifies rounding, with random weights and maps of six positions without bounds."""
    single = released.config_of
    monkeypatch.setattr(released, "config_of", lambda options: replace(single(options), dtype="fp64"))
    out = tmp_path / "result" / "cam"
    assert released.main(arguments(voc, out, "--num_workers", "2", "--cam_crop_size", "512")) == 0
    assert sorted(file.name for file in out.iterdir()) == ["2007_000001.npy", "2007_000002.npy"]
    config = released.config_of(released.parser().parse_args(arguments(voc, out)))
    network = random_model("resnet50_stride16", len(VOC_CLASSES)).features
    assert isinstance(network, torch.nn.Module)
    network, weights = network.double(), model.class_weights.double()
    for name, wanted in (("2007_000001", [7, 14]), ("2007_000002", [11])):
        pixels = np.asarray(Image.open(voc / "JPEGImages" / f"{name}.jpg"))
        plain = plain_maps(network, weights, pixels, wanted, config, IMAGENET_MEAN, IMAGENET_STD)
        found = np.load(out / f"{name}.npy", allow_pickle=True).item()
        assert set(found) == {"keys", "cam", "high_res"}
        assert found["keys"].dtype == torch.int64 and found["keys"].tolist() == wanted
        assert isinstance(found["cam"], torch.Tensor) and found["cam"].shape == (len(wanted), 9, 12)
        assert isinstance(found["high_res"], np.ndarray) and found["high_res"].shape == (len(wanted), 34, 47)
        assert plain.full.std() > 0.05, "an even map proves nothing"
        assert (found["cam"] - plain.strided).abs().max() < 1e-5
        assert np.abs(found["high_res"] - plain.full.numpy()).max() < 1e-5


def test_the_same_command_goes_on_and_a_bad_image_stops_nothing(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cam"
    out.mkdir()
    (out / "2007_000001.npy").write_bytes(b"made before")
    names = tmp_path / "list.txt"
    names.write_text("2007_000009\n2007_000001\n2007_000002\n")
    code = released.main(arguments(voc, out, "--train_list", str(names), "--cam_weights_name", str(voc / "cam.pth")))
    told = capsys.readouterr()
    assert code == 3 and "failed: 2007_000009: annotation Annotations/2007_000009.xml: No such file" in told.err
    assert told.out.split() == ["2007_000002.npy"]
    assert (out / "2007_000001.npy").read_bytes() == b"made before"
    assert sorted(os.listdir(out)) == ["2007_000001.npy", "2007_000002.npy"]
    made = np.load(out / "2007_000002.npy", allow_pickle=True).item()
    assert made["high_res"].dtype == np.float32 and made["cam"].dtype == torch.float32


@pytest.mark.parametrize(("steps", "fewer"), [(27, 13), (11, 5), (10, 5), (6, 5), (5, 5), (3, 3)])
def test_the_second_scale_has_the_scripts_steps(steps: int, fewer: int) -> None:
    config = released.config_of(released.parser().parse_args(["--adv_iter", str(steps)]))
    assert [config.steps_for(scale) for scale in (1.0, 0.5, 1.5, 2.0)] == [steps, fewer, steps, steps]
    assert (config.suppression, config.step_size, config.mask_threshold) == (7, 0.08, 0.5)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--cam_weights_name", "nowhere.pth"), "weights nowhere.pth: no such file"),
        (("--train_list", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--adv_iter", "0"), "steps"),
        (("--device", "tpu"), "--device tpu"),
    ],
)
def test_bad_usage_is_one_line(
    more: tuple[str, str], text: str, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert released.main(arguments(voc, tmp_path / "cam", *more)) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1
    assert not (tmp_path / "cam").exists()


@pytest.mark.parametrize(
    "more", [("--cam_network", "net.other"), ("--target_layer", "stage3"), ("--cam_scales", "1.0,0.5"), ("--nonsense",)]
)
def test_what_it_cannot_do_is_refused(more: tuple[str, ...], voc: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        released.main(arguments(voc, tmp_path / "cam", *more))


def test_a_list_of_something_else(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "list.txt"
    names.write_text("/JPEGImages/2007_000001.jpg\n")
    assert released.main(arguments(voc, tmp_path / "cam", "--train_list", str(names))) == 2
    assert "wanted is a name such as 2007_000032 a line" in capsys.readouterr().err
