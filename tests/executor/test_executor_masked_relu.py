"""masked_relu.cu on the CPU executor against the float64 reference, and bit for bit against the one of its dtype."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from executor_kernels import DTYPES, Kernels, reference
from tolerances import close
from torch import Tensor

INFINITY = float("inf")
# one element; less than a thread's eight; rows that groups of eight cross; rows of whole groups; over one block; odd
SHAPES = [(1, 1), (1, 7), (5, 3), (9, 8), (16, 24), (300, 16), (211, 21)]
OPTIONS = list(product([True, False], [True, False], [True, False], [INFINITY, 6.0]))  # bias, residual, valid, ceiling
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(shape: tuple[int, int], dtype: torch.dtype, exact: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, bias, residual, valid. exact: eighths whose sums no dtype rounds, with many a sum of just 0 or 6."""
    random = torch.Generator().manual_seed(sum(shape))

    def values(*size: int) -> Tensor:
        if exact:
            return torch.randint(-32, 33, size, generator=random).double() / 8
        return torch.randn(size, generator=random, dtype=torch.float64) * 3

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    valid = torch.rand(shape[0], generator=random) < 0.7
    return values(*shape).to(dtype), values(shape[1]).to(wide), values(*shape).to(dtype), valid.to(torch.uint8)


def check(
    kernels: Kernels, x: Tensor, bias: Tensor | None, residual: Tensor | None, ceiling: float, valid: Tensor | None
) -> None:
    """Values, bits and gradient; `want` is of float64."""
    want = x.to(torch.float64, copy=True)
    wanted_bits = reference.masked_relu(
        want, *(t if t is None else t.double() for t in (bias, residual)), ceiling, valid
    )
    bits = kernels.masked_relu(x, bias, residual, ceiling, valid)
    close(x, want)
    assert bits is not None and torch.equal(bits, wanted_bits)
    gradient = torch.arange(1.0, x.numel() + 1).view(x.shape).to(x.dtype)
    wanted_gradient = reference.masked_relu_backward(gradient.clone(), wanted_bits)
    assert torch.equal(kernels.masked_relu_backward(gradient, bits), wanted_gradient)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    for with_bias, with_residual, with_valid, ceiling in OPTIONS:
        x, bias, residual, valid = inputs(shape, dtype)
        check(
            kernels,
            x,
            bias if with_bias else None,
            residual if with_residual else None,
            ceiling,
            valid if with_valid else None,
        )


@every_dtype
def test_sums_are_rounded_as_in_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    """After the bias and again after the residual: on any device the bits are the same."""
    x, bias, residual, valid = inputs((97, 40), dtype, exact=False)
    want = x.clone()
    wanted_bits = reference.masked_relu(want, bias, residual, 6.0, valid)
    bits = kernels.masked_relu(x, bias, residual, 6.0, valid)
    assert torch.equal(x, want) and torch.equal(bits, wanted_bits)  # type: ignore[arg-type]


@every_dtype
@pytest.mark.parametrize("which", ["x", "bias", "residual"])
def test_misaligned_tensors_take_the_scalar_path(kernels: Kernels, which: str, dtype: torch.dtype) -> None:
    x, bias, residual, valid = inputs((30, 16), dtype)
    tensors = {"x": x, "bias": bias, "residual": residual}
    whole = tensors[which]
    tensors[which] = torch.empty(whole.numel() + 1, dtype=whole.dtype)[1:].view_as(whole).copy_(whole)
    check(kernels, **tensors, ceiling=6.0, valid=valid)


def test_misaligned_gradient(kernels: Kernels) -> None:
    bits = torch.randint(0, 256, (10,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gradient = torch.arange(1.0, 82)[1:].view(8, 10)
    want = reference.masked_relu_backward(gradient.clone(), bits)
    assert torch.equal(kernels.masked_relu_backward(gradient, bits), want)


def test_no_bits_where_none_are_wanted(kernels: Kernels) -> None:
    x, bias, residual, valid = inputs((30, 16), torch.float32)
    want = x.clone()
    kernels.masked_relu(want, bias, residual, 6.0, valid)
    assert kernels.masked_relu(x, bias, residual, 6.0, valid, save=False) is None
    assert torch.equal(x, want)


@every_dtype
@pytest.mark.parametrize("shape", [(12, 8), (12, 3)], ids=["whole groups", "crossing"])
def test_a_nan_stays_and_passes_its_gradient(kernels: Kernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, bias, residual, valid = inputs(shape, dtype)
    x[4, 1], x[5, 0], x[6, 2] = float("nan"), INFINITY, -INFINITY
    x[7, 1], valid[7], valid[4:7] = float("nan"), 0, 1
    check(kernels, x, bias, residual, 6.0, valid)
    assert x[4, 1].isnan() and x[7, 1] == 0, "what is not valid is zero, whatever it was"
    at = 4 * shape[1] + 1
    assert kernels.masked_relu(x, None)[at // 8] >> at % 8 & 1  # type: ignore[index]


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    for shape in ((0, 4), (4, 0)):
        bits = kernels.masked_relu(torch.empty(shape))
        assert bits is not None
        kernels.masked_relu_backward(torch.empty(shape), bits)
    assert kernels.launches() == []


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.masked_relu(torch.zeros(2, 8), device=1)
