"""Fields whose right answer is plain."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def toward_centres(centres: Sequence[tuple[int, int]], size: tuple[int, int]) -> torch.Tensor:
    """Displacement [2, h, w] of every pixel to the nearest of some centres."""
    places = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij"))
    ways = torch.tensor(centres, dtype=torch.float32)[:, :, None, None] - places  # [N, 2, h, w]
    nearest = ways.norm(dim=1).argmin(0)
    return ways.gather(0, nearest.expand(1, 2, *size))[0]
