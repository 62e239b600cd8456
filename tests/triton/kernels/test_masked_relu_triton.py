from __future__ import annotations

from importlib import import_module
from itertools import product

import pytest
import torch
from guarded import Guarded
from tolerances import close
from torch import Tensor

from advcam_fast.ops import reference
from advcam_fast.ops.triton import masked_relu, masked_relu_backward

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(2, 24, 5, 7), (3, 16, 4, 4), (1, 5, 3, 3), (2, 3, 1, 1), (1, 1, 1, 1), (9, 21), (40, 64)]
OPTIONS = [(*on, ceiling) for on in product([True, False], repeat=3) for ceiling in (float("inf"), 6.0)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, exact: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, bias, residual, valid. exact: eighths whose sums no dtype rounds, with many a sum of just 0 or 6."""
    generator = torch.Generator().manual_seed(sum(shape))

    def values(*size: int) -> Tensor:
        if exact:
            return torch.randint(-32, 33, size, generator=generator).double() / 8
        return torch.randn(size, generator=generator, dtype=torch.float64) * 3

    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, residual = (values(*shape).to(device, dtype).contiguous(memory_format=layout) for _ in range(2))
    valid = torch.rand(shape[:1] + shape[2:], generator=generator) < 0.7
    return x, values(shape[1]).to(device, wide), residual, valid.to(device)


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float64, copy=True)


def _check(
    guarded: Guarded, x: Tensor, bias: Tensor | None, residual: Tensor | None, ceiling: float, valid: Tensor | None
) -> Tensor:
    want = x.to(torch.float64, copy=True)
    wanted_bits = reference.masked_relu(want, _wide(bias), _wide(residual), ceiling, valid)
    got, *others = (None if t is None else guarded.copy(t) for t in (x, bias, residual, valid))
    gradient = guarded.copy(torch.empty_like(x).copy_(torch.arange(1.0, x.numel() + 1).view(x.shape)))
    wanted_gradient = reference.masked_relu_backward(gradient.clone(), wanted_bits)
    with guarded:
        bits = masked_relu(got, others[0], others[1], ceiling, others[2])
        assert masked_relu_backward(gradient, bits) is gradient
    close(got, want)
    assert torch.equal(bits, wanted_bits)
    assert torch.equal(gradient, wanted_gradient)
    return got


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(guarded, device, shape, dtype) -> None:
    for with_bias, with_residual, with_valid, ceiling in OPTIONS:
        x, bias, residual, valid = _inputs(shape, dtype, device)
        _check(
            guarded,
            x,
            bias if with_bias else None,
            residual if with_residual else None,
            ceiling,
            valid if with_valid else None,
        )


@every_dtype
@pytest.mark.parametrize("shape", [(3, 24, 5, 7), (31, 21)], ids=str)
def test_several_programs(guarded, device, shape, dtype, monkeypatch) -> None:
    monkeypatch.setattr(import_module("advcam_fast.ops.triton.masked_relu"), "_BLOCK_BYTES", 512)
    x, bias, residual, valid = _inputs(shape, dtype, device)
    _check(guarded, x, bias, residual, 6.0, valid)


def _cut(sums: Tensor) -> Tensor:
    """float32 as bfloat16 in the interpreter, which cuts off where a GPU rounds; test_ahead_of_time.py looks."""
    return (sums.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()


@every_dtype
def test_sums_are_rounded_as_in_torch(device, dtype) -> None:
    """After the bias and again after the residual: on any device the bits are the same."""
    x, bias, residual, valid = _inputs((40, 64), dtype, device, exact=False)
    want, added = x.clone(), (bias, residual)
    if dtype == torch.bfloat16 and not x.is_cuda:
        want, added = _cut(_cut(x + bias).float() + residual.float()), (None, None)
    wanted_bits = reference.masked_relu(want, *added, 6.0, valid)
    bits = masked_relu(x, bias, residual, 6.0, valid)
    assert torch.equal(x, want)
    assert torch.equal(bits, wanted_bits)


def test_uint8_valid(guarded, device) -> None:
    x, bias, residual, valid = _inputs((2, 24, 5, 7), torch.float32, device)
    _check(guarded, x, bias, residual, 6.0, valid.to(torch.uint8) * 200)


@every_dtype
def test_nan_stays_and_passes_its_gradient(guarded, device, dtype) -> None:
    x, bias, residual, valid = _inputs((12, 8), dtype, device)
    x[4, 1], x[5, 0], x[6, 2], x[7, 1] = float("nan"), float("inf"), float("-inf"), float("nan")
    valid[4:7], valid[7] = True, False
    got = _check(guarded, x, bias, residual, 6.0, valid)
    assert got[4, 1].isnan()
    assert got[7, 1] == 0


def test_no_bits_where_none_are_wanted(device) -> None:
    x, bias, residual, valid = _inputs((2, 24, 5, 7), torch.float32, device)
    want = x.clone()
    masked_relu(want, bias, residual, 6.0, valid)
    assert masked_relu(x, bias, residual, 6.0, valid, save=False).shape == (0,)
    assert torch.equal(x, want)


def test_bits_do_not_depend_on_the_batch(device) -> None:
    x, bias, residual, valid = _inputs((5, 24, 7, 7), torch.float32, device, exact=False)
    alone = x[2:3].clone()
    bits_alone = masked_relu(alone, bias, residual[2:3].clone(), 6.0, valid[2:3].clone())
    bits = masked_relu(x, bias, residual, 6.0, valid)
    assert torch.equal(alone, x[2:3])
    assert torch.equal(bits_alone, bits.view(5, -1)[2])


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (0, 4), (4, 0)], ids=str)
def test_nothing_to_do(device, shape) -> None:
    x = torch.zeros(shape, device=device)
    bits = masked_relu(x)
    assert bits.shape == (0,)
    assert masked_relu_backward(x, bits) is x


def test_other_layouts_are_refused(device) -> None:
    x = torch.zeros(2, 3, 4, 5, device=device)
    with pytest.raises(ValueError, match=r"x: strides \(60, 20, 5, 1\) came, wanted is channels-last"):
        masked_relu(x)
    with pytest.raises(ValueError, match="gradient: strides"):
        masked_relu_backward(x, torch.zeros(15, dtype=torch.uint8, device=device))
