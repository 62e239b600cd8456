"""The maps of one image, refined, and the mask they make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast import ops
from advcam_fast.refine.config import RefineConfig

STRIDE = 4
LEAST = 1e-5  # of a probability


def refined_maps(maps: Tensor, image: Tensor, config: RefineConfig) -> Tensor:
    """Maps at stride 4 spread over what looks alike, at the image's size, the largest value 1 (or all 0).

    maps: float [N, (H-1)//4+1, (W-1)//4+1] in 0 to 1; image: uint8 [3, H, W]. Returns float32 [N, H, W].
    Raises ValueError where the sizes do not belong together, or a map is out of range.
    """
    height, width = image.shape[1:]
    wanted = (len(maps), (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1)
    if tuple(maps.shape) != wanted:
        raise ValueError(
            f"maps of {list(maps.shape)} came for an image of {width} x {height}, wanted is {list(wanted)}"
        )
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError("the maps hold a NaN or a value that is not in 0 to 1")
    scores = maps.float() ** config.power
    if config.walk == "color" and len(maps):
        small = F.interpolate(image[None].float(), wanted[1:], mode="area")[0]
        scores = ops.color_walk(scores, small, config.radius, config.sigma, config.walk_steps, config.restart)
    if len(maps) == 0:
        return scores.new_zeros(0, height, width)
    large = F.interpolate(scores[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    large = large[:, :height, :width]
    return large / large.amax().clamp(min=LEAST)


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
