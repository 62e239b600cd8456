"""cam_accumulate: adds maps to a total, resized on the way, and normalises it at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import define, fallback, mutates, refuse_grad, stream_of, workspace


def _run(maps: list[Tensor], total: Tensor, size: list[int], normalise: bool) -> None:
    dense = [m.contiguous() for m in maps]
    if (other := fallback("cam_accumulate", total.device.type)) is not None:
        other(dense, total, tuple(size), normalise)
    else:
        NATIVE.cam_accumulate(
            dense,
            total,
            size[0],
            size[1],
            normalise,
            workspace(total, total.shape[0] * NATIVE.cam_accumulate_workspace),
            stream=stream_of(total),
            num_threads=torch.get_num_threads(),
        )
    mutates(total)


def _fake(maps: list[Tensor], total: Tensor, size: list[int], normalise: bool) -> None:
    return None


define("cam_accumulate", "(Tensor[] maps, Tensor(a!) total, int[] size, bool normalise) -> ()", _run, _fake)


def cam_accumulate(
    maps: Sequence[Tensor], total: Tensor, size: tuple[int, int] | None = None, normalise: bool = False
) -> Tensor:
    """Adds the maps of all scales, resized to one size, to `total`, in place, and returns it.

    total <- total + sum_s crop(bilinear(map_s, size)); with normalise each map is then divided by (its max + 1e-5).

    Args:
        maps: up to 8 tensors [N, h_s, w_s], float32 or float64, as total. Of total's own size: plainly added.
        total: [N, H, W], contiguous. Written.
        size: (rows, columns) the maps are resized to (align_corners=False), at least (H, W); total is its upper left
            part. None: (H, W).
        normalise: divide each of the N maps by (its max + 1e-5) after adding.

    Raises:
        RuntimeError: an input requires grad. TypeError, ValueError: dtype, shape, strides or device do not fit.

    Source: Lee et al., CVPR 2021, eq. 4; sizes and the 1e-5 as in the released code.
    """
    refuse_grad("cam_accumulate", total, *maps)
    if total.ndim != 3:
        raise ValueError(f"total: shape {tuple(total.shape)} came, wanted is [N, H, W]")
    rows_columns = list(total.shape[1:]) if size is None else list(size)
    torch.ops.advcam_fast.cam_accumulate(list(maps), total, rows_columns, normalise)
    return total
