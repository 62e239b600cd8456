"""Steps recorded once and replayed: what a CUDA graph does is played here; the graphs themselves need a GPU."""

import dataclasses

import pytest
import torch
from networks import photo, tensor, tiny

from advcam_fast import ClimbConfig
from advcam_fast.climb import MapMaker
from advcam_fast.climb.replay import Replay

PAPER = ClimbConfig(steps=7, scales=(1.0,), steps_at_scale={})
IMAGES = [tensor(photo(30, 41, seed)) for seed in range(3)]
LABELS = [[0, 2], [1, 3], [4, 2]]


def played(replay):
    """As a GPU has it: while it is recorded a step changes nothing; a replay works on the very same memory."""
    counts = {"recorded": 0, "replayed": 0}

    def capture(step):
        cells = [cell.cell_contents for cell in step.__closure__]
        inner = [
            cell.cell_contents for found in cells if callable(found) and found.__closure__ for cell in found.__closure__
        ]
        written = {id(t): t for t in [*cells, *inner] if isinstance(t, torch.Tensor)}.values()
        before = [t.detach().clone() for t in written]
        result = step()
        for tensor_, value in zip(written, before, strict=True):
            tensor_.detach().copy_(value)
        counts["recorded"] += 1
        result.fill_(-1)  # nothing is there before the first replay

        def again():
            counts["replayed"] += 1
            result.copy_(step())

        return again, result

    replay.wanted = True
    replay._capture = capture
    return counts


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("max_pairs", [1, 4])
def test_replayed_climbs_are_those_that_were_launched(dtype, max_pairs):
    config = dataclasses.replace(PAPER, dtype=dtype)
    model = tiny()
    plain, recording = MapMaker(model, config, max_pairs), MapMaker(model, config, max_pairs)
    counts = played(recording.climber.replay)
    want, got = (maker.compute(IMAGES, LABELS) for maker in (plain, recording))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.full, other.full)
        assert one.flags == other.flags == ()
    assert counts["recorded"] == {1: 6, 4: 2}[max_pairs]  # each pair; or two images of two labels, and one
    assert counts["replayed"] == counts["recorded"] * 4  # of 7 maps: the clean one, one launched, four, the last


def test_the_steepest_gradient_of_every_step_is_kept():
    model = tiny()
    plain, recording = MapMaker(model, PAPER), MapMaker(model, PAPER)
    played(recording.climber.replay)
    labels = torch.tensor([[1]])
    want, got = (maker.climber.climb(IMAGES[:1], labels, 7, 1).steepest for maker in (plain, recording))
    assert torch.equal(got, want)
    assert len(set(got.flatten().tolist())) == 6, "one buffer read six times would be six equal numbers"


@pytest.mark.parametrize(("steps", "recorded"), [(2, 0), (5, 0), (6, 1)])
def test_few_steps_are_not_worth_recording(steps, recorded):
    maker = MapMaker(tiny(), dataclasses.replace(PAPER, steps=steps))
    counts = played(maker.climber.replay)
    maker.compute(IMAGES[:1], [[1]])
    assert counts == {"recorded": recorded, "replayed": 3 * recorded}


def test_what_cannot_be_recorded_is_launched_and_said_once():
    model = tiny()
    maker = MapMaker(model, PAPER)
    replay, tried = maker.climber.replay, []

    def refuse(step):
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    replay.wanted, replay._capture = True, refuse
    with pytest.warns(UserWarning, match="no CUDA graphs, steps are launched one by one: RuntimeError: operation not"):
        got = maker.compute(IMAGES[:2], LABELS[:2])
    assert len(tried) == 1, "what failed once is not tried again"
    assert replay.problem == "RuntimeError: operation not permitted when stream is capturing"
    for result, want in zip(got, MapMaker(model, PAPER).compute(IMAGES[:2], LABELS[:2]), strict=True):
        assert torch.equal(result.full, want.full)


def test_too_little_memory_for_a_recording_is_no_reason_to_give_up():
    replay = Replay(torch.device("cpu"))
    tried = []

    def crowded(step):
        tried.append(step)
        raise torch.cuda.OutOfMemoryError("planted")

    replay.wanted, replay._capture = True, crowded
    step = lambda: torch.ones(1)  # noqa: E731
    assert replay.recorded(step, 9) is step
    assert replay.recorded(step, 9) is step
    assert len(tried) == 2
    assert not replay.problem


def test_a_cpu_records_nothing(monkeypatch):
    assert not Replay(torch.device("cpu")).wanted
    assert Replay(torch.device("cuda")).wanted
    monkeypatch.setenv("ADVCAM_CUDA_GRAPHS", "0")
    assert not Replay(torch.device("cuda")).wanted
