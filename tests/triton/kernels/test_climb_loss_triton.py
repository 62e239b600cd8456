from __future__ import annotations

from importlib import import_module
from itertools import product

import pytest
import torch
from guarded import Guarded
from tolerances import close
from torch import Tensor

from advcam_fast.ops import reference
from advcam_fast.ops.triton import climb_loss

FIELDS = ("objective", "gradient", "pair_map", "mask", "score")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = [(1, 1, 1), (20, 5, 7), (33, 3, 2), (20, 1, 1), (1, 5, 7), (33, 1, 4), (2, 6, 3)]  # classes, height, width
# every setting once, with the sizes in turn: 7 of them, so that none is bound to one value of a setting
CASES = [
    (*setting, SIZES[i % len(SIZES)])
    for i, setting in enumerate(product(DTYPES, LAYOUTS, (1, 2), (True, False), (True, False)))
]


def _inputs(
    device: str,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    group_size: int,
    layout: str = "contiguous",
    groups: int = 3,
) -> list[Tensor]:
    """logit_map, target, weight, positive, initial_map."""
    classes, height, width = size
    generator = torch.Generator().manual_seed(classes + height)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z = torch.randn(groups * group_size, *size, generator=generator, dtype=torch.float64).to(device, dtype)
    weight = torch.randint(-1, 2, (groups, classes), generator=generator).to(device, wide)
    target = torch.tensor([classes - 1, 0, classes // 2])[:groups].to(device)
    positive = torch.randint(1, 1000, (groups,), generator=generator).to(device, wide)
    initial = torch.rand(groups, height, width, generator=generator, dtype=torch.float64).to(device, wide) * 0.01
    return [z.to(memory_format=LAYOUTS[layout]), target, weight, positive, initial]


def _check(guarded: Guarded, inputs: list[Tensor | None], group_size: int, rectify: bool = True) -> list[Tensor]:
    z, target, *rest = inputs
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    options = (7.0, 0.4, rectify, group_size)
    want = reference.climb_loss(z.double(), target, *(t if t is None else t.double() for t in rest), *options)
    with guarded:
        got = climb_loss(*(t if t is None else guarded.copy(t) for t in inputs), *options)
    for name, result, expected in zip(FIELDS, got, want, strict=True):
        if name == "mask":
            assert torch.equal(result, expected)
        else:
            assert result.dtype == (z.dtype if name == "gradient" else wide), name
            close(result, expected)
    assert got[1].stride() == z.stride()
    return list(got)


@pytest.mark.parametrize(("dtype", "layout", "group_size", "rectify", "regularised", "size"), CASES, ids=str)
def test_values(guarded, device, dtype, layout, group_size, rectify, regularised, size) -> None:
    inputs = _inputs(device, dtype, size, group_size, layout)
    _check(guarded, inputs if regularised else [*inputs[:-1], None], group_size, rectify)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_blocks_a_program(guarded, device, layout, monkeypatch) -> None:
    module = import_module("advcam_fast.ops.triton.climb_loss")
    monkeypatch.setattr(module, "_PAIR_BLOCK", 16)
    monkeypatch.setattr(module, "_TILE", 64)
    monkeypatch.setattr(module, "_OBJECTIVE_BLOCK", 16)
    _check(guarded, _inputs(device, torch.float64, (33, 5, 7), 2, layout), 2)


@pytest.mark.parametrize("group_size", [1, 2])
def test_no_positive_position_gives_zeros_and_no_nan(guarded, device, group_size) -> None:
    inputs = _inputs(device, torch.float32, (4, 3, 5), group_size)
    inputs[0] = -inputs[0].abs()
    _, _, pair_map, mask, _ = _check(guarded, inputs, group_size)
    assert not pair_map.any()
    assert not mask.any()


def test_nan_stays_in_its_group(guarded, device) -> None:
    inputs = _inputs(device, torch.float32, (4, 3, 5), 2)
    clean = climb_loss(*inputs, 7.0)
    inputs[0][3, :, 1, 2] = float("nan")
    dirty = _check(guarded, inputs, 2)
    assert dirty[0].isnan().tolist() == [False, True, False]
    again = climb_loss(*inputs, 7.0)
    for a, b in zip(clean, again, strict=True):
        a, b = a.unflatten(0, (3, -1)), b.unflatten(0, (3, -1))
        assert torch.equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_batch(device, layout) -> None:
    z, *rest = _inputs(device, torch.float32, (20, 5, 7), 2, layout)
    together = climb_loss(z, *rest, 7.0)
    alone = climb_loss(z[2:4].clone(), *(t[1:2].clone() for t in rest), 7.0)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b.unflatten(0, (3, -1))[1])


def test_no_groups(device) -> None:
    z = torch.zeros(0, 4, 3, 5, device=device)
    got = climb_loss(z, torch.zeros(0, dtype=torch.int64, device=device), z[:, :, 0, 0], z[:, 0, 0, 0])
    assert [tuple(t.shape) for t in got] == [(0,), (0, 4, 3, 5), (0, 3, 5), (0, 3, 5), (0, 4)]
