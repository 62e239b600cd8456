from __future__ import annotations

from importlib import import_module

import pytest
import torch
from guarded import Guarded
from tolerances import close
from torch import Tensor

from advcam_fast.ops import reference
from advcam_fast.ops.triton import climb_step

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [(F32, F32, None), (F32, BF16, BF16), (F32, F16, F16), (F64, F64, None), (F64, F64, F32)]
SHAPES = [
    ((4, 3, 5, 7), 2),
    ((3, 3, 4, 4), 1),
    ((2, 3, 1, 1), 2),
    ((1, 1, 1, 1), 1),
    ((0, 3, 4, 4), 2),
    ((2, 3, 0, 4), 1),
]


def _inputs(shape: tuple[int, ...], device: str, image: torch.dtype = F32, gradient: torch.dtype = F32):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=F64).to(device, image)
    return x, torch.randn(shape, generator=generator, dtype=F64).to(device, gradient) * 1e-3


def _check(guarded: Guarded, x: Tensor, g: Tensor, network: torch.dtype | None, group_size: int) -> None:
    want = x.to(F64, copy=True)
    want_largest = reference.climb_step(want, g.double(), 0.08, group_size)
    got = guarded.copy(x)
    network_input = None if network is None else guarded.copy(torch.empty_like(x, dtype=network))
    with guarded:
        largest = climb_step(got, guarded.copy(g), 0.08, group_size, network_input)
    close(got, want)
    close(largest, want_largest.to(largest.dtype), x.dtype)
    if network_input is not None:
        if (
            network == BF16 and not got.is_cuda
        ):  # the interpreter cuts off where a GPU rounds; test_ahead_of_time.py looks
            got = (got.view(torch.int32) & ~0xFFFF).view(F32)
        assert torch.equal(network_input, got.to(network))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("image", "gradient", "network"), DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "group_size"), SHAPES, ids=str)
def test_values(guarded, device, shape, group_size, image, gradient, network, layout) -> None:
    x, g = _inputs(shape, device, image, gradient)
    _check(guarded, x.to(memory_format=layout), g.to(memory_format=layout), network, group_size)


@pytest.mark.parametrize("image", [F32, F64], ids=str)
def test_several_blocks_a_program(guarded, device, image, monkeypatch) -> None:
    module = import_module("advcam_fast.ops.triton.climb_step")
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(module, "_MAX_PARTS", 4)
    monkeypatch.setattr(module, "_MAX_STEP_PROGRAMS", 3)
    _check(guarded, *_inputs((4, 3, 5, 7), device, image, image), None, 2)


def test_full_blocks(guarded, device) -> None:
    _check(guarded, *_inputs((1, 3, 19, 41), device), BF16, 1)


@pytest.mark.parametrize("shift", [5, -5])
def test_bounds_are_the_images_own(guarded, device, shift) -> None:
    x, g = _inputs((2, 3, 5, 7), device)  # 210 elements in a block of 256
    _check(guarded, x + shift, -shift * g.abs(), None, 2)


@pytest.mark.parametrize("bad", ["gradient", "image"])
def test_nan_makes_its_group_nan_and_no_other(device, bad) -> None:
    x, g = _inputs((6, 3, 5, 7), device)
    want = x.clone()
    climb_step(want, g, 0.08)
    (g if bad == "gradient" else x)[3, 1, 2, 3] = float("nan")
    largest = climb_step(x, g, 0.08)
    assert x[2:4].isnan().all()
    assert torch.equal(x[[0, 1, 4, 5]], want[[0, 1, 4, 5]])
    assert largest.isnan().tolist() == [False, bad == "gradient", False]


def test_zero_gradient_moves_nothing(device) -> None:
    x, g = _inputs((2, 3, 5, 7), device)
    before = x.clone()
    assert climb_step(x, torch.zeros_like(g), 0.08).tolist() == [0.0]
    assert torch.equal(x, before)


def test_bits_do_not_depend_on_the_batch(device) -> None:
    x, g = _inputs((6, 3, 5, 7), device)
    alone, alone_gradient = x[2:4].clone(), g[2:4].clone()
    together = climb_step(x, g, 0.08)
    assert torch.equal(climb_step(alone, alone_gradient, 0.08), together[1:2])
    assert torch.equal(alone, x[2:4])


def test_group_beyond_32_bit_offsets_is_refused(device) -> None:
    image = torch.zeros(1, device=device).expand(1, 2**30 + 1)
    with pytest.raises(ValueError, match="a group of 1073741825 elements; at most 1073741824"):
        climb_step(image, image, 0.08, 1)
