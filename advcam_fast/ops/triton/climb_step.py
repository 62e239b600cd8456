"""climb_step in Triton (contract: csrc/climb_step.h): one launch for the extrema of every group, one for the step."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .nan_maximum import nan_maximum

_BLOCK_BYTES = 8192  # of the image at a time: four 16-byte loads for each of 128 threads
_MAX_GROUP = 2**30  # elements: offsets within a group are 32 bits wide
_MAX_PARTS = 64  # partial extrema of a group
_MAX_STEP_PROGRAMS = 256  # each reads all partial extrema first, so it should then have blocks enough to do
_FIELDS = 3  # max|g|, max(-x), max x


@triton.jit
def _largest(
    a_slope: tl.tensor, a_depth: tl.tensor, a_height: tl.tensor, b_slope: tl.tensor, b_depth: tl.tensor,
    b_height: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    return nan_maximum(a_slope, b_slope), nan_maximum(a_depth, b_depth), nan_maximum(a_height, b_height)


@triton.jit
def _extrema(
    image: tl.tensor,  # [groups, n]
    gradient: tl.tensor,  # [groups, n]
    partial: tl.tensor,  # [groups, 3, PARTS]
    units: tl.tensor,  # n / ALIGN
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    n = units * ALIGN
    acc: tl.constexpr = image.dtype.element_ty
    image += group * n
    gradient += group * n
    slope = tl.zeros([BLOCK], acc)
    depth = tl.full([BLOCK], float("-inf"), acc)
    height = tl.full([BLOCK], float("-inf"), acc)
    for start in range(part * BLOCK, n, PARTS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < n
        x = tl.load(image + at, live, other=0.0)
        g = tl.load(gradient + at, live, other=0.0).to(acc)
        slope = nan_maximum(slope, tl.abs(g))
        depth = nan_maximum(depth, tl.where(live, -x, float("-inf")))
        height = nan_maximum(height, tl.where(live, x, float("-inf")))
    slope, depth, height = tl.reduce((slope, depth, height), 0, _largest)
    partial += group * 3 * PARTS + part
    tl.store(partial, slope)
    tl.store(partial + PARTS, depth)
    tl.store(partial + 2 * PARTS, height)


@triton.jit
def _ascend(
    image: tl.tensor,  # [groups, n], written
    gradient: tl.tensor,  # [groups, n]
    network_input: tl.tensor,  # [groups, n], written, or None
    gradient_max: tl.tensor,  # [groups], written
    partial: tl.tensor,  # [groups, 3, PARTS]
    step: tl.float64,
    units: tl.tensor,  # n / ALIGN
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    n = units * ALIGN
    acc: tl.constexpr = image.dtype.element_ty
    parts = partial + group * 3 * PARTS + tl.arange(0, PARTS)
    slope, depth, high = tl.reduce((tl.load(parts), tl.load(parts + PARTS), tl.load(parts + 2 * PARTS)), 0, _largest)
    low = -depth
    if program == 0:
        tl.store(gradient_max + group, slope)
    scale = tl.full((), step, acc) / (slope + 1e-12)
    image += group * n
    gradient += group * n
    if network_input is not None:
        network_input += group * n
    for start in range(program * BLOCK, n, tl.num_programs(1) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < n
        x = tl.load(image + at, live, other=0.0)
        g = tl.load(gradient + at, live, other=0.0).to(acc)
        # tl.clamp would turn a NaN of the bounds into a number
        x = tl.minimum(nan_maximum(x + scale * g, low), high, propagate_nan=tl.PropagateNan.ALL)
        tl.store(image + at, x, live)
        if network_input is not None:
            tl.store(network_input + at, x, live)


def climb_step(
    image: Tensor,  # [B, ...], B = groups * group_size
    gradient: Tensor,  # like image
    step_size: float,
    group_size: int = 2,
    network_input: Tensor | None = None,  # like image
) -> Tensor:  # [groups]
    """x <- clamp(x + step g / (max|g| + 1e-12), min x, max x), the extrema over each group; returns max|g|.

    image is fp32 or fp64 and written; gradient and network_input have its strides, with each group one dense block.
    """
    groups = image.shape[0] // group_size
    if image.numel() == 0:
        return image.new_zeros(groups)
    n = image.numel() // groups
    if n > _MAX_GROUP:
        raise ValueError(f"climb_step: a group of {n} elements; at most {_MAX_GROUP}")
    align = math.gcd(n, 16)  # Triton by itself knows 16 or nothing; 4 are enough for the widest load of fp32
    block = min(_BLOCK_BYTES // image.element_size(), triton.next_power_of_2(n))
    blocks = triton.cdiv(n, block)
    parts = min(_MAX_PARTS, triton.next_power_of_2(blocks))
    gradient_max = image.new_empty(groups)
    partial = image.new_empty(groups, _FIELDS, parts)
    sizes = {"units": n // align, "PARTS": parts, "ALIGN": align, "BLOCK": block}
    with torch.cuda.device_of(image):
        _extrema[(groups, parts)](image, gradient, partial, **sizes)
        _ascend[(groups, min(blocks, _MAX_STEP_PROGRAMS))](
            image, gradient, network_input, gradient_max, partial, step_size, **sizes
        )
    return gradient_max
