"""A frozen convolution equals torch's, in value and in input gradient, for every window and way of computing it."""

from __future__ import annotations

import itertools

import pytest
import torch
from timm.layers import Conv2dSame
from tolerances import close
from torch import Tensor, nn

from advcam_fast.models.convolution import Convolution, padding_rule
from advcam_fast.models.convolution_kernels import Phases, Window, onednn_serves

SIZES = ((17, 16), (14, 21), (13, 13))  # odd and even, either way round
WINDOWS = [  # kernel, stride, padding, dilation
    window
    for window in itertools.product((1, 2, 3, 5, 7), (1, 2, 3), (0, 1, 3), (1, 2))
    if window[2] <= window[3] * (window[0] - 1) + 2
]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def check(module: nn.Conv2d, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Against torch in float64, of weights and inputs that are already rounded to dtype."""
    wide = module.double()
    wide.load_state_dict({key: value.to(dtype).double() for key, value in wide.state_dict().items()})
    x = channels_last(torch.randn(2, module.in_channels, *size).to(dtype))
    leaf = x.double().requires_grad_()
    wanted = wide(leaf)
    slope = channels_last(torch.randn(wanted.shape).to(dtype))
    (wanted_gradient,) = torch.autograd.grad(wanted, leaf, slope.double())
    convolution = Convolution(module, dtype, dtype)
    before = (x.clone(), slope.clone())
    with torch.no_grad():
        got, bits = convolution.forward(x)
        gradient = convolution.gradient(slope, x.shape)
        there = channels_last(torch.randn(x.shape).to(dtype))
        added = convolution.gradient(slope, x.shape, there.clone())
    assert bits is None
    close(got, wanted)
    close(gradient, wanted_gradient)
    close(added, wanted_gradient + there.double())
    assert torch.equal(x, before[0])
    assert torch.equal(slope, before[1])
    for tensor in (got, gradient, added):
        assert tensor.dtype == dtype
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("same", [False, True], ids=["padded", "same"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_window_in_float64(window: tuple[int, int, int, int], groups: int, same: bool) -> None:
    torch.manual_seed(0)
    kernel, stride, padding, dilation = window
    for size in SIZES if same or dilation * (kernel - 1) < 13 else SIZES[:0]:
        inputs = 3 if groups == 1 else 6
        if same:
            module: nn.Conv2d = Conv2dSame(inputs, 6, kernel, stride, 0, dilation, groups)
        else:
            module = nn.Conv2d(inputs, 6, kernel, stride, padding, dilation, groups)
        check(module, size, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 32, 7, 2, 3),  # as phases
        Conv2dSame(3, 32, 3, 2),
        nn.Conv2d(16, 48, 1),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.Conv2d(32, 32, 3, 2, 1),  # torch's transposed convolution
        nn.Conv2d(32, 64, 1, 2),
        nn.Conv2d(64, 64, 3, 1, 1, groups=64),
        Conv2dSame(64, 64, 5, 2, groups=64),  # bf16: spread
        nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False),
        nn.Conv2d(32, 32, 3, 1, 2, dilation=2, groups=4),
    ],
    ids=str,
)
def test_single_and_half_precision(module: nn.Conv2d, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for size in SIZES:
        check(module, size, dtype)


@pytest.mark.parametrize("cell", [2, 4, 6])
@pytest.mark.parametrize("window", [window for window in WINDOWS if window[1] == 2 and window[3] == 1], ids=str)
def test_phases_of_any_cell(window: tuple[int, int, int, int], cell: int) -> None:
    torch.manual_seed(0)
    kernel, stride, padding, _ = window
    weight = torch.randn(6, 3, kernel, kernel, dtype=torch.float64)
    gradient_of = Phases(weight, Window([padding] * 2, [stride] * 2, [1, 1], 1), cell)
    for size in (*SIZES, (kernel, kernel + 1)):
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        value = torch.conv2d(x, weight, None, stride, padding)
        slope = channels_last(torch.randn_like(value))
        (wanted,) = torch.autograd.grad(value, x, slope)
        close(gradient_of(slope, x.shape, None), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("ceiling", [None, float("inf"), 0.5])
def test_residual_and_rectifier(ceiling: float | None, writable: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(8, 8, 3, 1, 1).to(dtype)
    x, residual = (channels_last(torch.randn(2, 8, 9, 11, dtype=dtype)) for _ in range(2))
    before = residual.clone()
    sums = (module(x) + residual).detach()
    value, bits = Convolution(module, dtype, dtype).forward(x, residual, writable, ceiling)
    close(value, sums if ceiling is None else sums.clamp(0, ceiling))
    if not writable:
        assert torch.equal(residual, before)
    assert (bits is None) == (ceiling is None)


def test_sizes_may_change_from_call_to_call() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(64, 256, 1).float()
    convolution = Convolution(module, torch.float32, torch.float32)
    for size in ((12, 16), (14, 18), (12, 16), (47, 63)):
        x = channels_last(torch.randn(1, 64, *size))
        close(convolution.forward(x)[0], module.double()(x.double()).detach())
        module.float()


class Scaled(nn.Conv2d):
    pass


def test_what_is_no_plain_convolution_is_left_to_autograd() -> None:
    hooked = nn.Conv2d(3, 3, 1)
    hooked.register_forward_hook(lambda module, given, result: result * 2)
    for module in (Scaled(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Linear(3, 3), hooked):
        assert padding_rule(module) is None
    assert padding_rule(nn.Conv2d(3, 3, 4, padding="same"))(9, 9) == (1, 2, 1, 2)
    assert padding_rule(nn.Conv2d(3, 3, 4, padding="valid"))(9, 9) == (0, 0, 0, 0)


def test_onednn_serves_what_it_was_measured_for() -> None:
    assert onednn_serves("cpu", torch.float32) == torch.backends.mkldnn.is_available()
    assert not onednn_serves("cpu", torch.float64)
    assert not onednn_serves("cuda", torch.float32)
