"""centroid_walk: every pixel moves along a displacement field to the centre of its instance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops import reference
from advcam_fast.ops.backend import backend_of, define, stream_of, workspace


class CentroidWalk(NamedTuple):
    """What centroid_walk returns."""

    centroids: Tensor  # [..., 2, h, w], as displacement: where each pixel came to, y and x
    labels: Tensor  # [..., h, w], int64: its instance, from 1; 0 for none


def _run(displacement: Tensor, steps: int, threshold: float) -> tuple[Tensor, Tensor]:
    field = displacement.detach().contiguous()
    if backend_of(field.device.type) != "native":
        return reference.centroid_walk(field, steps, threshold)
    centroids, labels = _fake(field, steps, threshold)
    if field.numel() == 0:
        return centroids, labels
    flat = field.view(-1, *field.shape[-3:])
    NATIVE.centroid_walk(
        flat,
        centroids.view(flat.shape),
        labels.view(len(flat), *flat.shape[2:]),
        steps,
        threshold,
        workspace(field, NATIVE.centroid_walk_workspace * labels.numel()),
        stream=stream_of(field),
        num_threads=torch.get_num_threads(),
    )
    return centroids, labels


def _fake(displacement: Tensor, steps: int, threshold: float) -> tuple[Tensor, Tensor]:
    centroids = torch.empty_like(displacement, memory_format=torch.contiguous_format)
    return centroids, displacement.new_empty(displacement.shape[:-3] + displacement.shape[-2:], dtype=torch.int64)


define("centroid_walk", "(Tensor displacement, int steps, float threshold) -> (Tensor, Tensor)", _run, _fake)


def centroid_walk(displacement: Tensor, steps: int = 300, threshold: float = 2.5) -> CentroidWalk:
    """Moves every pixel along a displacement field and names the instance whose centre it comes to.

    `steps` times (y, x) <- clamp((y, x) + d(y, x)), d read bilinearly, from the pixel's own place. Centres are the
    4-connected components of |d| < threshold, numbered from 1 by their first pixels in raster order; a pixel's label
    is that of the component which holds its last place, rounded half to even, or 0.

    Args:
        displacement: [..., 2, h, w], float32 or float64, dy and dx in pixels.
        steps: 0 or more. threshold: in pixels; where the field is weaker it no longer leads to a centre.

    Returns:
        CentroidWalk(centroids, labels). The bits are those of the same steps in NumPy or PyTorch of that dtype. A pixel
        that meets a NaN has the centroid NaN and the label 0. Without a gradient.

    Raises:
        TypeError, ValueError: dtype, shape or range do not fit.

    Source: Ahn et al., CVPR 2019 (IRN), class-agnostic instance maps.
    """
    if displacement.ndim < 3 or displacement.shape[-3] != 2:
        raise ValueError(f"displacement: shape {tuple(displacement.shape)} came, wanted is [..., 2, h, w]")
    if displacement.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"displacement: dtype {displacement.dtype} came, wanted is torch.float32 or torch.float64")
    if steps < 0:
        raise ValueError(f"steps: {steps} came, wanted is 0 or more")
    return CentroidWalk(*torch.ops.advcam_fast.centroid_walk(displacement.detach(), steps, threshold))
