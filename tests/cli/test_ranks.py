"""Several processes on one run, as torchrun starts them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import (
    FAST,
    Command,
    Ended,
    finished,
    map_files,
    save_list,
    save_photo,
    start_ranks,
    timeless,
    wait_for,
)

COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of different sizes and numbers of tags, the largest first; one of them is missing."""
    folder = tmp_path_factory.mktemp("photos")
    rows = [(f"{i % 3}/{i}.png", "dog;cat" if i < 4 else "dog") for i in range(COUNT)]
    for i, (image, _) in enumerate(rows[:-1]):
        save_photo(folder / image, i, (90, 90) if i < 4 else (33 + i % 9, 40))
    return save_list(folder, rows, photos=False)


@pytest.fixture
def options(photos: str, network: Path) -> tuple[object, ...]:
    return ("label", "--data", photos, "--model", "squeezenet1_1", "--weights", network, "--preset", "cam", *FAST)


@pytest.fixture
def alone(options: tuple[object, ...], tmp_path: Path) -> Path:
    assert Command(*options, "--out", tmp_path / "alone", folder=tmp_path / "printed").end().code == 3
    return tmp_path / "alone"


def test_two_ranks_write_what_one_process_does(options: tuple[object, ...], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = (rank.end() for rank in start_ranks(2, *options, "--out", out, "--json", folder=tmp_path))
    assert (first.code, second.code, second.out, second.err) == (3, 0, "", "")
    summary = first.json()
    assert (summary["ok"], summary["failed"], summary["done_now"]) == (COUNT - 1, 1, COUNT)
    assert map_files(out) == map_files(alone)
    assert timeless(out) == timeless(alone)
    shares = {part.stem: part.read_text().splitlines() for part in (out / "manifest").glob("*.jsonl")}
    assert Counter(json.loads(line)["labels"] == ["dog", "cat"] for line in shares["rank1"])[True] == 2, (
        "the four large images are half of the work and all the first in the list"
    )
    assert min(map(len, shares.values())) >= 8


def test_a_run_goes_on_with_another_number_of_ranks(options: tuple[object, ...], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(3, *options, "--out", out, folder=tmp_path / "first")
    wait_for(out, 5)
    for rank in ranks:
        rank.send(signal.SIGKILL)
    for rank in ranks:
        rank.end()
    before = finished(out)
    assert 5 <= len(before) < COUNT - 1
    codes = [rank.end().code for rank in start_ranks(2, *options, "--out", out, folder=tmp_path / "second")]
    assert codes == [3, 0]
    assert {item: finished(out)[item] for item in before} == before, "a finished item was done again"
    assert map_files(out) == map_files(alone) and timeless(out) == timeless(alone)


def test_where_the_first_is_refused_all_end(options: tuple[object, ...], alone: Path, tmp_path: Path) -> None:
    ranks = [rank.end() for rank in start_ranks(2, *options, "--out", alone, "--full", folder=tmp_path)]
    assert [rank.code for rank in ranks] == [2, 2]
    assert "error: rank 0: " in ranks[0].error and "full: false -> true" in ranks[0].error
    assert ranks[1].err == ""


def test_a_run_is_refused_while_any_rank_of_another_writes(options: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(2, *options, "--out", out, folder=tmp_path / "first")
    wait_for(out, 2)
    for rank in ranks:
        rank.send(signal.SIGSTOP)
    for held in ("main.lock", "rank1.lock"):
        refused = Command(*options, "--out", out, folder=tmp_path / "second").end()
        assert refused.code == 2 and f"another process is writing here (it holds {held})" in refused.error
        ranks[0].send(signal.SIGKILL)
        ranks[0].end()
    ranks[1].send(signal.SIGCONT)
    left = ranks[1].end()
    assert left.code == 1
    assert re.search("rank 1: another process of this torchrun has ended .*; the same command goes on", left.error)


def test_a_change_of_tags_is_done_again_by_the_rank_whose_share_it_is(
    label: Callable[..., Ended], network: Path, tmp_path: Path
) -> None:
    rows = [(f"{i}.png", "dog" if i < 3 else "cat") for i in range(6)]
    data, out = save_list(tmp_path / "photos", rows), tmp_path / "run"
    assert label(data, out).code == 0
    save_list(tmp_path / "photos", [(f"{i}.png", "cat" if i < 3 else "dog") for i in range(6)])
    given = ("label", "--data", data, "--model", "squeezenet1_1", "--weights", network, "--preset", "cam", *FAST)
    assert [rank.end().code for rank in start_ranks(2, *given, "--out", out, folder=tmp_path / "printed")] == [0, 0]
    assert label(data, tmp_path / "fresh").code == 0
    assert map_files(out) == map_files(tmp_path / "fresh")
    assert label(data, out, "--json").json()["done_now"] == 0


def test_torchrun_itself(options: tuple[object, ...], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "advcam_fast")
    command = [sys.executable, *torchrun, *map(str, options), "--out", str(out)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200, check=False
    )
    assert ended.returncode == 1, "torchrun has one code for all that is not 0: here for the missing image"
    assert ended.stderr.count(f"{out}: {COUNT - 1} of {COUNT} images have maps, 1 failed") == 1, ended.stderr
    assert map_files(out) == map_files(alone) and timeless(out) == timeless(alone)
