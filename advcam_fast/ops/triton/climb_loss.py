"""climb_loss in Triton (contract and equations: csrc/climb_loss.h): pair maps, then scores and gradients, then J."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .nan_maximum import nan_maximum

_PAIR_BLOCK = 1024  # positions at a time
_TILE = 2048  # logits at a time, of several classes
_OBJECTIVE_BLOCK = 512  # scores at a time
_FIELDS = 3  # f_0, f_1, the regulariser's sum


@triton.jit
def _relu(z: tl.tensor) -> tl.tensor:
    return tl.where(z <= 0, 0.0, z)  # keeps NaN, as torch's does


@triton.jit
def _flip(p: tl.tensor, width: tl.tensor) -> tl.tensor:
    """The position that mirrors p in its row."""
    return p + width - 1 - 2 * (p % width)


@triton.jit
def _positives(own: tl.tensor, stride_pixel: tl.tensor, pixels: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """#{p : z(p) > 0}"""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        count += (tl.load(own + p * stride_pixel, p < pixels, other=0.0) > 0).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _pair_value(
    own: tl.tensor, stride_item: tl.tensor, stride_pixel: tl.tensor, p: tl.tensor, live: tl.tensor, width: tl.tensor,
    first: tl.tensor, second: tl.tensor, MEMBERS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """R(p) of csrc/climb_loss.h, in the dtype of f_0 and f_1."""
    pair = first * _relu(tl.load(own + p * stride_pixel, live, other=0.0).to(first.dtype))
    if MEMBERS == 2:
        mirrored = tl.load(own + stride_item + _flip(p, width) * stride_pixel, live, other=0.0)
        pair += second * _relu(mirrored.to(first.dtype))
    return pair


