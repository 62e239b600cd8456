"""The masks of single objects: maps cut by where the displacement of their pixels leads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.data.images import enlarged
from advcam_fast.refine.config import RefineConfig
from advcam_fast.refine.masks import LEAST, powered, spread


class Instance(NamedTuple):
    """One object: the index of its map, how sure its best pixel is (0 to 1), and its pixels, bool [H, W]."""

    which: int
    score: float
    mask: Tensor


def instances_of(
    maps: Tensor, image: Tensor, config: RefineConfig, boundary: Tensor | None, displacement: Tensor
) -> list[Instance]:
    """Instances in the order of maps, then of clusters, then of the first pixels of their connected parts.

    s_nk = walk(map_n^power [cluster = k]); pixel -> argmax over the background's score and s_nk / max s; an instance is
    a 4-connected part of the pixels of one nk, its score the greatest s_nk / max s in it.

    maps: float [N, h, w] in 0 to 1 at stride 4 of image, uint8 [3, H, W]; boundary: [h, w]; displacement: [2, h, w], dy
    and dx in pixels of the maps. Pixels that come to no centre are a cluster of their own.
    Raises ValueError where the sizes do not belong together, or a map is out of range.
    Source: Ahn et al., CVPR 2019 (IRN).
    """
    size = (image.shape[1], image.shape[2])
    scores = powered(maps, image, config)
    if displacement.shape != (2, *scores.shape[1:]):
        wanted = [2, *scores.shape[1:]]
        raise ValueError(f"a displacement of {list(displacement.shape)} came, wanted is {wanted}")
    walked, owners = _cut(scores, ops.centroid_walk(displacement.float(), config.centroid_steps).labels)
    walked = spread(walked, image, config, boundary)
    # One at a time, twice: as many as clusters times classes at the image's size might not fit in memory.
    peaks = [float(enlarged(part[None], size).amax()) for part in walked]
    peak = max([LEAST, *peaks])
    best = torch.full(size, config.background, device=maps.device)
    winner = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for number, part in enumerate(walked, start=1):
        score = enlarged(part[None], size)[0] / peak
        better = score > best
        best, winner = torch.where(better, score, best), torch.where(better, number, winner)
    return [
        Instance(owners[number - 1], float(best[part].max()), part)
        for number in winner.unique().tolist()
        if number > 0
        for part in _parts(winner == number, config.least_instance)
    ]


def _cut(scores: Tensor, labels: Tensor) -> tuple[Tensor, list[int]]:
    """scores [N, h, w] by labels [h, w] -> the parts that are not empty [M, h, w], and whose each is."""
    clusters = labels.unique()
    inside = (labels == clusters[:, None, None]).to(scores.dtype)  # [K, h, w]
    parts = (scores[:, None] * inside).flatten(0, 1)
    there = parts.flatten(1).amax(1) > 0
    owners = torch.arange(len(scores), device=scores.device).repeat_interleave(len(clusters))
    return parts[there], owners[there].tolist()


def _parts(mask: Tensor, least: float) -> list[Tensor]:
    """The 4-connected parts of a mask [H, W] that hold at least that share of its pixels."""
    # without a step the walk's clusters are the parts of where the field is weak
    field = torch.stack([(~mask).float(), torch.zeros_like(mask, dtype=torch.float32)])
    labels = ops.centroid_walk(field, steps=0, threshold=0.5).labels
    counts = labels.flatten().bincount()
    counts[0] = 0
    large = (counts > 0) & (counts >= least * mask.numel())
    return [labels == number for number in large.nonzero()[:, 0].tolist()]
