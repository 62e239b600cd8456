"""Small classifiers, with a head that is not linear and with one that is, and pictures for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advcam_fast import CamModel

CLASSES = 6


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, bias=False),
        nn.Sequential(nn.BatchNorm2d(12), nn.ReLU()),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(108, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    ).eval()


def small_cam_model(names: list[str]) -> CamModel:
    """With a linear head, of which every class sees something else."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()).eval()
    head = nn.Linear(16, len(names))
    return CamModel(features, head.weight, head.bias, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=names)


def pictures(count: int = 3, height: int = 48, width: int = 64) -> Tensor:
    """uint8 [count, 3, height, width], smooth."""
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return (nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255).to(torch.uint8)
