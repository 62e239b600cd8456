"""A small affinity net and images of two flat regions; run as a script it trains, and dies as it is told to."""

from __future__ import annotations

import os
import signal
import sys

import torch
from torch import Tensor, nn

from advcam_fast.models.affinity_net import AffinityNet
from advcam_fast.train.affinity import AffinityConfig, train_affinity

CONFIG = AffinityConfig(crop=32, batch=4, epochs=3, radius=4, save_every=3, boundary_rate=0.02, displacement_rate=0.02)


def toy_net(head_seed: int = 0) -> AffinityNet:
    torch.manual_seed(0)
    channels, layers = (8, 8, 8, 12, 12), []
    for before, after, stride in zip((3, *channels), channels, (4, 1, 2, 2, 1), strict=False):
        kernel = 7 if stride == 4 else 3
        layers.append(nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.ReLU()))
    torch.manual_seed(head_seed)
    return AffinityNet(layers, channels)


class TwoRegions:
    """Dark on the left, label 0; bright on the right, label 5; the four columns at the edge are unsure."""

    def __init__(self, count: int = 9, size: int = 48, die_after: int | None = None) -> None:
        self.count, self.size, self.reads, self.die_after = count, size, 0, die_after

    def __len__(self) -> int:
        return self.count

    def edge(self, index: int) -> int:
        return 14 + 5 * index % (self.size - 28)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        self.reads += 1
        if self.reads - 1 == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        edge = self.edge(index)
        image = torch.full((3, self.size, self.size), 40, dtype=torch.uint8)
        image[:, :, edge:] = torch.tensor([200, 180, 90], dtype=torch.uint8)[:, None, None]
        labels = torch.zeros(self.size, self.size, dtype=torch.uint8)
        labels[:, edge:] = 5
        labels[:, edge - 2 : edge + 2] = 255
        return image, labels


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_affinity(toy_net(), TwoRegions(die_after=int(sys.argv[2])), sys.argv[1], CONFIG)
