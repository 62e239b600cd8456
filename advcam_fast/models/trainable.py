"""A classifier as it is trained: the library's own network, which a weights file holds, and its logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models import torchvision_nets
from advcam_fast.models.checkpoint import Checkpoint
from advcam_fast.models.load import find_checkpoint, find_recipe
from advcam_fast.models.recipe import Recipe, fill
from advcam_fast.models.stages import five_stages


class TrainableClassifier(nn.Module):
    """y = mean over positions of W F(x) + b, whatever score the library's own head has (SqueezeNet's is never below 0).

    network: holds all layers, under the keys of weights files. features: [B, 3, H, W] -> [B, K, h, w], sharing them.
    kept_head: the head is that of the weights, not a random one.
    """

    def __init__(self, name: str, network: nn.Module, features: nn.Module, recipe: Recipe, kept_head: bool) -> None:
        super().__init__()
        self.network, self.name, self.recipe, self.kept_head = network, name, recipe, kept_head
        self._shared = (features,)  # in a tuple, so that no layer is listed twice

    @property
    def features(self) -> nn.Module:
        return self._shared[0]

    @property
    def head(self) -> nn.Module:
        return self.network.get_submodule(self.recipe.head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: normalised [B, 3, H, W] -> [B, C]."""
        bias, weight = self.head.bias, self.head.weight
        return F.linear(self.features(images).mean((2, 3)), weight.flatten(1), bias)  # type: ignore[operator, arg-type]

    def first_stages(self, count: int) -> list[nn.Module]:
        """The first of the five stages of the features, or, for 5, all of the features of any network."""
        if count == 5:
            return [self.features]
        return five_stages(self.features, self.name)[:count] if count else []

    def metadata(self, class_names: Sequence[str], activation: str) -> dict[str, str]:
        """What `load_model` reads from a weights file beside the tensors of the network."""
        names = json.dumps(list(class_names))
        return {"class_names": names, "activation": activation, "prediction_score": "mean", "model": self.name}


def new_classifier(
    name: str, weights: str | Path | None = None, class_names: Sequence[str] = ()
) -> TrainableClassifier:
    """The network of a name out of `available_models()` with a head for these classes, to be trained.

    weights: as for load_model. Their head is kept where it has the same class names in the same order, else the head
    is the library's random one. Raises UsageError as load_model does.
    """
    recipe = find_recipe(name)
    if not class_names:
        raise UsageError(f"{name}: no class names came; wanted one for each class")
    checkpoint = find_checkpoint(name, recipe, weights)
    network = recipe.build(len(class_names))
    features = recipe.features(network)
    kept = checkpoint is not None and _same_classes(checkpoint, recipe, class_names, library=weights is None)
    if checkpoint is not None:
        fill(network, recipe.head, checkpoint, with_head=kept)
    return TrainableClassifier(name, network, features, recipe, kept)


def _same_classes(checkpoint: Checkpoint, recipe: Recipe, class_names: Sequence[str], library: bool) -> bool:
    names = checkpoint.class_names
    if names is None and library and recipe.pretrained_head and recipe.default_classes == 1000:
        names = torchvision_nets.imagenet_names()
    return names == tuple(class_names)
