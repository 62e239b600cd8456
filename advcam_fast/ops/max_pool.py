"""max_pool: the maximum over windows, keeping one byte an element of the result for the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import LIBRARY, define, fallback, stream_of
from advcam_fast.ops.reference import windows_of

MOST_ELEMENTS = 256  # of a window: a byte counts them


def _run(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    if (other := fallback("max_pool", x.device.type)) is not None:
        y, at = other(x, kernel, stride, padding, dilation, ceil_mode, save)
        return y, at
    y, at = _fake(x, kernel, stride, padding, dilation, ceil_mode, save)
    x = x.contiguous(memory_format=torch.channels_last)
    window = (list(kernel), list(stride), list(padding), list(dilation))
    NATIVE.max_pool(x, y, at if save else None, *window, stream=stream_of(x), num_threads=torch.get_num_threads())
    return y, at


def _fake(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], *windows_of(x.shape[2:], kernel, stride, padding, dilation, ceil_mode))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, torch.empty_like(y, dtype=torch.uint8) if save else y.new_empty(0, dtype=torch.uint8)


def _run_backward(
    gradient: Tensor,
    at: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    if (other := fallback("max_pool_backward", gradient.device.type)) is not None:
        found: Tensor = other(gradient, at, size, kernel, stride, padding, dilation)
        return found
    result = _fake_backward(gradient, at, size)
    gradient, at = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (gradient, at))
    window = (list(kernel), list(stride), list(padding), list(dilation))
    NATIVE.max_pool_backward(
        gradient, at, result, *window, stream=stream_of(gradient), num_threads=torch.get_num_threads()
    )
    return result


def _fake_backward(gradient: Tensor, at: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    shape = (*gradient.shape[:2], *size)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *window, _, save = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.size, ctx.window, ctx.saved = list(x.shape[2:]), window, save


def _gradient(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("max_pool was called with save=False, so it has no gradient")
    run = torch.ops.advcam_fast.max_pool_backward
    return run(gradient, *ctx.saved_tensors, ctx.size, *ctx.window), *[None] * 6


_WINDOW = "int[] kernel, int[] stride, int[] padding, int[] dilation"
define("max_pool", f"(Tensor x, {_WINDOW}, bool ceil_mode, bool save) -> (Tensor, Tensor)", _run, _fake)
define(
    "max_pool_backward", f"(Tensor gradient, Tensor at, int[] size, {_WINDOW}) -> Tensor", _run_backward, _fake_backward
)
torch.library.register_autograd("advcam_fast::max_pool", _gradient, setup_context=_setup, lib=LIBRARY)


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    save: bool = True,
) -> tuple[Tensor, Tensor]:
    """The maximum over windows, and which element of its window each one is: all that the gradient needs.

    y_o = max over k of x_(o s - p + k d), of what lies within x; at_o = k, counted row by row.

    Args:
        x: [B, C, H, W], float32, float64, bfloat16 or float16; channels-last, or it is copied.
        kernel, stride, padding, dilation: (vertical, horizontal), in pixels; at most 256 elements a window, and no
            more padding than half a window. ceil_mode: also a window that x does not fill, as in torch.
        save: False where no gradient is wanted.

    Returns:
        y [B, C, h, w] channels-last, and at, uint8 like y, for max_pool_backward ([0] without save); autograd knows x.
        Of equal elements the first is taken, and a NaN before any number, as torch has it. Where nothing in a window
        is above -infinity, at is 0.

    Raises:
        TypeError, ValueError: dtype, shape or window do not fit. RuntimeError, as torch: x is smaller than a window.

    Source: as torch.nn.MaxPool2d, which keeps 8 bytes an element.
    """
    _check(x, kernel, stride, padding, dilation, ceil_mode)
    y, at = torch.ops.advcam_fast.max_pool(x, kernel, stride, padding, dilation, ceil_mode, save)
    return y, at


def max_pool_backward(
    gradient: Tensor,
    at: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """The gradient of max_pool with respect to x: g_i = sum of the gradients of the windows that took x_i.

    gradient: like y, any of its dtypes. at: what max_pool returned. size: (H, W) of x. The window: as it was given.
    Returns [B, C, H, W] channels-last, in the gradient's dtype. Raises as max_pool does.
    """
    found: Tensor = torch.ops.advcam_fast.max_pool_backward(gradient, at, size, kernel, stride, padding, dilation)
    return found


def _check(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: shape {tuple(x.shape)} came, wanted is (B, C, H, W)")
    if min(*kernel, *stride, *dilation) < 1 or kernel[0] * kernel[1] > MOST_ELEMENTS:
        raise ValueError(
            f"kernel, stride, dilation: {tuple(kernel)}, {tuple(stride)}, {tuple(dilation)} came, "
            f"wanted are 1 or more, and at most {MOST_ELEMENTS} elements a window"
        )
    if any(not 0 <= 2 * p <= d * (k - 1) + 1 for p, d, k in zip(padding, dilation, kernel, strict=True)):
        raise ValueError(f"padding: {tuple(padding)} came, wanted is 0 to half of the kernel {tuple(kernel)}")
    if min(windows_of(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)) < 1:
        # as torch: a network cannot take an image of that size, which is that image's trouble alone
        raise RuntimeError(f"x: shape {tuple(x.shape)} came, smaller than the window {tuple(kernel)}")
