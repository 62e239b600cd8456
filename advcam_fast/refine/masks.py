"""The maps of one image, refined, and the mask they make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast import ops
from advcam_fast.data.images import enlarged
from advcam_fast.refine.config import RefineConfig

STRIDE = 4
LEAST = 1e-5  # of a probability


def refined_maps(maps: Tensor, image: Tensor, config: RefineConfig, boundary: Tensor | None = None) -> Tensor:
    """Maps at stride 4 spread over what belongs together, at the image's size, the largest value 1 (or all 0).

    maps: float [N, h, w] in 0 to 1, h = (H-1)//4+1 and w = (W-1)//4+1; image: uint8 [3, H, W]; boundary: [h, w], for
    the walk that needs one. Returns float32 [N, H, W].
    Raises ValueError where the sizes do not belong together, or a map is out of range.
    """
    size = (image.shape[1], image.shape[2])
    walked = spread(powered(maps, image, config), image, config, boundary)
    if len(maps) == 0:
        return walked.new_zeros(0, *size)
    large = enlarged(walked, size)
    return large / large.amax().clamp(min=LEAST)


def powered(maps: Tensor, image: Tensor, config: RefineConfig) -> Tensor:
    """maps^power in float32; ValueError as refined_maps."""
    height, width = image.shape[1:]
    wanted = (len(maps), (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1)
    if tuple(maps.shape) != wanted:
        raise ValueError(
            f"maps of {list(maps.shape)} came for an image of {width} x {height}, wanted is {list(wanted)}"
        )
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError("the maps hold a NaN or a value that is not in 0 to 1")
    return maps.float() ** config.power


def spread(scores: Tensor, image: Tensor, config: RefineConfig, boundary: Tensor | None) -> Tensor:
    """The walk of the configuration on scores [M, h, w] at stride 4."""
    if config.walk == "none" or len(scores) == 0:
        return scores
    if config.walk == "color":
        small = F.interpolate(image[None].float(), scores.shape[1:], mode="area")[0]
        return ops.color_walk(scores, small, config.radius, config.sigma, config.walk_steps, config.restart)
    if boundary is None:
        raise ValueError("walk: boundary came without a boundary, wanted is one of an affinity net")
    return ops.random_walk(scores, boundary.float(), config.radius, config.beta, config.walk_steps, config.restart)


def mask_of(scores: Tensor, image: Tensor, config: RefineConfig) -> Tensor:
    """int64 [H, W]: 0 where no class exceeds the background, else 1 + the index of its class.

    scores: of refined_maps, [N, H, W]; image: uint8 [3, H, W].
    """
    if len(scores) == 0:
        return torch.zeros(scores.shape[1:], dtype=torch.int64, device=scores.device)
    background = torch.full_like(scores[:1], config.background)
    all_scores = torch.cat([background, scores])
    labels = all_scores.argmax(0)  # the first of equals: background
    if config.crf == "none" or not bool(labels.any()):
        return labels
    if config.crf == "hard":
        unary = ops.hard_unary(labels, len(all_scores), config.crf_confidence)
    else:
        unary = -(all_scores / all_scores.sum(0)).clamp(min=LEAST).log()
    pixels = image.permute(1, 2, 0)[None].contiguous()
    sharper = ops.dense_crf(pixels, unary[None], config.crf_steps, config.crf_gaussian, config.crf_bilateral)
    return sharper[0].argmax(0)
