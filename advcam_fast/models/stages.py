"""A backbone in five stages, as the affinity net looks at it."""

from __future__ import annotations

from typing import Any

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
