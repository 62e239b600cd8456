"""A run that several processes write, each its own part of the manifest."""

from pathlib import Path

import numpy as np
import pytest

from advcam_fast.errors import UsageError
from advcam_fast.store import RunFolder

SETTINGS = {"data": "folder:photos"}


def maps(seed: int = 0, size: int = 12) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).random((2, size, size), dtype=np.float32)
    return {"classes": np.array([3, 5]), "strided": values[:, ::4, ::4], "initial": values}


def test_the_first_part_is_refused_while_another_is_open(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        run.finish("a", maps())
    with (
        RunFolder.open(tmp_path, SETTINGS, part="rank1"),
        pytest.raises(UsageError, match=r"another process is writing here \(it holds rank1.lock\)"),
    ):
        RunFolder.open(tmp_path, SETTINGS)
    (tmp_path / "maps" / ".tmp-rank1" / "left by a kill").mkdir(parents=True)
    with RunFolder.open(tmp_path, SETTINGS):
        assert not (tmp_path / "maps" / ".tmp-rank1").exists()


def test_an_item_done_again_by_another_part_is_as_it_was_last(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS, part="z") as run:
        run.finish("a", maps(0), labels=["old"])
        run.finish("b", maps(0))
        run.fail("c", "no disk")
    with RunFolder.open(tmp_path, SETTINGS, retry_failed=True) as run:
        assert run.done_ids() == {"a", "b"}
        run.redo({"a", "b", "never seen"})
        assert run.done_ids() == frozenset() and run.counts() == {"ok": 2, "failed": 1}
        run.finish("a", maps(1, size=16), labels=["new"])
        run.fail("b", "gone")
        run.finish("c", maps(2))
        assert run.done_ids() == {"a", "b", "c"}
    for again in (run, RunFolder.read(tmp_path, verify=True)):
        assert again.counts() == {"ok": 2, "failed": 1}
        assert {record.id: (record.status, record.labels) for record in again.records()} == {
            "a": ("ok", ("new",)),
            "b": ("failed", ()),
            "c": ("ok", ()),
        }
    assert {file.name for file in (tmp_path / "maps").iterdir()} == {"a.npz", "c.npz"}, (
        "the file of an item that failed later is no map of it"
    )


def test_a_run_sees_what_other_parts_have_finished_since(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run, RunFolder.open(tmp_path, SETTINGS, part="rank1") as other:
        other.finish("a", maps())
        assert run.counts() == {"ok": 0, "failed": 0}
        run.reload()
        assert run.counts() == {"ok": 1, "failed": 0}
