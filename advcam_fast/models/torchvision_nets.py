"""torchvision's classifiers by the keys of their heads, and variants of three of them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from advcam_fast.errors import UsageError
from advcam_fast.models.recipe import IMAGENET_MEAN, IMAGENET_STD, NOT_LINEAR, Recipe, rebase_input

_HEADS = {  # network family: key of its head, one linear layer over averaged features
    r"(wide_)?resnet\d+(_2)?|resnext\d+_\w+|regnet_\w+|shufflenet_\w+|inception_v3": "fc",
    r"densenet\d+": "classifier",
    r"mobilenet_v2|mnasnet\w+|efficientnet_\w+|squeezenet1_[01]": "classifier.1",
}
_OTHER_HEADS = {  # of these the last layer
    r"alexnet|vgg\d+(_bn)?": "classifier.6",
    r"convnext_\w+": "classifier.2",
    r"maxvit_t": "classifier.5",
    r"mobilenet_v3_\w+": "classifier.3",
    r"swin_\w+": "head",
    r"vit_[bl]_\d+": "heads.head",
}
_ONE_SIZE = ("vit_", "maxvit_")
_NOT_FEATURES = {"avgpool", "dropout", "fc", "classifier", "AuxLogits"}
_CAFFE_MEAN = (122.679, 116.669, 104.006)  # red, green, blue of 0-255, no division


def imagenet_names() -> tuple[str, ...]:
    """The 1000 ImageNet classes in index order, by their first and unique names: 281 is "tabby", 339 "sorrel"."""
    return tuple(tv.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def names() -> list[str]:
    variants = {"resnet50_stride16", "vgg16"}
    return sorted(variants | {name for name in tv.list_models(module=tv) if _head(name, _HEADS | _OTHER_HEADS)})


def recipe(name: str) -> Recipe:
    """The recipe of a name out of `names()`."""
    if name == "resnet50_stride16":
        return _resnet50_stride16()
    if name == "vgg16":
        return _vgg16()
    head = _head(name, _HEADS | _OTHER_HEADS)
    assert head is not None, name
    preprocessing = _library_weights(name).transforms()
    found = Recipe(
        head=head,
        build=partial(_build, name),
        features=partial(_features, name),
        pretrained=partial(_download, name),
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        input_size=(*preprocessing.crop_size * 2,) if name.startswith(_ONE_SIZE) else None,
    )
    if name.startswith("squeezenet"):
        return replace(found, prediction_score="relu_mean", adapt=_adapt_squeezenet)
    if name == "inception_v3":
        return replace(found, pretrained=_inception_weights, adapt=partial(_without, ("AuxLogits.",)))
    return found


def _head(name: str, heads: Mapping[str, str]) -> str | None:
    return next((head for pattern, head in heads.items() if re.fullmatch(pattern, name)), None)


def _library_weights(name: str) -> tv.WeightsEnum:
    """The first published weights: class activation maps in the literature are of those recipes, not of later ones."""
    return next(iter(tv.get_model_weights(name)))


def _download(name: str) -> Mapping[str, Tensor]:
    weights: Mapping[str, Tensor] = _library_weights(name).get_state_dict(progress=False, check_hash=True)
    return weights


def _build(name: str, num_classes: int) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    network: nn.Module = tv.get_model(name, weights=None, num_classes=num_classes, **options)
    return network.eval()


def _features(name: str, network: nn.Module) -> nn.Module:
    if _head(name, _HEADS) is None:
        raise UsageError(f"{name}: more than an average stands before its head; {NOT_LINEAR}")
    layers = OrderedDict((key, child) for key, child in network.named_children() if key not in _NOT_FEATURES)
    if name.startswith("densenet"):
        layers["relu"] = nn.ReLU()  # a function call in torchvision's forward
    return nn.Sequential(layers)


def _without(prefixes: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}


def _adapt_squeezenet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe's layout too: `conv10` for the head, input blue-green-red minus a mean on 0-255."""
    if "conv10.weight" not in tensors:
        return tensors
    renamed = {re.sub(r"^conv10\.", "classifier.1.", key): tensor for key, tensor in tensors.items()}
    first = renamed.get("features.0.weight")
    if first is None or first.shape[1:2] != (3,) or "features.0.bias" not in renamed:
        return renamed  # `fill` names what is wrong
    scale = 255 * torch.tensor(IMAGENET_STD, dtype=torch.float64)
    shift = 255 * torch.tensor(IMAGENET_MEAN, dtype=torch.float64) - torch.tensor(_CAFFE_MEAN, dtype=torch.float64)
    weight, bias = rebase_input(first.flip(1), scale, shift)
    return renamed | {"features.0.weight": weight, "features.0.bias": renamed["features.0.bias"] + bias}


def _inception_weights() -> Mapping[str, Tensor]:
    """torchvision's weights want pixel / 127.5 - 1; here the network takes ImageNet's mean and deviation."""
    weights = _without(("AuxLogits.",), dict(_download("inception_v3")))
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64)
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)
    first, norm_mean = "Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn.running_mean"
    weights[first], bias = rebase_input(weights[first], std / 0.5, (mean - 0.5) / 0.5)
    weights[norm_mean] = weights[norm_mean] - bias
    return weights


def _resnet50_stride16() -> Recipe:
    """The released code's: layer4 with stride 1 and no dilation, a 1x1 head without bias, independent classes."""
    return Recipe(
        head="classifier",
        build=_build_resnet50_stride16,
        features=partial(_features, "resnet50"),
        taken_apart=True,
        pretrained=partial(_download, "resnet50"),
        pretrained_head=False,
        default_classes=20,
        adapt=_adapt_released,
        activation="sigmoid",
    )


def _build_resnet50_stride16(num_classes: int) -> nn.Module:
    network = _build("resnet50", num_classes)
    block = network.get_submodule("layer4.0")
    for layer in (block.get_submodule("conv2"), block.get_submodule("downsample.0")):
        assert isinstance(layer, nn.Conv2d)
        layer.stride = (1, 1)
    del network.fc
    network.classifier = nn.Conv2d(2048, num_classes, 1, bias=False)
    return network


def _adapt_released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdvCAM's and IRN's files: `resnet50.*`, the same tensors again as `stageN.*`, `backbone.*`, `newly_added.*`."""
    kept = tensors
    if any(key.startswith("resnet50.") for key in tensors):
        copies = ("stage1.", "stage2.", "stage3.", "stage4.", "backbone.", "newly_added.")
        kept = {key.removeprefix("resnet50."): value for key, value in _without(copies, tensors).items()}
    return _without(("fc.",), kept)


def _vgg16() -> Recipe:
    """VGG16 up to conv5_3, without the last max-pool, and a linear head `classifier` over the average."""
    return Recipe(
        head="classifier",
        build=_build_vgg16,
        features=lambda network: network.get_submodule("features"),
        taken_apart=True,
        pretrained=lambda: {key: value for key, value in _download("vgg16").items() if key.startswith("features.")},
        pretrained_head=False,
    )


def _build_vgg16(num_classes: int) -> nn.Module:
    layers = make_layers(cfgs["D"][:-1])
    return nn.Sequential(OrderedDict(features=layers, classifier=nn.Linear(512, num_classes)))
