"""masked_relu: bias, residual and ReLU in place, keeping one bit an element for the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import define, fallback, mutates, refuse_grad, stream_of


def _run(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, ceiling: float, valid: Tensor | None, save: bool
) -> Tensor:
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x, dtype=residual.dtype).copy_(residual)
    if (other := fallback("masked_relu", x.device.type)) is not None:
        bits = other(x, bias, residual, ceiling, valid, save)
    else:
        bits = _fake(x, bias, residual, ceiling, valid, save)
        NATIVE.masked_relu(
            x,
            bias,
            residual,
            ceiling,
            valid,
            bits if save else None,
            stream=stream_of(x),
            num_threads=torch.get_num_threads(),
        )
    mutates(x)
    return bits


def _fake(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, ceiling: float, valid: Tensor | None, save: bool
) -> Tensor:
    return x.new_empty((x.numel() + 7) // 8 if save else 0, dtype=torch.uint8)


def _run_backward(gradient: Tensor, bits: Tensor) -> None:
    if (other := fallback("masked_relu_backward", gradient.device.type)) is not None:
        other(gradient, bits)
    else:
        NATIVE.masked_relu_backward(gradient, bits, stream=stream_of(gradient), num_threads=torch.get_num_threads())
    mutates(gradient)


def _fake_backward(gradient: Tensor, bits: Tensor) -> None:
    return None


define(
    "masked_relu",
    "(Tensor(a!) x, Tensor? bias, Tensor? residual, float ceiling, Tensor? valid, bool save) -> Tensor",
    _run,
    _fake,
)
define("masked_relu_backward", "(Tensor(a!) gradient, Tensor bits) -> ()", _run_backward, _fake_backward)


def masked_relu(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    ceiling: float = math.inf,
    valid: Tensor | None = None,
    save: bool = True,
) -> Tensor:
    """Adds bias and residual and rectifies, in place; returns one bit an element, all that the gradient needs.

    v = x + bias + residual; x <- min(max(v, 0), ceiling) where valid, else 0; bit = valid and 0 < v < ceiling.

    Args:
        x: [B, C, H, W] channels-last (or [rows, C]); float32, float64, bfloat16 or float16. Written.
        bias: [C], float32 (float64 for a float64 x), or None. residual: like x, or None.
        ceiling: 6 for ReLU6; infinity for ReLU. Above 0.
        valid: bool or uint8 [B, H, W] ([rows]), what is inside each item's own image, or None for all.
        save: False where no gradient is wanted.

    Returns:
        uint8 [ceil(numel / 8)], bit i of byte b for element 8 b + i in memory order, for masked_relu_backward; [0]
        without save. A NaN stays in x and its bit is 1, as torch's ReLU has it.

    Raises:
        RuntimeError: an input requires grad. TypeError, ValueError: dtype, shape, strides or device do not fit.

    Source: the rectifier of any CNN; one bit instead of the saved activation as in Jain et al., ISCA 2018 (Gist).
    """
    refuse_grad("masked_relu", x, bias, residual)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)} came, wanted is x's {tuple(x.shape)}")
    return torch.ops.advcam_fast.masked_relu(x, bias, residual, ceiling, valid, save)


def masked_relu_backward(gradient: Tensor, bits: Tensor) -> Tensor:
    """The gradient of masked_relu with respect to x and to the residual, in place: g <- bit ? g : 0; returns it.

    gradient: x's shape and layout, any of its dtypes. bits: what masked_relu returned.
    Raises as masked_relu does.
    """
    refuse_grad("masked_relu_backward", gradient)
    torch.ops.advcam_fast.masked_relu_backward(gradient, bits)
    return gradient
