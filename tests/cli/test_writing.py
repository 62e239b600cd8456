"""Maps are written while others are climbed, in order, and not after a write that failed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import save_list

from advcam_fast import CamModel, ClimbConfig
from advcam_fast.climb import MapMaker
from advcam_fast.data import open_dataset
from advcam_fast.pipelines import label
from advcam_fast.store import RunFolder, StoreError

ROWS = [(f"{number}.png", "0") for number in range(12)]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple]:
    data = open_dataset(save_list(tmp_path / "photos", ROWS))
    model = CamModel(lambda images: images, torch.ones(2, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    maker = MapMaker(model, ClimbConfig(steps=1, scales=(1.0,), steps_at_scale={}))
    with RunFolder.open(tmp_path / "run", {}) as run:
        yield data, maker, run


def test_a_slow_disk_is_waited_for_by_a_few_maps_only(parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    data, maker, run = parts
    climbed, gate, finish = [], threading.Event(), run.finish_encoded
    compute = maker.compute

    def counted(*given):
        climbed.append(given)
        if len(climbed) == label.WRITTEN_LATER + 1:
            gate.set()  # nothing is on the disk yet, and climbing went on
        return compute(*given)

    def slow(*given, **more):
        assert gate.wait(20)
        finish(*given, **more)

    monkeypatch.setattr(maker, "compute", counted)
    monkeypatch.setattr(run, "finish_encoded", slow)
    told = []
    label.label_dataset(
        data, label.Labeller(maker, label.LabelRule(), {"0": 0}), run, report=lambda p: told.append((p, len(climbed)))
    )
    assert [progress.item_id for progress, _ in told] == [str(number) for number in range(12)]
    assert [progress.done for progress, _ in told] == list(range(1, 13))
    assert max(ahead - progress.done for progress, ahead in told) <= label.WRITTEN_LATER
    assert run.counts() == {"ok": 12, "failed": 0}


def test_after_a_write_that_fails_there_is_no_other(parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    data, maker, run = parts
    finish, tried = run.finish_encoded, []

    def failing(item_id, *given, **more):
        tried.append(item_id)
        if item_id == "2":
            raise StoreError("the disk is full")
        finish(item_id, *given, **more)

    monkeypatch.setattr(run, "finish_encoded", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        label.label_dataset(data, label.Labeller(maker, label.LabelRule(), {"0": 0}), run)
    assert tried == ["0", "1", "2"]
    assert run.counts() == {"ok": 2, "failed": 0}


def test_an_interrupt_leaves_nothing_half_done(parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised where the progress is shown, between two items, with others on their way to the disk."""
    data, maker, run = parts
    finish = run.finish_encoded
    monkeypatch.setattr(run, "finish_encoded", lambda *given, **more: (time.sleep(0.05), finish(*given, **more)))

    def interrupt(progress: label.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label.label_dataset(data, label.Labeller(maker, label.LabelRule(), {"0": 0}), run, report=interrupt)
    now = run.counts()["ok"]
    time.sleep(0.3)
    assert run.counts()["ok"] == now > 1