@triton.jit
def _pair(
    logit_map: tl.tensor,  # [groups * MEMBERS, classes, pixels] by the strides
    target: tl.tensor,  # [groups]
    positive: tl.tensor,  # [groups]
    initial_map: tl.tensor,  # [groups, pixels] or None
    pair_map: tl.tensor,  # [groups, pixels], written
    mask: tl.tensor,  # [groups, pixels], written
    factor: tl.tensor,  # [groups, 3], written
    threshold: tl.float64,
    tiny: tl.float64,
    pixels: tl.tensor,
    width: tl.tensor,
    stride_item: tl.tensor,
    stride_class: tl.tensor,
    stride_pixel: tl.tensor,
    MEMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program a group: its few sums depend on one another, and one class of one pair is little data."""
    group = tl.program_id(0).to(tl.int64)
    acc: tl.constexpr = pair_map.dtype.element_ty
    own = logit_map + group * MEMBERS * stride_item + tl.load(target + group) * stride_class
    p_0 = _positives(own, stride_pixel, pixels, BLOCK).to(acc)
    p_1 = tl.zeros_like(p_0)
    if MEMBERS == 2:
        p_1 = _positives(own + stride_item, stride_pixel, pixels, BLOCK).to(acc)
    scale = tl.maximum(tl.load(positive + group) * (p_0 + p_1), tl.full((), tiny, acc))
    f_0 = p_0 / scale
    f_1 = p_1 / scale

    peak = tl.zeros([BLOCK], acc)
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        pair = _pair_value(own, stride_item, stride_pixel, p, p < pixels, width, f_0, f_1, MEMBERS)
        peak = nan_maximum(peak, pair)
    floor = tl.full((), threshold, acc) * tl.reduce(peak, 0, nan_maximum)

    penalty = tl.zeros([BLOCK], acc)
    pair_map += group * pixels
    mask += group * pixels
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        live = p < pixels
        pair = _pair_value(own, stride_item, stride_pixel, p, live, width, f_0, f_1, MEMBERS)
        strong = live & (pair > floor)
        tl.store(pair_map + p, pair, live)
        tl.store(mask + p, strong.to(tl.uint8), live)
        if initial_map is not None:
            initial = tl.load(initial_map + group * pixels + p, live, other=0.0)
            penalty += tl.where(strong, tl.abs(pair - initial), 0.0)
    factor += group * 3
    tl.store(factor, f_0)
    tl.store(factor + 1, f_1)
    tl.store(factor + 2, tl.sum(penalty, 0))


@triton.jit
def _pull(
    initial_map: tl.tensor, pair_map: tl.tensor, mask: tl.tensor, at: tl.tensor, live: tl.tensor
) -> tl.tensor:  # fmt: skip
    """M sign(R - R0) at the given places."""
    pair = tl.load(pair_map + at, live, other=0.0)
    initial = tl.load(initial_map + at, live, other=0.0)
    strong = tl.load(mask + at, live, other=0) != 0
    sign = (pair > initial).to(pair.dtype) - (pair < initial).to(pair.dtype)
    return tl.where(strong, sign, 0.0)


@triton.jit
def _classes(
    logit_map: tl.tensor,  # [groups * MEMBERS, classes, pixels] by the strides
    target: tl.tensor,  # [groups]
    weight: tl.tensor,  # [groups, classes]
    initial_map: tl.tensor,  # [groups, pixels] or None
    pair_map: tl.tensor,  # [groups, pixels]
    mask: tl.tensor,  # [groups, pixels]
    factor: tl.tensor,  # [groups, 3]
    score: tl.tensor,  # [groups * MEMBERS, classes], written
    gradient: tl.tensor,  # like logit_map, written
    suppression: tl.float64,
    classes: tl.tensor,
    pixels: tl.tensor,
    width: tl.tensor,
    stride_item: tl.tensor,
    stride_class: tl.tensor,
    stride_pixel: tl.tensor,
    MEMBERS: tl.constexpr,
    RECTIFY: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """One program an item and BLOCK_CLASSES classes: it walks over all positions, so a score needs no second pass."""
    item = tl.program_id(0).to(tl.int64)
    group = item // MEMBERS
    member = item % MEMBERS
    acc: tl.constexpr = score.dtype.element_ty
    k = tl.program_id(1) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    inside = k < classes
    own = k == tl.load(target + group)
    slope = tl.load(weight + group * classes + k, inside, other=0.0) / pixels.to(acc)  # dJ/ds
    pull_scale = tl.full((), suppression, acc) * tl.load(factor + group * 3 + member)
    has_own = tl.max(own.to(tl.int32), 0) > 0
    logit_map += item * stride_item
    gradient += item * stride_item
    total = tl.zeros([BLOCK_CLASSES, BLOCK_PIXELS], acc)
    for start in range(0, pixels, BLOCK_PIXELS):
        p = start + tl.arange(0, BLOCK_PIXELS)
        live = inside[:, None] & (p < pixels)[None, :]
        at = k[:, None] * stride_class + p[None, :] * stride_pixel
        z = tl.load(logit_map + at, live, other=0.0).to(acc)
        total += _relu(z) if RECTIFY else z
        dz = tl.broadcast_to(slope[:, None], z.shape)
        if RECTIFY:
            dz = tl.where(z <= 0, 0.0, dz)
        if initial_map is not None:
            q = tl.where(member == 0, p, _flip(p, width))
            pull = pull_scale * _pull(initial_map, pair_map, mask, group * pixels + q, has_own & (p < pixels))
            dz -= tl.where(own[:, None] & (z > 0), pull[None, :], 0.0)
        tl.store(gradient + at, dz, live)
    tl.store(score + item * classes + k, tl.sum(total, 1) / pixels.to(acc), inside)


@triton.jit
def _objective(
    score: tl.tensor,  # [groups, MEMBERS * classes]
    weight: tl.tensor,  # [groups, classes]
    factor: tl.tensor,  # [groups, 3]
    objective: tl.tensor,  # [groups], written
    suppression: tl.float64,
    classes: tl.tensor,
    MEMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64)
    acc: tl.constexpr = objective.dtype.element_ty
    total = tl.zeros([BLOCK], acc)
    for start in range(0, MEMBERS * classes, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live = i < MEMBERS * classes
        y = tl.load(score + group * MEMBERS * classes + i, live, other=0.0)
        total += y * tl.load(weight + group * classes + i % classes, live, other=0.0)
    penalty = tl.full((), suppression, acc) * tl.load(factor + group * 3 + 2)
    tl.store(objective + group, tl.sum(total, 0) - penalty)


def _tile(classes: int, pixels: int, channels_last: bool) -> tuple[int, int]:
    """(classes, positions) a program of _classes works on at a time, the longer side along memory."""
    all_classes, all_pixels = triton.next_power_of_2(classes), triton.next_power_of_2(pixels)
    if channels_last:
        block_classes = min(all_classes, 64)
        return block_classes, min(all_pixels, _TILE // block_classes)
    block_pixels = min(all_pixels, 1024)
    return min(all_classes, _TILE // block_pixels), block_pixels


def climb_loss(
    logit_map: Tensor,  # [B, C, h, w], B = groups * group_size
    target: Tensor,  # [groups], int64
    weight: Tensor,  # [groups, C]
    positive: Tensor,  # [groups]
    initial_map: Tensor | None = None,  # [groups, h, w]
    suppression: float = 0.0,
    mask_threshold: float = 0.5,
    rectify: bool = True,
    group_size: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(objective [groups], gradient like logit_map, pair_map [groups, h, w], mask [groups, h, w], score [B, C]).

    logit_map is dense, contiguous or channels-last; all else contiguous. weight, positive, initial_map and the results
    but gradient and mask are float64 for a float64 logit_map, else float32. h, w >= 1; 0 <= target < C.
    """
    items, classes, height, width = logit_map.shape
    groups, pixels = items // group_size, height * width
    channels_last = not logit_map.is_contiguous()
    strides = (classes * pixels, 1, classes) if channels_last else (classes * pixels, pixels, 1)
    wide = torch.float64 if logit_map.dtype == torch.float64 else torch.float32
    objective, factor = (logit_map.new_empty(groups, *rest, dtype=wide) for rest in ((), (_FIELDS,)))
    pair_map = logit_map.new_empty(groups, height, width, dtype=wide)
    mask = logit_map.new_empty(groups, height, width, dtype=torch.uint8)
    score = logit_map.new_empty(items, classes, dtype=wide)
    gradient = torch.empty_like(logit_map)
    if groups:
        block_classes, block_pixels = _tile(classes, pixels, channels_last)
        with torch.cuda.device_of(logit_map):
            _pair[(groups,)](
                logit_map, target, positive, initial_map, pair_map, mask, factor,
                mask_threshold, torch.finfo(wide).tiny, pixels, width, *strides,
                MEMBERS=group_size, BLOCK=min(_PAIR_BLOCK, triton.next_power_of_2(pixels)),
            )  # fmt: skip
            _classes[(items, triton.cdiv(classes, block_classes))](
                logit_map, target, weight, initial_map, pair_map, mask, factor, score, gradient,
                suppression, classes, pixels, width, *strides,
                MEMBERS=group_size, RECTIFY=rectify, BLOCK_CLASSES=block_classes, BLOCK_PIXELS=block_pixels,
            )  # fmt: skip
            _objective[(groups,)](
                score, weight, factor, objective, suppression, classes,
                MEMBERS=group_size, BLOCK=min(_OBJECTIVE_BLOCK, triton.next_power_of_2(group_size * classes)),
            )  # fmt: skip
    return objective, gradient, pair_map, mask.view(torch.bool), score
