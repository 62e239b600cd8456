"""max_pool.cu on the CPU executor against the float64 reference, the gradient too."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import DTYPES, Kernels, Window, reference
from torch import Tensor

# batch, height, width, channels: one pixel, whole packs, channels that are none, more than one block
SHAPES = [(1, 1, 1, 1), (2, 9, 11, 8), (3, 6, 5, 5), (1, 13, 12, 24)]
WINDOWS: dict[str, tuple[Window, bool]] = {  # and ceil_mode
    "ResNet": (((3, 3), (2, 2), (1, 1), (1, 1)), False),
    "overlapping": (((3, 5), (1, 1), (1, 2), (1, 1)), False),
    "gaps, beyond the end": (((1, 2), (2, 4), (0, 1), (1, 1)), True),
    "dilated": (((2, 3), (2, 1), (1, 2), (2, 2)), False),
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_window = pytest.mark.parametrize("window", WINDOWS)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Small integers: many a maximum is there twice, and no sum is rounded."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def planes(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2)


def check(kernels: Kernels, x: Tensor, name: str) -> None:
    window, ceil_mode = WINDOWS[name]
    want, wanted_at = reference.max_pool(planes(x).double(), *window, ceil_mode)
    y, at = kernels.max_pool(x, (want.shape[2], want.shape[3]), window)
    assert at is not None and torch.equal(planes(at), wanted_at)
    assert torch.equal(planes(y).double().nan_to_num(99), want.nan_to_num(99))
    gradient = values(y.shape, x.dtype, seed=1)
    size = (x.shape[1], x.shape[2])
    found = kernels.max_pool_backward(gradient, at, size, window)
    wanted = reference.max_pool_backward(planes(gradient).double(), wanted_at, size, *window)
    assert torch.equal(planes(found).double(), wanted)


@every_dtype
@every_window
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(kernels: Kernels, shape: tuple[int, ...], window: str, dtype: torch.dtype) -> None:
    check(kernels, values(shape, dtype), window)


@every_dtype
def test_misaligned_tensors_take_the_scalar_path(kernels: Kernels, dtype: torch.dtype) -> None:
    whole = values((2, 9, 11, 8), dtype)
    check(kernels, torch.empty(whole.numel() + 1, dtype=dtype)[1:].view_as(whole).copy_(whole), "ResNet")


@every_dtype
@pytest.mark.parametrize("channels", [8, 5])
def test_nan_and_infinities(kernels: Kernels, channels: int, dtype: torch.dtype) -> None:
    """The last NaN of a window is taken; a window of -infinity alone takes its first element."""
    x = values((2, 9, 11, channels), dtype)
    x[0, 4, 4], x[0, 5, 4, 3], x[1, 1, 1], x[1, 5:9, 5:9] = torch.nan, torch.nan, torch.inf, -torch.inf
    check(kernels, x, "ResNet")


def test_nothing_is_kept_where_none_is_wanted(kernels: Kernels) -> None:
    x, window = values((2, 9, 11, 8), torch.float32), WINDOWS["ResNet"][0]
    y, at = kernels.max_pool(x, (5, 6), window, save=False)
    assert at is None
    assert torch.equal(y, kernels.max_pool(x, (5, 6), window)[0])


def test_the_same_bits_in_any_company(kernels: Kernels) -> None:
    x, window = torch.randn(5, 9, 11, 8, generator=torch.Generator().manual_seed(0)), WINDOWS["ResNet"][0]
    alone, at_alone = kernels.max_pool(x[2:3].clone(), (5, 6), window)
    x[1] = torch.nan
    y, at = kernels.max_pool(x, (5, 6), window)
    assert at is not None and at_alone is not None
    assert torch.equal(y[2:3], alone) and torch.equal(at[2:3], at_alone)
    back = kernels.max_pool_backward(y, at, (9, 11), window)
    assert torch.equal(back[2:3], kernels.max_pool_backward(alone, at_alone, (9, 11), window))


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    for shape in ((0, 9, 11, 8), (2, 9, 11, 0)):
        y, at = kernels.max_pool(torch.empty(shape), (5, 6), WINDOWS["ResNet"][0])
        assert at is not None
        kernels.max_pool_backward(y, at, (9, 11), WINDOWS["ResNet"][0])
    assert kernels.launches() == []


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.max_pool(torch.zeros(1, 3, 3, 8), (2, 2), WINDOWS["ResNet"][0], device=1)
