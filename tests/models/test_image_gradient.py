"""The own kernel of an image's gradient: against float64 for kernels, paddings and sizes around its blocks."""

from __future__ import annotations

import pytest
import torch
from tolerances import close
from torch import Tensor

from advcam_fast import _C
from advcam_fast.models.convolution_kernels import ImageGradient, Phases, Window, gradient_of

pytestmark = pytest.mark.skipif(
    not _C.image_gradient_serves(True, 32), reason="the kernel wants AVX-512 with BF16, and a compiler that knows it"
)
# a block of 64 columns of g, more and less; a band of 32 rows, more and less; one cell; odd and even
SIZES = [(37, 131), (64, 128), (33, 97), (70, 95), (17, 258), (31, 33), (16, 16)]
WINDOWS = [
    (7, 3),
    (3, 1),
    (3, 0),
    (5, 2),
    (4, 1),
    (2, 0),
    (1, 0),
    (1, 1),
    (2, 2),
    (16, 5),
    (6, 7),
    (1, 140),
]  # kernel, padding
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def case(size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], dtype: torch.dtype, channels: int):
    torch.manual_seed(0)
    weight = torch.randn(channels, 3, *kernel).to(dtype)
    sides = [(side + 2 * p - k) // 2 + 1 for side, p, k in zip(size, padding, kernel, strict=True)]
    gradient = torch.randn(2, channels, *sides).to(dtype).contiguous(memory_format=torch.channels_last)
    return weight, gradient, torch.Size((2, 3, *size))


def wanted(weight: Tensor, gradient: Tensor, size: torch.Size, padding: tuple[int, int]) -> Tensor:
    return torch.nn.grad.conv2d_input(size, weight.double(), gradient.double(), 2, padding)


@every_dtype
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equals_torch_in_float64(window: tuple[int, int], dtype: torch.dtype) -> None:
    kernel, padding = ((side, side) for side in window)
    for size in SIZES:
        weight, gradient, shape = case(size, kernel, padding, dtype, 32)
        assert ImageGradient.serves(weight)
        found = ImageGradient(weight, Window(list(padding), [2, 2], [1, 1], 1))(gradient, shape, None)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        close(found, wanted(weight, gradient, shape, padding))


@every_dtype
def test_kernels_that_are_not_square(dtype: torch.dtype) -> None:
    for kernel, padding in (((7, 3), (3, 0)), ((2, 9), (1, 4)), ((1, 6), (0, 2))):
        weight, gradient, shape = case((41, 139), kernel, padding, dtype, 64)
        into = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
        total = wanted(weight, gradient, shape, padding) + into.double()
        found = ImageGradient(weight, Window(list(padding), [2, 2], [1, 1], 1))(gradient, shape, into)
        assert found is into
        close(found, total)


@every_dtype
def test_same_bits_whatever_the_batch_and_the_threads(dtype: torch.dtype) -> None:
    weight, gradient, shape = case((75, 140), (7, 7), (3, 3), dtype, 64)
    layout = dict(memory_format=torch.channels_last)
    found = torch.empty(shape, dtype=dtype).contiguous(**layout)
    _C.image_gradient(gradient, weight, found, (3, 3), num_threads=2)
    for threads in (1, 3):
        again = torch.empty_like(found)
        _C.image_gradient(gradient, weight, again, (3, 3), num_threads=threads)
        assert torch.equal(again, found)
    one = torch.empty_like(found[1:])
    _C.image_gradient(gradient[1:], weight, one, (3, 3))
    assert torch.equal(one, found[1:])


@every_dtype
def test_nan_and_infinity_reach_what_they_belong_to_alone(dtype: torch.dtype) -> None:
    weight, gradient, shape = case((37, 131), (3, 3), (1, 1), dtype, 32)
    gradient[1, 5, 9, 40] = torch.nan
    found = ImageGradient(weight, Window([1, 1], [2, 2], [1, 1], 1))(gradient, shape, None)
    bad = torch.zeros(shape, dtype=torch.bool)
    bad[1, :, 17:20, 79:82] = True
    assert torch.equal(found.isnan(), bad)


def test_what_it_does_not_serve_keeps_its_old_way() -> None:
    window = Window([1, 1], [2, 2], [1, 1], 1)
    assert isinstance(gradient_of(torch.randn(32, 3, 3, 3), window), ImageGradient)
    for other in (
        torch.randn(24, 3, 3, 3),  # channels that fill no vector
        torch.randn(32, 4, 3, 3),  # no image
        torch.randn(32, 3, 17, 3),  # a longer kernel than it has room for
        torch.randn(32, 3, 3, 3, dtype=torch.float64),
    ):
        assert not ImageGradient.serves(other)
        assert isinstance(gradient_of(other, window), Phases)


def test_arrays_that_do_not_fit_are_refused() -> None:
    weight, gradient, shape = case((37, 131), (3, 3), (1, 1), torch.float32, 32)
    found = torch.empty(shape).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"gradient: shape \(2, 32, 19, 66\) came, wanted is \(2, 32, 18, 65\)"):
        _C.image_gradient(gradient, weight, found, (0, 0))
    with pytest.raises(ValueError, match="a padding >= 0"):
        _C.image_gradient(gradient, weight, found, (-1, 1))
    with pytest.raises(TypeError, match="weight: dtype bfloat16 came, wanted is float32"):
        _C.image_gradient(gradient, weight.bfloat16(), found, (1, 1))
    with pytest.raises(ValueError, match="channels-last"):
        _C.image_gradient(gradient.contiguous(), weight, found, (1, 1))
    with pytest.raises(ValueError, match=r"x_gradient \(B, 3, H, W\)"):
        _C.image_gradient(gradient, weight, found[:, :2].contiguous(memory_format=torch.channels_last), (1, 1))
    narrow = gradient[:, :24].contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="AVX-512 with BF16 and channels that fill vectors"):
        _C.image_gradient(narrow, weight[:24], found, (1, 1))
