"""Help, version, doctor and demo."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from command_line import Command, Ended, arrays, manifest
from PIL import Image

import advcam_fast as af
from advcam_fast import _native, cli
from advcam_fast.pipelines.demo import PHOTOS, write_photos
from advcam_fast.report.overlay import overlay, sheet

VERBS = ("label", "refine", "train-affinity", "evaluate", "export", "report", "run", "demo", "doctor")

# left, top, right, bottom in pixels: the cat's face; the camera and its tripod
OBJECTS = {"chelsea": ("tabby", (55, 30, 385, 300)), "camera": ("tripod", (185, 110, 450, 512))}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("ask", ["--help", "-h"])
def test_help_shows_an_example(run: Callable[..., Ended], verb: str, ask: str) -> None:
    ended = run(verb, ask)
    assert ended.code == 0
    assert f"Example: advcam-fast {verb}" in " ".join(ended.out.split())


def test_no_arguments_show_help(run: Callable[..., Ended]) -> None:
    ended = run()
    assert ended.code in (0, 2)
    assert "Usage: advcam-fast" in ended.out + ended.err
    assert all(verb in ended.out + ended.err for verb in VERBS)


def test_the_version(run: Callable[..., Ended]) -> None:
    assert run("--version").out == f"advcam_fast {af.__version__}\n"


@pytest.mark.parametrize("program", [("-m", "advcam_fast"), (str(Path(sys.executable).with_name("advcam-fast")),)])
def test_ctrl_c_while_it_imports_is_one_line(program: tuple[str, ...]) -> None:
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    command = [sys.executable, "-v", *program, "doctor"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert started.stderr is not None
    line = next(line for line in started.stderr if line.startswith("import 'torch.") or "torch/__init__" in line)
    started.send_signal(signal.SIGINT)
    rest = started.stderr.read()
    started.wait(60)
    assert line and started.returncode == -signal.SIGINT, "of a shell: 130"
    assert "Traceback (most recent" not in rest and "stopped before it began\n" in rest


def test_an_interrupt_of_a_program_of_others_is_left_alone() -> None:
    code = "import sys, advcam_fast; sys.exit(sys.excepthook is not sys.__excepthook__)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_doctor_says_what_is_used(run: Callable[..., Ended]) -> None:
    facts = run("doctor", "--json").json()
    assert facts["versions"]["advcam_fast"] == af.__version__
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["extension"]["loaded"] is (_native.NATIVE is not None)
    backend = "native" if _native.NATIVE is not None else "reference"
    climb = ("climb_step", "climb_loss", "cam_accumulate", "masked_relu", "masked_relu_backward")
    pools, judges = ("max_pool", "max_pool_backward"), ("threshold_sweep", "component_boxes")
    stems = (*climb, *pools, "random_walk", "color_walk", "centroid_walk", "dense_crf", *judges)
    assert {stem: where["cpu"] for stem, where in facts["kernels"].items()} == dict.fromkeys(stems, backend)
    assert facts["convolutions"]["cpu fp32"] == "oneDNN, prepacked"
    assert "memory" in facts["memory"] or "allocator" in facts["memory"]
    told = run("doctor")
    assert told.code == 0
    assert "kernel climb_step" in told.out and f"cpu: {backend}" in told.out


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "NATIVE", None)
    monkeypatch.setattr(_native, "NATIVE_ERROR", "[/lib/x.so]: undefined symbol :cat:")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else object())
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.doctor.doctor(False)
    assert "could not be loaded ([/lib/x.so]: undefined symbol :cat:)" in out.getvalue()
    advice = "in the source folder: pip install '.[models]'"
    assert f"timm is not installed (timm networks, efficientnet_lite0): {advice}" in out.getvalue()
    assert "skimage is not installed" not in out.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("demo")
    ended = Command("demo", "--preset", "cam", "--out", out / "[demo]", folder=out / "printed").end(120)
    assert ended.code == 0, ended.err
    return out / "[demo]", ended


def test_demo_draws_every_map_and_a_sheet(demo: tuple[Path, Ended]) -> None:
    out, ended = demo
    assert f"look at {out / 'pictures' / 'maps.png'}" in ended.err
    assert f"open {out / 'run' / 'report' / 'index.html'} in a browser" in ended.err
    assert len(list((out / "run" / "report" / "thumbs").rglob("*.jpg"))) == len(PHOTOS)
    wanted = {"maps.png"}
    for name, tags in PHOTOS.items():
        photo = np.asarray(Image.open(out / "photos" / name).convert("RGB"))
        for tag in tags.split(";"):
            for kind in ("cam", "advcam", "mask"):
                file = f"{Path(name).stem}_{tag.replace(' ', '_')}_{kind}.png"
                wanted.add(file)
                picture = np.asarray(Image.open(out / "pictures" / file))
                assert picture.shape == photo.shape
                assert np.abs(picture.astype(int).max(2) - picture.min(2)).max() > 100, "no colour was laid on it"
    assert {file.name for file in (out / "pictures").iterdir()} == wanted
    width, height = Image.open(out / "pictures" / "maps.png").size
    assert width > 4 * 240 and height > 5 * 240
    assert (out / "run" / "masks" / "classes.txt").read_text().splitlines() == sorted(
        tag for tags in PHOTOS.values() for tag in tags.split(";")
    )
    assert set(manifest(out / "run")) == {Path(name).stem for name in PHOTOS}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_demos_maps_sit_on_the_object(demo: tuple[Path, Ended], name: str) -> None:
    out, _ = demo
    _, (left, top, right, bottom) = OBJECTS[name]
    maps = arrays(out / "run" / "maps" / f"{name}.npz")
    height, width = maps["initial"].shape[1:]
    share_of_photo = (right - left) * (bottom - top) / (height * width)
    for key, cell in (("initial", 1), ("strided", 4)):
        heat = maps[key][0].astype(float)
        on_object = np.zeros(heat.shape, bool)
        on_object[top // cell : -(-bottom // cell), left // cell : -(-right // cell)] = True
        mass = heat[on_object].sum() / heat.sum()
        assert mass > (1 + share_of_photo) / 2, f"{mass:.2f} of the {key} map, the box is {share_of_photo:.2f} of it"
        assert on_object[heat > 0.5].mean() > 0.9


@pytest.mark.parametrize("name", OBJECTS)
def test_advcam_grows_on_the_object(tmp_path: Path, name: str) -> None:
    write_photos(tmp_path)
    tag, (left, top, right, bottom) = OBJECTS[name]
    photo = np.array(Image.open(tmp_path / f"{name}.png").convert("RGB"))
    model = af.load_model("efficientnet_lite0")
    config = af.ClimbConfig(
        steps=4, steps_at_scale={}, step_size=0.03, suppression=0.0, scales=(1.0,), score="mean", other_classes="none"
    )
    image = torch.from_numpy(photo).permute(2, 0, 1).contiguous()
    (result,) = af.compute_maps(model, [image], [[model.class_names.index(tag)]], config)
    heat, clean = result.full[0], result.initial[0]
    on_object = torch.zeros(heat.shape, dtype=torch.bool)
    on_object[top:bottom, left:right] = True
    assert on_object[heat > 0.5].float().mean() > 0.9
    grown = float(heat[on_object].mean() / clean[on_object].mean())
    assert grown > 1.05, f"the climb made the map on the object {grown:.2f} times as high"


def test_demo_again_does_nothing_twice(demo: tuple[Path, Ended], run: Callable[..., Ended]) -> None:
    out, _ = demo
    before = {file: file.stat().st_mtime_ns for file in (out / "run" / "maps").iterdir()}
    again = run("demo", "--preset", "cam", "--out", out, "--json")
    assert again.code == 0
    summary = json.loads(again.out)
    assert (summary["done_before"], summary["done_now"]) == (4, 0)
    assert before == {file: file.stat().st_mtime_ns for file in before}
    other = run("demo", "--preset", "general", "--out", out)
    assert other.code == 2
    assert 'climb.preset: "cam" -> "general"' in other.error


def test_demo_interrupted_before_any_map_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.label.labelling, "label_dataset", interrupted)
    with pytest.raises(typer.Exit) as left, contextlib.redirect_stderr(io.StringIO()) as err:
        cli.demo.demo(tmp_path / "demo", "cam", False)
    assert left.value.exit_code == 130
    assert err.getvalue().endswith("stopped; the same command goes on from here\n")
    assert not (tmp_path / "demo" / "pictures").exists()


def test_demo_refuses_a_preset_before_it_writes(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("demo", "--preset", "camm", "--out", tmp_path / "demo")
    assert ended.code == 2
    assert "did you mean cam?" in ended.error
    assert not (tmp_path / "demo").exists()


def test_an_overlay_keeps_the_photo_where_the_map_is_zero() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    heat = np.zeros((8, 9), np.float32)
    heat[:4] = 1
    picture = overlay(photo, heat)
    grey = photo.astype(float).mean(2)
    assert np.abs(picture[4:] - grey[4:, :, None]).max() <= 0.5 + 1e-4
    assert (picture[:4, :, 0] > picture[:4, :, 2]).all(), "the top of the scale is red"
    with pytest.raises(ValueError, match="at least one row"):
        sheet([], ("photo",))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (37, 53)])
def test_a_sheet_of_any_shape(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 200, np.uint8)
    page = sheet([("name", [picture, picture])], ("photo", "map"), height=20)
    assert page.height > 20 and page.width > 2 * max(1, round(shape[1] * 20 / shape[0]))
