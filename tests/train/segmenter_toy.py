"""A small segmenter and images of two flat regions; run as a script it trains, and dies as it is told to."""

from __future__ import annotations

import sys

import torch
from torch import nn
from train.affinity_toy import TwoRegions

from advcam_fast.models import Segmenter
from advcam_fast.train import SegmenterConfig, train_segmenter

CLASSES = ("a", "b", "c", "d", "bright")
CONFIG = SegmenterConfig(
    head="v2", rate=0.002, batch=4, steps=6, crop=32, scales=(0.8, 1.2), save_every=4, test_scales=(1.0,), crf=False
)


def toy_net(head: str = "v2", head_seed: int = 0) -> Segmenter:
    torch.manual_seed(0)
    channels, layers = (8, 8, 8, 12, 12), []
    for before, after, stride in zip((3, *channels), channels, (2, 2, 2, 2, 1), strict=False):
        layers.append(nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()))
        nn.init.kaiming_normal_(layers[-1][0].weight)  # what is learned from must not fade in five layers
    torch.manual_seed(head_seed)
    return Segmenter(layers, CLASSES, head, (0.5,) * 3, (0.25,) * 3, "toy")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_segmenter(toy_net(), TwoRegions(die_after=int(sys.argv[2])), sys.argv[1], CONFIG)
