"""A small classifier with a head that is not linear, and pictures for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def pictures(count: int = 3, height: int = 48, width: int = 64) -> Tensor:
    """uint8 [count, 3, height, width], smooth."""
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return (nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255).to(torch.uint8)
