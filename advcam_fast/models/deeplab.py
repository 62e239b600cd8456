"""DeepLab-v2 and v3+ on the five stages of a backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from advcam_fast.errors import UsageError
from advcam_fast.models.affinity_net import normalised
from advcam_fast.models.checkpoint import Checkpoint, read_checkpoint
from advcam_fast.models.load import load_model
from advcam_fast.models.recipe import fill
from advcam_fast.models.stages import dilate, five_stages, stage_sizes

HEADS = ("v2", "v3plus")


class Segmenter(nn.Module):
    """Five stages, the last at stride 8, and a head that scores the background and every class at each position.

    v2: z = sum over the rates 6, 12, 18, 24 of a 3x3 convolution of that dilation (Chen et al., TPAMI 2018).
    v3plus: torchvision's atrous spatial pyramid, joined by the second stage at stride 4 (Chen et al., ECCV 2018).
    classes: names, without the background. Raises UsageError for another head.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        classes: Sequence[str],
        head: str,
        mean: Sequence[float],
        std: Sequence[float],
        backbone: str,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"head is {head!r}; wanted {' or '.join(HEADS)}")
        if not classes:
            raise UsageError("no class names came; wanted one for each class")
        dilate(stages)
        channels, strides = stage_sizes(stages)
        self.classes, self.kind, self.backbone = tuple(classes), head, backbone
        self.mean, self.std, self.stride = tuple(mean), tuple(std), strides[-1]
        self.stages = nn.ModuleList(stages)
        score = 1 + len(classes)
        self.head = _Pyramid(channels[-1], score) if head == "v2" else _Decoder(channels[1], channels[-1], score)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: normalised [B, 3, H, W] -> [B, 1 + C, h, w], h = ceil(H / 8), or ceil(H / 4) for v3plus."""
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        logits: Tensor = self.head(found[1], found[4])
        return logits

    @torch.no_grad()
    def probabilities(self, image: Tensor, scales: Sequence[float], flip: bool = True) -> Tensor:
        """The mean over scales and mirror images of softmax(logits): uint8 [3, H, W] -> float32 [1 + C, H, W]."""
        size, device = image.shape[1:], next(self.parameters()).device
        view = normalised(image.to(device), self.mean, self.std, torch.float32)[None]
        total, count = torch.zeros((), device=device), 0
        self.eval()
        for scale in scales:
            sides = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(view, sides, mode="bilinear", align_corners=False, antialias=scale < 1)
            for mirrored in (False, True) if flip else (False,):
                logits = self(scaled.flip(-1) if mirrored else scaled)
                logits = logits.flip(-1) if mirrored else logits
                large = F.interpolate(logits, size, mode="bilinear", align_corners=False)
                total, count = total + large[0].softmax(0), count + 1
        return total / count

    def metadata(self) -> dict[str, str]:
        return {"class_names": json.dumps(self.classes), "backbone": self.backbone, "head": self.kind}


class _Pyramid(nn.Module):
    def __init__(self, channels: int, score: int) -> None:
        super().__init__()
        rates = (6, 12, 18, 24)
        self.branches = nn.ModuleList(nn.Conv2d(channels, score, 3, padding=rate, dilation=rate) for rate in rates)
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d) and branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, _: Tensor, deep: Tensor) -> Tensor:
        return torch.stack([branch(deep) for branch in self.branches]).sum(0)


class _Decoder(nn.Module):
    def __init__(self, low: int, channels: int, score: int) -> None:
        super().__init__()
        self.pyramid = ASPP(channels, [12, 24, 36])
        self.low = nn.Sequential(nn.Conv2d(low, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        layers: list[nn.Module] = []
        for before in (256 + 48, 256):
            layers += [nn.Conv2d(before, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
        self.score = nn.Sequential(*layers, nn.Conv2d(256, score, 1))

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        large = F.interpolate(self.pyramid(deep), low.shape[2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.score(torch.cat([large, self.low(low)], 1))
        return logits


def new_segmenter(backbone: str, weights: str | Path | None, classes: Sequence[str], head: str = "v2") -> Segmenter:
    """A random head on the stages of a backbone: a ResNet of torchvision or efficientnet_lite0.

    weights: of the backbone, as for load_model; a classifier's file too. Raises UsageError as load_model does.
    """
    fresh_head = weights is None or weights == "none"
    model = load_model(backbone, weights, num_classes=1 if fresh_head else None)
    assert isinstance(model.features, nn.Module)
    stages = five_stages(model.features.requires_grad_(True), backbone)
    return Segmenter(stages, classes, head, model.mean, model.std, backbone)


def load_segmenter(path: str | Path, device: torch.device | str = "cpu") -> Segmenter:
    """The segmenter of a file of train-segmenter, in eval mode; UsageError for any other file."""
    found = read_checkpoint(path)
    if not found.class_names or not {"backbone", "head"} <= found.metadata.keys():
        raise UsageError(f"weights {path}: names no backbone, head and classes; wanted a file of train-segmenter")
    net = new_segmenter(found.metadata["backbone"], "none", found.class_names, found.metadata["head"])
    fill(net, "", Checkpoint(found.source, found.tensors), with_head=False)
    return net.eval().to(device)
