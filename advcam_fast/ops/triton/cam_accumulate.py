"""cam_accumulate in Triton (contract: csrc/cam_accumulate.h): one launch adds every scale, one more normalises."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .nan_maximum import nan_maximum

_TILE = 1024  # pixels at a time
_TILE_WIDTH = 128
_MAX_PARTS = 256  # partial maxima of a map


@triton.jit
def _source(
    i: tl.tensor, source: tl.tensor, destination: tl.tensor, acc: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """(lower neighbour, upper neighbour, weight of the upper) of max((i + 0.5) * source / destination - 0.5, 0).

    In integers: in fp32 the fraction of a coordinate of some hundreds would keep only five digits.
    """
    doubled = tl.maximum((2 * i + 1) * source - destination, 0)
    low = doubled // (2 * destination)
    return low, tl.minimum(low + 1, source - 1), (doubled % (2 * destination)).to(acc) / (2 * destination).to(acc)


@triton.jit
def _resized(
    scale_map: tl.tensor,  # [map_height, map_width]
    map_height: tl.tensor,
    map_width: tl.tensor,
    i: tl.tensor,  # [BLOCK_HEIGHT]
    j: tl.tensor,  # [BLOCK_WIDTH]
    live: tl.tensor,  # [BLOCK_HEIGHT, BLOCK_WIDTH]
    rows: tl.tensor,
    columns: tl.tensor,
) -> tl.tensor:  # [BLOCK_HEIGHT, BLOCK_WIDTH]
    acc: tl.constexpr = scale_map.dtype.element_ty
    if (map_height == rows) & (map_width == columns):
        value = tl.load(scale_map + i[:, None] * map_width + j[None, :], live, other=0.0)
    else:
        top, bottom, down = _source(i, map_height, rows, acc)
        left, right, across = _source(j, map_width, columns, acc)
        above = scale_map + top[:, None] * map_width
        below = scale_map + bottom[:, None] * map_width
        upper = tl.load(above + left[None, :], live, other=0.0) * (1 - across)[None, :]
        upper += tl.load(above + right[None, :], live, other=0.0) * across[None, :]
        lower = tl.load(below + left[None, :], live, other=0.0) * (1 - across)[None, :]
        lower += tl.load(below + right[None, :], live, other=0.0) * across[None, :]
        value = upper * (1 - down)[:, None] + lower * down[:, None]
    return value


@triton.jit
def _accumulate(
    maps: tl.tuple,  # [count, map_heights[s], map_widths[s]]
    map_heights: tl.tuple,
    map_widths: tl.tuple,
    total: tl.tensor,  # [count, height, width], written
    partial: tl.tensor,  # [count, PARTS], written: maxima of total; or None
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    item = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    acc: tl.constexpr = total.dtype.element_ty
    total += item * height * width
    tiles_across = tl.cdiv(width, BLOCK_WIDTH)
    peak = tl.full([BLOCK_HEIGHT, BLOCK_WIDTH], float("-inf"), acc)
    for tile in range(part, tl.cdiv(height, BLOCK_HEIGHT) * tiles_across, PARTS):
        i = tile // tiles_across * BLOCK_HEIGHT + tl.arange(0, BLOCK_HEIGHT)
        j = tile % tiles_across * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        live = (i < height)[:, None] & (j < width)[None, :]
        at = i[:, None] * width + j[None, :]
        value = tl.load(total + at, live, other=0.0)
        for s in tl.static_range(len(maps)):
            scale_map = maps[s] + item * map_heights[s] * map_widths[s]
            value += _resized(scale_map, map_heights[s], map_widths[s], i, j, live, rows, columns)
        tl.store(total + at, value, live)
        peak = nan_maximum(peak, tl.where(live, value, float("-inf")))
    if partial is not None:
        tl.store(partial + item * PARTS + part, tl.reduce(peak, None, nan_maximum))


@triton.jit
def _normalise(
    total: tl.tensor,  # [count, area], written
    partial: tl.tensor,  # [count, PARTS]
    units: tl.tensor,  # area / ALIGN
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    item = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    area = units * ALIGN
    divisor = tl.reduce(tl.load(partial + item * PARTS + tl.arange(0, PARTS)), 0, nan_maximum) + 1e-5
    total += item * area
    for start in range(part * BLOCK, area, PARTS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < area
        tl.store(total + at, tl.load(total + at, live, other=0.0) / divisor, live)


def cam_accumulate(
    maps: list[Tensor],  # each [N, h_s, w_s]
    total: Tensor,  # [N, H, W]
    size: tuple[int, int],  # the maps are resized to this, then cropped to (H, W)
    normalise: bool = False,
) -> Tensor:
    """total + sum_s crop(bilinear(map_s, size)), then divided by (max + 1e-5) per map if asked. Writes total.

    maps and total are contiguous, all fp32 or all fp64; h_s, w_s >= 1.
    """
    count, height, width = total.shape
    if not total.numel():
        return total
    for longest in (max([size[axis], *(m.shape[1 + axis] for m in maps)]) for axis in (0, 1)):
        if 2 * longest * longest >= 2**31:
            raise ValueError(f"cam_accumulate: a side of {longest}; at most 32767")
    block_width = min(_TILE_WIDTH, triton.next_power_of_2(width))
    block_height = min(_TILE // block_width, triton.next_power_of_2(height))
    tiles = triton.cdiv(height, block_height) * triton.cdiv(width, block_width)
    parts = min(_MAX_PARTS, triton.next_power_of_2(tiles))
    partial = total.new_empty(count, parts) if normalise else None
    map_heights, map_widths = (tuple(m.shape[axis] for m in maps) for axis in (1, 2))
    with torch.cuda.device_of(total):
        _accumulate[(count, parts)](
            tuple(maps), map_heights, map_widths, total, partial, height, width, *size,
            PARTS=parts, BLOCK_HEIGHT=block_height, BLOCK_WIDTH=block_width,
        )  # fmt: skip
        if normalise:
            align = math.gcd(height * width, 16)  # Triton by itself knows 16 or nothing; 4 suffice for 16-byte loads
            _normalise[(count, parts)](
                total, partial, height * width // align, PARTS=parts, ALIGN=align, BLOCK=block_height * block_width
            )
    return total
