import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from crash_writer import ITEMS, KILLS, SETTINGS, STAGES, arrays

from advcam_fast.store import RunFolder


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash")
    script = Path(__file__).with_name("crash_writer.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=100, env=environment)
    return folder


def finished(manifest: Path) -> list[str]:
    """Ids of the whole lines, read without the code under test."""
    if not manifest.exists():
        return []
    return [json.loads(line)["id"] for line in manifest.read_bytes().split(b"\n")[:-1]]


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(aftermath: Path) -> None:
    statuses = [int((aftermath / f"{attempt}.status").read_text()) for attempt in range(KILLS + 1)]
    assert statuses.count(signal.SIGKILL) == KILLS, "the writer was too fast or failed by itself"
    assert statuses[-1] == 0
    interrupted = 0
    before: set[str] = set()
    for attempt in range(KILLS + 1):
        log = aftermath / f"{attempt}.started"
        started = log.read_text().splitlines() if log.exists() else []
        after = finished(aftermath / f"{attempt}.jsonl")
        assert not before & set(started), "a finished item was done again"
        assert before <= set(after), "a finished item was lost"
        assert len(after) == len(set(after))
        interrupted += bool(started) and started[-1] not in after
        before = set(after)
    assert before == set(ITEMS)
    assert interrupted >= KILLS // 3, "the kills hardly ever struck while an item was being written"


def test_after_the_kills_every_file_is_whole_and_right(aftermath: Path) -> None:
    path = aftermath / "run"
    run = RunFolder.read(path, verify=True)
    failed = {item for number, item in enumerate(ITEMS) if number % 10 == 9}
    assert run.counts() == {"ok": len(ITEMS) - len(failed), "failed": len(failed)}
    assert {record.id for record in run.records() if record.status == "failed"} == failed
    for record in run.records():
        if record.status == "ok":
            number = ITEMS.index(record.id)
            assert hashlib.sha256(run.file_path(record.id).read_bytes()).hexdigest() == record.sha256
            maps = run.read_maps(record.id)
            assert maps["classes"].tolist() == [number, number + 1]
            assert np.abs(maps["initial"].numpy() - arrays(number)["initial"]).max() < 1e-3
    assert len(list((path / "maps").rglob("*"))) == run.counts()["ok"] + 7, "something was left behind"


@pytest.mark.parametrize("number", range(len(STAGES)))
def test_a_kill_at_each_stage_of_writing(aftermath: Path, number: int) -> None:
    path = aftermath / f"stage {number}"
    assert int((aftermath / f"stage {number}.status").read_text()) == signal.SIGKILL
    files = set((path / "maps").rglob("*.npz"))
    with RunFolder.open(path, SETTINGS) as run:
        landed = STAGES[number] == "after the manifest line"
        assert run.done_ids() == set(ITEMS[: 2 if landed else 1])
        assert files == {run.file_path(item) for item in ITEMS[: 1 if STAGES[number] == "before the rename" else 2]}
        if not landed:
            run.finish(ITEMS[1], arrays(1))
    assert [record.id for record in RunFolder.read(path, verify=True).records()] == ITEMS[:2]
    assert finished(path / "manifest" / "main.jsonl") == ITEMS[:2]
