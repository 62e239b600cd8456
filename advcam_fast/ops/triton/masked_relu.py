"""masked_relu in Triton (contract: csrc/masked_relu.h): one launch each way, over memory as it lies."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_BYTES = 4096  # of x at a time: two 16-byte loads for each of 128 threads, two more of the residual


@triton.jit
def _at(BLOCK: tl.constexpr) -> tl.tensor:
    """[BLOCK / 8, 8]: the elements of a block, those of one byte of bits in a row."""
    return tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def _rectify(
    x: tl.tensor,  # [rows, channels], written
    bias: tl.tensor,  # [channels] or None
    residual: tl.tensor,  # [rows, channels] or None
    valid: tl.tensor,  # [rows] or None
    bits: tl.tensor,  # [ceil(n / 8)], written, or None
    units: tl.tensor,  # n / ALIGN
    steps: tl.tensor,  # channels / STEP
    ceiling: tl.float64,
    STEP: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    dtype: tl.constexpr = x.dtype.element_ty
    acc: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    n = units.to(tl.int64) * ALIGN
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = _at(BLOCK)
    live = at < n - first
    # divisions take longer than all the rest: of 32 bits, from the first row on, and one for STEP elements
    local = tl.arange(0, BLOCK // 8)[:, None] * (8 // STEP) + tl.arange(0, 8 // STEP)[None, :]
    step = (first // STEP % steps).to(tl.int32) + local
    v = tl.load(x + first + at, live, other=0.0)
    if bias is not None:
        channel = step % steps * STEP + tl.arange(0, STEP)[None, :]
        v = (v.to(acc) + tl.load(bias + channel, live, other=0.0)).to(dtype)
    if residual is not None:
        v = (v.to(acc) + tl.load(residual + first + at, live, other=0.0).to(acc)).to(dtype)
    wide = v.to(acc)
    top = tl.full((), ceiling, acc)
    dropped = wide <= 0.0
    if valid is not None:
        row = first // STEP // steps + step // steps
        dropped = dropped | (tl.load(valid + row, local * STEP < n - first, other=0) == 0)
    high = wide >= top
    # chosen, not computed: a NaN stays, for no comparison holds
    tl.store(x + first + at, tl.where(dropped, 0.0, tl.where(high, top, wide)).to(dtype), live)
    if bits is not None:
        # what is not live was loaded as zero, so its bit is 0
        kept = (~(dropped | high)).to(tl.int32) << tl.arange(0, 8)[None, :]
        byte = first // 8 + tl.arange(0, BLOCK // 8)
        tl.store(bits + byte, tl.sum(kept, 1).to(tl.uint8), byte * 8 < n)


@triton.jit
def _keep(
    gradient: tl.tensor,  # [n], written
    bits: tl.tensor,  # [ceil(n / 8)]
    units: tl.tensor,  # n / ALIGN
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    n = units.to(tl.int64) * ALIGN
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = _at(BLOCK)
    live = at < n - first
    byte = first // 8 + tl.arange(0, BLOCK // 8)
    flags = tl.load(bits + byte, byte * 8 < n, other=0).to(tl.int32)
    kept = (flags[:, None] >> tl.arange(0, 8)[None, :]) & 1
    g = tl.load(gradient + first + at, live, other=0.0)
    tl.store(gradient + first + at, tl.where(kept != 0, g, 0.0), live)


def _sizes(name: str, tensor: Tensor) -> dict[str, int]:
    """Of the launch on a tensor whose rows lie in memory one after another."""
    if not (tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1)).is_contiguous():
        raise ValueError(f"{name}: strides {tensor.stride()} came, wanted is channels-last or (rows, channels)")
    n = tensor.numel()
    align = math.gcd(n, 16)  # Triton by itself knows 16 or nothing; 4 are enough for the widest load of fp32
    return {"units": n // align, "ALIGN": align, "BLOCK": _BLOCK_BYTES // tensor.element_size()}


def masked_relu(
    x: Tensor,  # [B, C, H, W] channels-last, or [rows, C]
    bias: Tensor | None = None,  # [C]
    residual: Tensor | None = None,  # like x
    ceiling: float = float("inf"),
    valid: Tensor | None = None,  # [B, H, W] or [rows]
    save: bool = True,
) -> Tensor:  # uint8 [ceil(numel / 8)], or [0]
    """x <- min(max(x + bias + residual, 0), ceiling) where valid, else 0; returns the bits of 0 < v < ceiling.

    x is fp32, fp64, bf16 or fp16; residual has its strides; bias is fp32 (fp64 for fp64); valid is bool or uint8.
    """
    n, sizes = x.numel(), _sizes("x", x)
    step = 8 if x.shape[1] % 8 == 0 else 1
    bits = x.new_empty((n + 7) // 8 if save else 0, dtype=torch.uint8)
    if n:
        inside = None if valid is None else valid.view(torch.uint8)
        with torch.cuda.device_of(x):
            _rectify[(triton.cdiv(n, sizes["BLOCK"]),)](
                x, bias, residual, inside, bits if save else None,
                steps=x.shape[1] // step, ceiling=ceiling, STEP=step, **sizes,
            )  # fmt: skip
    return bits


def masked_relu_backward(gradient: Tensor, bits: Tensor) -> Tensor:
    """g <- bit ? g : 0, in memory order; returns it."""
    n, sizes = gradient.numel(), _sizes("gradient", gradient)
    if n:
        with torch.cuda.device_of(gradient):
            _keep[(triton.cdiv(n, sizes["BLOCK"]),)](gradient, bits, **sizes)
    return gradient
