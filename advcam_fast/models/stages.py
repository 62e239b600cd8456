"""A backbone in five stages, as the affinity net and segmenters look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from advcam_fast.errors import UsageError


def five_stages(features: nn.Module, name: str) -> list[nn.Module]:
    """The features of a model of `load_model` as five modules in a row, the first two of stride 4, sharing its layers.

    Raises UsageError for a network that is neither a ResNet of torchvision nor efficientnet_lite0.
    """
    parts: dict[str, Any] = dict(features.named_children())
    if {"conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"} == parts.keys():
        stem = nn.Sequential(parts["conv1"], parts["bn1"], parts["relu"], parts["maxpool"])
        return [stem, *(parts[f"layer{number}"] for number in (1, 2, 3, 4))]
    if name == "efficientnet_lite0":
        network = parts["network"]
        one, two, three, four, five, six, seven = network.blocks
        stem = nn.Sequential(network.conv_stem, network.bn1, one, two[0])
        return [stem, two[1], three, nn.Sequential(four, five), nn.Sequential(six, seven)]
    raise UsageError(f"{name}: its five stages are not known; wanted is a ResNet of torchvision or efficientnet_lite0")


@torch.no_grad()
def stage_sizes(stages: Sequence[nn.Module]) -> tuple[list[int], list[int]]:
    """Channels and strides of stages, asked of themselves."""
    side = 256
    found = torch.zeros(1, 3, side, side)
    channels, strides = [], []
    for stage in stages:
        found = stage.eval()(found)
        channels.append(found.shape[1])
        strides.append(side // found.shape[-1])
    return channels, strides


def dilate(stages: Sequence[nn.Module], most: int = 8) -> None:
    """Holds the stride of stages at `most`, in place: what comes after a stride that is taken out looks further.

    The weights stay, and what was seen at every most-th pixel is seen as before. Raises UsageError for a convolution
    that takes more than one step at once.
    """
    strides, stretch = stage_sizes(stages)[1], 1
    for stage, stride in zip(stages, strides, strict=True):
        before, stretch = stretch, max(1, stride // most)
        if stretch == 1:
            continue
        for layer in stage.modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            taken = max(layer.stride)
            if taken > 2:
                raise UsageError(f"a convolution of stride {taken} cannot be dilated; wanted 1 or 2")
            _stretch(layer, before if taken > 1 else stretch)
            layer.stride = (1, 1)


def _stretch(layer: nn.Conv2d, factor: int) -> None:
    """Dilates a convolution about its middle; padding that a network finds for itself (TensorFlow's) stays so."""
    if max(layer.kernel_size) == 1:
        return
    layer.dilation = (factor, factor)
    if not isinstance(layer.padding, str) and any(layer.padding):
        layer.padding = tuple(factor * (size // 2) for size in layer.kernel_size)
