"""A run that was stopped, at any moment and in any way, goes on: nothing is lost and nothing is done twice."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    FAST,
    Command,
    Ended,
    finished,
    map_files,
    save_list,
    save_network,
    save_photo,
    timeless,
    wait_for,
)
from kills import killed_again_and_again

from advcam_fast.store import RunFolder

KILLS = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    tags = itertools.cycle(("cat", "dog", "dog;cat", "never"))
    return save_list(tmp_path_factory.mktemp("photos"), [(f"{i % 3}/{i}.png", next(tags)) for i in range(80)])


@pytest.fixture(scope="module")
def options(photos: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    weights = save_network(tmp_path_factory.mktemp("network") / "net.safetensors")
    return ("label", "--data", photos, "--model", "squeezenet1_1", "--weights", weights, "--preset", "cam", *FAST)


@pytest.fixture(scope="module")
def undisturbed_run(options: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert Command(*options, "--out", out / "run", folder=out / "printed").end().code == 0
    return out / "run"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run: Path) -> dict[str, bytes]:
    return map_files(undisturbed_run)


@pytest.fixture(scope="module")
def undisturbed_manifest(undisturbed_run: Path) -> list[dict[str, Any]]:
    return timeless(undisturbed_run)


@pytest.mark.parametrize("most_ranks", [1, 3])
def test_ten_kills_at_random_moments(
    options: tuple[object, ...],
    undisturbed: dict[str, bytes],
    undisturbed_manifest: list[dict[str, Any]],
    tmp_path: Path,
    most_ranks: int,
) -> None:
    out = tmp_path / "run"
    before = killed_again_and_again(options, out, KILLS, most_ranks, most_items=7)
    assert 10 < len(before) < 80, "the kills did not strike while it worked"
    ended = Command(*options, "--out", out, "--json", folder=tmp_path / "printed").end()
    assert ended.code == 0
    summary = ended.json()
    assert (summary["done_before"], summary["done_now"], summary["ok"]) == (len(before), 80 - len(before), 80)
    assert before.items() <= finished(out).items(), "a finished item was done again"
    assert map_files(out) == undisturbed
    assert timeless(out) == undisturbed_manifest
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest", "maps", "run.toml"]
    assert not list((out / "maps").glob(".*")), "something was left behind"


@pytest.mark.soak
def test_two_hundred_kills(options: tuple[object, ...], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", [(f"{i % 3}/{i}.png", "dog;cat" if i % 3 else "dog") for i in range(1600)])
    options = (*options, "--data", data)
    assert Command(*options, "--out", tmp_path / "undisturbed", folder=tmp_path / "printed").end(600).code == 0
    out = tmp_path / "run"
    before = killed_again_and_again(options, out, 200, most_ranks=3, most_items=7)
    assert 400 < len(before) < 1600, "the kills did not strike while it worked"
    assert Command(*options, "--out", out, folder=tmp_path / "printed").end(600).code == 0
    assert map_files(out) == map_files(tmp_path / "undisturbed")
    assert timeless(out) == timeless(tmp_path / "undisturbed")


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_in_order_and_the_next_start_goes_on(
    options: tuple[object, ...], undisturbed: dict[str, bytes], tmp_path: Path, as_json: bool
) -> None:
    out = tmp_path / "run"
    options = (*options, "--out", out, *(["--json"] if as_json else []))
    command = Command(*options, folder=tmp_path / "printed")
    wait_for(out, 5)
    command.send(signal.SIGINT)
    ended = command.end()
    before = finished(out)
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    if as_json:
        assert ended.json()["interrupted"] and ended.json()["done_now"] == ended.json()["ok"] == len(before)
    else:
        assert f"{len(before)} of 80 images have maps" in ended.err
        assert ended.err.endswith("stopped; the same command goes on from here\n")
    assert 5 <= len(before) < 80
    assert Command(*options, folder=tmp_path / "printed").end().code == 0
    assert before.items() <= finished(out).items()
    assert map_files(out) == undisturbed


def test_a_finished_run_is_left_as_it_is(
    options: tuple[object, ...], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert Command(*options, "--out", out, folder=tmp_path / "printed").end().code == 0
    before, files = finished(out), [file for file in out.rglob("*") if file.is_file()]
    contents = [file.read_bytes() for file in files]
    again = Command(*options, "--out", out, "--json", folder=tmp_path / "printed").end()
    assert (again.code, again.json()["done_before"], again.json()["done_now"]) == (0, 80, 0)
    assert finished(out) == before
    assert len(before) == 80
    assert [file.read_bytes() for file in files] == contents

    (out / "maps" / "0" / "0.npz").unlink()
    os.truncate(out / "maps" / "1" / "1.npz", 100)
    repaired = Command(*options, "--out", out, "--json", folder=tmp_path / "printed").end()
    assert (repaired.code, repaired.json()["done_before"], repaired.json()["done_now"]) == (0, 78, 2)
    after = finished(out)
    assert {item for item in after if after[item] != before[item]} == {"0/0", "1/1"}
    assert map_files(out) == undisturbed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--set", "steps=3"), "climb.steps: 2 -> 3"),
        (("--set", "scales=1,2"), "climb.scales: [1.0] -> [1.0, 2.0]"),
        (("--full",), "full: false -> true"),
        (("--store", "uint8"), 'store: "fp16" -> "uint8"'),
        (("--preset", "general"), 'climb.preset: "cam" -> "general"'),
        (("--labels", "predicted"), 'labels.from: "given" -> "predicted"'),
        (("--dtype", "bf16"), 'climb.dtype: "fp32" -> "bf16"'),
    ],
)
def test_other_settings_are_refused(
    options: tuple[object, ...], tmp_path: Path, changed: tuple[str, ...], named: str
) -> None:
    out = tmp_path / "run"
    command = Command(*options, "--out", out, folder=tmp_path / "printed")
    wait_for(out, 2)
    command.send(signal.SIGKILL)
    command.end()
    before = finished(out)
    refused = Command(*options, "--out", out, *changed, folder=tmp_path / "printed").end()
    assert refused.code == 2
    assert named in refused.error and "another folder" in refused.error
    assert finished(out) == before


def test_other_weights_under_the_same_name_are_refused(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", [("0.png", "cat"), ("1.png", "dog")])
    weights = save_network(tmp_path / "net.safetensors")
    assert label(data, tmp_path / "run", "--weights", weights).code == 0
    assert label(data, tmp_path / "run", "--weights", save_network(weights)).code == 0
    save_network(weights, lambda tensors: tensors["classifier.1.bias"].add_(1))
    refused = label(data, tmp_path / "run", "--weights", weights)
    assert refused.code == 2
    assert "model.sha256: " in refused.error


def test_images_whose_tags_were_changed_are_done_again(label: Callable[..., Ended], tmp_path: Path) -> None:
    rows = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "dog;cat"), ("gone.png", "cat")]
    data, out = save_list(tmp_path / "photos", rows, photos=False), tmp_path / "run"
    for number in range(3):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    assert label(data, out).code == 3
    before = {item: (out / "maps" / f"{item}.npz").stat().st_mtime_ns for item in "012"}
    assert label(data, out).err.count("done again") == 0

    save_list(tmp_path / "photos", [("0.png", "dog"), ("1.png", "dog"), ("2.png", "cat"), ("gone.png", "dog")], False)
    ended = label(data, out)
    said = "3 images have other tags than when they were done and are done again (0: 'cat' -> 'dog', ...)"
    assert ended.code == 3 and said in ended.err
    after = {item: (out / "maps" / f"{item}.npz").stat().st_mtime_ns for item in "012"}
    assert {item for item in "012" if after[item] != before[item]} == {"0", "2"}
    fresh = tmp_path / "fresh"
    assert label(data, fresh).code == 3
    assert map_files(out) == map_files(fresh)
    assert {record.id: record.labels for record in RunFolder.read(out).records()} == {
        "0": ("dog",),
        "1": ("dog",),
        "2": ("cat",),
        "gone": ("dog",),
    }
    assert "done again" not in label(data, out).err


def test_damaged_maps_are_found_where_asked_for(label: Callable[..., Ended], tmp_path: Path) -> None:
    data, out = save_list(tmp_path / "photos", [("0.png", "cat"), ("1.png", "dog")]), tmp_path / "run"
    assert label(data, out).code == 0
    whole = map_files(out)
    with open(out / "maps" / "1.npz", "r+b") as file:
        file.seek(300)
        file.write(b"?")
    assert label(data, out, "--json").json()["done_now"] == 0 and map_files(out) != whole
    assert label(data, out, "--verify", "--json").json()["done_now"] == 1
    assert map_files(out) == whole


def test_a_second_run_in_one_folder_is_refused(
    options: tuple[object, ...], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = Command(*options, "--out", out, folder=tmp_path / "printed")
    wait_for(out, 2)
    first.send(signal.SIGSTOP)
    second = Command(*options, "--out", out, folder=tmp_path / "printed").end()
    first.send(signal.SIGCONT)
    assert second.code == 2
    assert "another process is writing here" in second.error
    assert first.end().code == 0
    assert map_files(out) == undisturbed
