"""The method as users run it today: one image, one scale, one class at a time, in plain PyTorch.

Written from the description of the method alone, with nothing of the engine in it: Grad-CAM by a real backward pass
through the whole network, weight gradients included, then a second one for the image. It is both the oracle of the
engine (in float64) and the peer that benchmarks are measured against (in float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from advcam_fast.climb.config import ClimbConfig


class PlainStep(NamedTuple):
    pair_map: Tensor  # [h, w]
    objective: Tensor  # []
    feature_gradient: Tensor  # [2, K, h, w]
    image_gradient: Tensor  # [2, 3, H, W]


class PlainMaps(NamedTuple):
    strided: Tensor  # [n, (H-1)//4+1, (W-1)//4+1]
    full: Tensor  # [n, H, W]
    initial: Tensor  # [n, H, W]


def plain_step(
    network: nn.Module, head: Tensor, image: Tensor, labels: Sequence[int], start: Tensor | None, config: ClimbConfig
) -> PlainStep:
    """One forward and two backward passes over the flip pair `image` [2, 3, H, W]; head [C, K].

    labels: the class to climb first, then the image's others (needed for other_classes="present").
    """
    label, *others = labels
    image = image.detach().requires_grad_()
    features = network(image)
    features.retain_grad()
    logit_map = F.conv2d(features, head[:, :, None, None])

    logit_map[:, label].relu().sum().backward(retain_graph=True)  # Grad-CAM
    slope = features.grad
    channel = slope.sum((2, 3), keepdim=True) / (slope > 0).sum().clamp(min=1)
    features.grad = image.grad = None
    network.zero_grad()

    cam = (channel * features).sum(1).relu()  # [2, h, w]
    pair_map = cam[0] + cam[1].flip(-1)
    clean = pair_map.detach() if start is None else start
    largest = pair_map.detach().max()
    mask = pair_map.detach() / torch.where(largest > 0, largest, 1) > config.mask_threshold
    score = (logit_map.relu() if config.score == "relu_mean" else logit_map).mean((2, 3))  # [2, C]
    subtracted = {"all": [k for k in range(len(head)) if k != label], "present": others, "none": []}[
        config.other_classes
    ]
    target = score[:, label].sum() - score[:, subtracted].sum()
    objective = target - config.suppression * (mask * (pair_map - clean).abs()).sum()
    objective.backward()
    assert features.grad is not None and image.grad is not None
    return PlainStep(pair_map.detach(), objective.detach(), features.grad, image.grad)


def plain_climb(
    network: nn.Module, head: Tensor, pair: Tensor, labels: Sequence[int], config: ClimbConfig, steps: int
) -> tuple[Tensor, Tensor]:
    """(sum of `steps` pair maps, the first of them) for the class labels[0]; as released, the last step climbs too."""
    image = pair
    velocity = torch.zeros_like(pair)
    maps: list[Tensor] = []
    for _ in range(steps):
        step = plain_step(network, head, image, labels, maps[0] if maps else None, config)
        maps.append(step.pair_map)
        gradient = step.image_gradient
        if config.momentum:
            velocity = config.momentum * velocity + gradient / gradient.abs().sum()
            gradient = velocity
        moved = image + config.step_size * gradient / (gradient.abs().max() + 1e-12)
        image = moved.clamp(image.min().item(), image.max().item())
        network.zero_grad()
    return torch.stack(maps).sum(0), maps[0]


def plain_maps(
    network: nn.Module,
    head: Tensor,
    pixels: np.ndarray,  # uint8 [H, W, 3]
    labels: Sequence[int],
    config: ClimbConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> PlainMaps:
    """All scales and classes of one image, merged and normalised."""
    height, width = pixels.shape[:2]
    strided_size = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    padded = ((height + 15) // 16 * 16, (width + 15) // 16 * 16)
    merged: list[list[Tensor]] = [[], [], []]
    for label in labels:
        order = [label, *(other for other in labels if other != label)]
        totals, starts = [], []
        for scale in config.scales:
            factor = scale * config.base_side / (height * width) ** 0.5 if config.base_side else scale
            pair = flip_pair(pixels, factor, mean, std).to(head.dtype)
            total, start = plain_climb(network, head, pair, order, config, config.steps_for(scale))
            totals.append(total)
            starts.append(start)
        merged[0].append(_merge(totals, strided_size, strided_size))
        merged[1].append(_merge(totals, padded, (height, width)))
        merged[2].append(_merge(starts, padded, (height, width)))
    return PlainMaps(*(torch.stack(maps) for maps in merged))


def flip_pair(pixels: np.ndarray, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[2, 3, h, w] float64: the image resized by Pillow's bicubic, normalised, and its mirror image."""
    height, width = pixels.shape[:2]
    size = (max(1, int(np.rint(width * scale))), max(1, int(np.rint(height * scale))))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    normal = (resized / 255 - np.asarray(mean)) / np.asarray(std)
    return torch.from_numpy(np.stack([normal, normal[:, ::-1]]).transpose(0, 3, 1, 2).copy())


def _merge(maps: list[Tensor], size: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    resized = [F.interpolate(m[None, None], size, mode="bilinear", align_corners=False)[0, 0] for m in maps]
    merged = torch.stack(resized).sum(0)[: crop[0], : crop[1]]
    return merged / (merged.max() + 1e-5)
