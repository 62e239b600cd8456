from __future__ import annotations

from importlib import import_module

import pytest
import torch
from guarded import Guarded
from tolerances import close
from torch import Tensor

from advcam_fast.ops import reference
from advcam_fast.ops.triton import cam_accumulate

# (map sizes, size resized to, size of total)
CASES = {
    "scales": ([(3, 4), (5, 7), (9, 13)], (16, 20), (11, 17)),
    "equal": ([(5, 7), (5, 7)], (5, 7), (5, 7)),
    "equal, cropped": ([(5, 7)], (5, 7), (4, 6)),
    "one pixel": ([(1, 1)], (1, 1), (1, 1)),
    "from one pixel": ([(1, 1), (1, 3)], (4, 5), (4, 5)),
    "to one pixel": ([(3, 4)], (1, 1), (1, 1)),
    "one row": ([(1, 4), (2, 4)], (1, 9), (1, 9)),
    "shrinks": ([(17, 19)], (5, 6), (5, 5)),
    "no maps": ([], (4, 5), (4, 5)),
    "eight scales": ([(k, 9 - k) for k in range(1, 9)], (8, 8), (8, 7)),
    "several tiles": ([(6, 20)], (20, 160), (19, 150)),
}


def _inputs(name: str, dtype: torch.dtype, device: str, count: int = 2) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
    generator = torch.Generator().manual_seed(len(name))
    map_sizes, size, cropped = CASES[name]
    maps = [torch.rand(count, *shape, generator=generator, dtype=dtype).to(device) for shape in map_sizes]
    return maps, torch.rand(count, *cropped, generator=generator, dtype=dtype).to(device), size


def _check(guarded: Guarded, maps: list[Tensor], total: Tensor, size: tuple[int, int], normalise: bool) -> Tensor:
    want = reference.cam_accumulate([m.double() for m in maps], total.to(torch.float64, copy=True), size, normalise)
    got = guarded.copy(total)
    with guarded:
        assert cam_accumulate([guarded.copy(m) for m in maps], got, size, normalise) is got
    close(got, want)
    return got


@pytest.mark.parametrize("normalise", [False, True], ids=["sum", "normalised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(guarded, device, name, dtype, normalise) -> None:
    _check(guarded, *_inputs(name, dtype, device), normalise)


def test_several_tiles_a_program(guarded, device, monkeypatch) -> None:
    module = import_module("advcam_fast.ops.triton.cam_accumulate")
    monkeypatch.setattr(module, "_TILE", 32)
    monkeypatch.setattr(module, "_TILE_WIDTH", 8)
    monkeypatch.setattr(module, "_MAX_PARTS", 2)
    _check(guarded, *_inputs("scales", torch.float64, device), True)


def test_far_from_the_origin_the_fraction_keeps_its_digits(guarded, device) -> None:
    ramp = torch.arange(3000, dtype=torch.float32, device=device) % 2
    total = torch.zeros(1, 1, 9001, device=device)
    _check(guarded, [ramp[None, None]], total, (1, 9001), False)


def test_nan_and_infinity_stay_in_their_map(guarded, device) -> None:
    maps, total, size = _inputs("scales", torch.float32, device, count=3)
    clean = cam_accumulate(maps, total.clone(), size, True)
    maps[1][1, 2, 3] = float("nan")
    got = cam_accumulate(maps, total, size, True)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


def test_equal_sizes_are_a_plain_addition(guarded, device) -> None:
    maps, total, size = _inputs("equal", torch.float32, device)
    maps[0][0, 2, 3] = float("inf")
    assert torch.equal(cam_accumulate(maps, total.clone(), size), total + maps[0] + maps[1])


def test_zeros_stay_zero(guarded, device) -> None:
    assert not cam_accumulate(
        [torch.zeros(2, 3, 4, device=device)], torch.zeros(2, 5, 6, device=device), (5, 6), True
    ).any()


def test_bits_do_not_depend_on_the_batch(device) -> None:
    maps, total, size = _inputs("scales", torch.float32, device, count=3)
    alone = cam_accumulate([m[1:2].clone() for m in maps], total[1:2].clone(), size, True)
    assert torch.equal(alone, cam_accumulate(maps, total, size, True)[1:2])


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6)])
def test_nothing_to_do(device, shape) -> None:
    total = torch.zeros(shape, device=device)
    assert cam_accumulate([torch.zeros(shape[0], 3, 4, device=device)], total, (5, 6), True) is total


def test_side_beyond_32_bit_coordinates_is_refused(device) -> None:
    with pytest.raises(ValueError, match="a side of 32768; at most 32767"):
        cam_accumulate([torch.zeros(1, 1, 1, device=device)], torch.zeros(1, 1, 1, device=device), (1, 32768))
