"""Disks that are full, folders that are not ours: one line, and the next start goes on."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import FAST, Command, Ended, finished, manifest, map_files, save_list, save_photo, wait_for

from advcam_fast.data import open_dataset

ROWS = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "cat"), ("3.png", "dog")]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    label: Callable[..., Ended], tmp_path: Path, as_json: bool
) -> None:
    save_photo(tmp_path / "photos" / "2.png", 2, (120, 120))  # its map file alone is too large
    data = save_list(tmp_path / "photos", ROWS)
    out = tmp_path / "run"
    ended = label(data, out, *(["--json"] if as_json else []), limits={resource.RLIMIT_FSIZE: 16_000})
    assert ended.code == 1
    assert ended.error.endswith("2.npz: cannot be written: File too large")
    assert ended.out == ""
    before = {name: (out / "maps" / name).stat().st_mtime_ns for name in map_files(out)}
    assert sorted(before) == ["0.npz", "1.npz"] and list(manifest(out)) == ["0", "1"]
    assert label(data, out).code == 0
    assert list(manifest(out)) == ["0", "1", "2", "3"]
    assert before == {name: (out / "maps" / name).stat().st_mtime_ns for name in before}


def test_a_disk_that_cannot_hold_the_demo(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("demo", "--preset", "cam", "--out", tmp_path / "demo", limits={resource.RLIMIT_FSIZE: 50_000})
    assert ended.code == 1
    assert "File too large" in ended.error


@pytest.mark.parametrize("verb", ["label", "demo"])
def test_a_folder_that_may_not_be_written(
    label: Callable[..., Ended], run: Callable[..., Ended], tmp_path: Path, verb: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    start = run if verb == "demo" else label
    arguments = ("demo", "--out") if verb == "demo" else (save_list(tmp_path / "photos", ROWS),)
    ended = start(*arguments, closed / "run", powerless=os.geteuid() == 0)
    assert ended.code == (1 if verb == "demo" else 2)
    assert "Permission denied" in ended.error and str(closed / "run") in ended.error


def test_data_that_vanishes_ends_the_run_and_the_next_goes_on(
    run: Callable[..., Ended], network: Path, tmp_path: Path
) -> None:
    """A drive that is gone is not thousands of images that failed."""
    photos, out = tmp_path / "photos", tmp_path / "run"
    data = save_list(photos, [(f"{i}.png", "cat") for i in range(60)])
    given = ("label", "--data", data, "--model", "squeezenet1_1", "--weights", network, "--preset", "cam", *FAST)
    command = Command(*given, "--out", out, folder=tmp_path / "printed")
    wait_for(out, 3)
    photos.rename(tmp_path / "unmounted")
    ended = command.end()
    assert ended.code == 1
    assert ended.error.endswith("labels.csv: the data set is not there any more")
    before = finished(out)
    assert 3 <= len(before) < 60 and set(manifest(out)) == set(before), "an image was recorded as failed"
    (tmp_path / "unmounted").rename(photos)
    assert run(*given, "--out", out).code == 0
    assert len(manifest(out)) == 60 and before.items() <= finished(out).items()


@pytest.mark.parametrize("empty", [False, True])
def test_a_data_set_knows_whether_it_is_there(tmp_path: Path, empty: bool) -> None:
    save_photo(tmp_path / "photos" / "0.png", 0)
    dataset = open_dataset(f"folder:{tmp_path / 'photos'}")
    assert dataset.is_there()
    (tmp_path / "photos" / "0.png").unlink()
    if not empty:  # what is left of a mounted drive is an empty folder
        (tmp_path / "photos").rmdir()
    assert not dataset.is_there()


def test_data_that_may_only_be_read(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    (tmp_path / "photos").chmod(0o555)
    assert label(data, tmp_path / "run", powerless=os.geteuid() == 0).code == 0
    assert len(map_files(tmp_path / "run")) == 4


def test_a_folder_with_other_files_is_left_alone(label: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    ended = label(save_list(tmp_path / "photos", ROWS), tmp_path / "mine")
    assert ended.code == 2
    assert "is no run folder and not empty (it holds 'thesis.tex'): choose another folder" in ended.error
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "mine" / "maps").exists()


@pytest.mark.parametrize("place", ["taken", "taken/run"])
def test_a_file_where_the_run_should_be(label: Callable[..., Ended], tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("a file")
    ended = label(save_list(tmp_path / "photos", ROWS), tmp_path / place)
    assert ended.code == 2
    assert "no run can be written here" in ended.error


def test_a_damaged_run_toml_is_said(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    assert label(data, tmp_path / "run").code == 0
    (tmp_path / "run" / "run.toml").write_bytes(b"\x00\xff = [")
    ended = label(data, tmp_path / "run")
    assert ended.code == 2
    assert "run.toml" in ended.error


def test_a_reader_that_goes_away_is_no_traceback(label: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS)
    ended = label(data, tmp_path / "run", "--json", listening=False)
    assert "Traceback" not in ended.err
    assert len(manifest(tmp_path / "run")) == 4
