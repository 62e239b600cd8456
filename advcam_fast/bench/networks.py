"""Networks to measure and test with: random weights that behave, so that nothing has to be downloaded."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from advcam_fast.models import CamModel, load_model


def calibrated(network: nn.Module) -> nn.Module:
    """Activations of about unit size in every layer: running statistics from noise, BatchNorm weights not all alike."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    return network.eval()


def random_model(name: str, num_classes: int = 20) -> CamModel:
    """load_model's network of that name with calibrated random weights, always the same ones."""
    torch.manual_seed(0)
    model = load_model(name, weights="none", num_classes=num_classes)
    assert isinstance(model.features, nn.Module)
    calibrated(model.features)
    return model


def plain_peer(model: CamModel, view: Tensor) -> tuple[nn.Module, Tensor]:
    """What plain_step takes for a uint8 view [1, 3, H, W]: the network, weight gradients on as it is released, and the
    flip pair [2, 3, H, W], contiguous."""
    assert isinstance(model.features, nn.Module)
    image = model.normalise(view).contiguous()
    return copy.deepcopy(model.features).requires_grad_(True), torch.cat([image, image.flip(-1)])


@torch.no_grad()
def best_class(model: CamModel, view: Tensor) -> int:
    """The class that scores highest in a uint8 view [1, 3, H, W]: its map is not empty."""
    features = model.features(model.normalise(view))
    return int(model.logit_map(features).relu().mean((0, 2, 3)).argmax())
