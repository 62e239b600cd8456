"""Items worked on side by side: in order, with torch's threads shared out and given back; and refine does so."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_run
import torch

from advcam_fast.data import open_dataset
from advcam_fast.pipelines import refine as refining
from advcam_fast.pipelines.side_by_side import side_by_side
from advcam_fast.refine import RefineConfig
from advcam_fast.store import MaskFolder, RunFolder


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_as_many_as_torch_has_threads_work_at_once_and_come_in_order() -> None:
    meeting = threading.Barrier(3, timeout=20)  # broken unless three are there

    def work(number: int) -> int:
        meeting.wait()
        time.sleep(0.02 * (number % 3 == 0))  # the first of three ends last
        return 10 * number

    with side_by_side() as each:
        assert list(each(work, range(9))) == [(number, 10 * number) for number in range(9)]


def test_within_a_worker_torch_has_one_thread_and_three_again_afterwards() -> None:
    with side_by_side() as each:
        assert [threads for _, threads in each(lambda _: torch.get_num_threads(), range(6))] == [1] * 6
    assert torch.get_num_threads() == 3


def test_a_number_of_workers_leaves_torchs_threads_alone() -> None:
    with side_by_side(1) as each:
        found = list(each(lambda _: (torch.get_num_threads(), threading.get_ident()), range(4)))
    assert {threads for _, (threads, _) in found} == {3}
    assert len({worker for _, (_, worker) in found}) == 1


def test_what_waits_is_dropped_where_the_caller_fails() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.5 * (number > 0))

    with pytest.raises(KeyboardInterrupt), side_by_side() as each:
        for _ in each(work, range(1000)):
            raise KeyboardInterrupt
    assert len(begun) <= 4, "the first, which had ended, and three at work; not the seven that were asked for"
    assert torch.get_num_threads() == 3


def test_what_work_raises_reaches_the_caller() -> None:
    def work(number: int) -> int:
        return 1 // (number - 2)

    with side_by_side() as each:
        results = each(work, range(5))
        assert next(results) == (0, -1)
        assert next(results) == (1, -1)
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_only_a_few_are_worked_on_ahead() -> None:
    begun: list[int] = []
    with side_by_side() as each:
        results = each(begun.append, range(1000))
        next(results)
        time.sleep(0.1)
        assert len(begun) <= 2 * 3 + 1


def refined(made: sample_run.SampleRun, out: Path) -> dict[str, bytes]:
    run = RunFolder.read(made.path)
    with MaskFolder.open(out, {}) as masks:
        config = RefineConfig.preset("color-walk-crf")
        refining.refine_run(run, open_dataset(made.data), masks, refining.run_classes(run), config)
        assert masks.counts() == {"ok": len(sample_run.IMAGES), "failed": 0}
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.png")}


def test_refine_takes_images_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, meeting = sample_run.make_run(tmp_path), threading.Barrier(3, timeout=20)  # broken unless three are there
    before = refining.mask_of
    monkeypatch.setattr(refining, "mask_of", lambda *given: (meeting.wait(), before(*given))[1])
    refined(made, tmp_path / "masks")


def test_refine_makes_the_same_masks_with_any_number_of_threads(tmp_path: Path) -> None:
    made = sample_run.make_run(tmp_path)
    three = refined(made, tmp_path / "three")
    torch.set_num_threads(1)
    assert refined(made, tmp_path / "one") == three
