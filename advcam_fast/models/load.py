"""Networks by name, as CamModels, or as GradCamModels of one of their layers."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from advcam_fast.errors import UsageError, first_line
from advcam_fast.models import torchvision_nets
from advcam_fast.models.cam_model import CamModel
from advcam_fast.models.checkpoint import Checkpoint, read_checkpoint
from advcam_fast.models.grad_cam_model import GradCamModel
from advcam_fast.models.recipe import Recipe, fill


@overload
def load_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    target_layer: None = None,
) -> CamModel: ...


@overload
def load_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    *,
    target_layer: str,
) -> GradCamModel: ...


def load_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    target_layer: str | None = None,
) -> CamModel | GradCamModel:
    """A classifier by name (`available_models()`; "timm/NAME" insists on timm's network of that name).

    weights: None for the library's pretrained ones, a .safetensors or torch file with the network's own keys, or
    "none" for random ones. The head is the file's; `num_classes` or `class_names` ask for a head of that size, which
    is an untrained one where the library's has another. Class names: as given, else the file's, else ImageNet's for
    1000 classes. A file's metadata may say "activation" and "prediction_score", as CamModel has them. Random weights
    and an untrained head are said in the model's name.
    target_layer: look at the output of that layer by Grad-CAM, whatever the head is; a network that takes images of one
    size only has them resized to it.
    Heads of our own: vgg16 `classifier`, resnet50_stride16 `classifier` without bias, inception_v3 `fc`; [C, K] or
    [C, K, 1, 1]. squeezenet1_1 takes Caffe's keys, resnet50_stride16 the released AdvCAM and IRN files too.
    Raises UsageError for an unknown name, weights that cannot be had or do not fit, or names that do not fit the head.
    """
    recipe = find_recipe(name)
    if target_layer is not None and recipe.taken_apart:
        raise UsageError(f"{name}: a target layer came, but it is looked at before its head only")
    if class_names is not None and num_classes is None:
        num_classes = len(class_names)
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; wanted 1 or more")
    checkpoint = find_checkpoint(name, recipe, weights)
    recipe = _as_said(recipe, checkpoint)
    fresh_head = weights is None and not (recipe.pretrained_head and num_classes in (None, recipe.default_classes))
    if fresh_head and num_classes is None:
        raise UsageError(f"{name}: the library has no weights for its head; give weights=FILE, or num_classes=N")
    if num_classes is None:
        num_classes = recipe.default_classes if checkpoint is None else _head_size(checkpoint, recipe)
    network = recipe.build(num_classes)
    features = recipe.features(network) if target_layer is None else network
    label = name if checkpoint is not None else f"{name} (random weights)"
    if checkpoint is not None:
        fill(network, recipe.head, checkpoint, with_head=not fresh_head)
        class_names = class_names or checkpoint.class_names
    class_names = class_names or (torchvision_nets.imagenet_names() if num_classes == 1000 else None)
    label = f"{label} (untrained head)" if fresh_head else label
    told: dict[str, Any] = {"class_names": class_names, "name": label}
    told |= {"mean": recipe.mean, "std": recipe.std, "activation": recipe.activation}
    if target_layer is not None:
        told |= {"num_classes": num_classes, "input_size": recipe.input_size}
        return GradCamModel(network, target_layer, **told).to(device)
    head = network.get_submodule(recipe.head)
    return CamModel(
        features.eval().requires_grad_(False),
        head.weight.detach().flatten(1),  # type: ignore[operator]
        head.bias,  # type: ignore[arg-type]
        prediction_score=recipe.prediction_score,
        **told,
    ).to(device)


def available_models() -> list[str]:
    """Every name that `load_model` knows, timm's with the prefix "timm/"; some need a target layer."""
    own = sorted(["efficientnet_lite0", *torchvision_nets.names()])
    return own + [f"timm/{name}" for name in _timm_names()]


def _timm_names() -> list[str]:
    if importlib.util.find_spec("timm") is None:  # an extra, so timm_nets is imported only where it is needed
        return []
    from advcam_fast.models import timm_nets

    return timm_nets.names()


def find_recipe(name: str) -> Recipe:
    """How a network of `available_models()` is built; UsageError for any other name, with names close to it."""
    if name in torchvision_nets.names():
        return torchvision_nets.recipe(name)
    if (name == "efficientnet_lite0" or name.startswith("timm/")) and not _timm_names():
        raise UsageError(f"{name} needs timm: pip install timm")
    plain = name.removeprefix("timm/")
    if name == "efficientnet_lite0" or plain.split(".")[0] in _timm_names():
        from advcam_fast.models import timm_nets

        return timm_nets.efficientnet_lite0() if name == "efficientnet_lite0" else timm_nets.recipe(plain)
    known = {full.removeprefix("timm/"): full for full in reversed(available_models())}
    close = [known[match] for match in difflib.get_close_matches(plain, known)]
    hint = f"did you mean {', '.join(close)}?" if close else "available_models() lists all names"
    raise UsageError(f"unknown model {name!r}; {hint}")


def find_checkpoint(name: str, recipe: Recipe, weights: str | Path | None) -> Checkpoint | None:
    """Weights in the network's own keys: the library's, a file's, or None for "none"."""
    if weights == "none":
        return None
    if weights is None:
        return Checkpoint(f"of {name}", _fetch(name, recipe.pretrained))
    found = read_checkpoint(weights)
    return replace(found, tensors=recipe.adapt(dict(found.tensors)))


def _fetch(name: str, pretrained: Callable[[], Mapping[str, Tensor]] | None) -> Mapping[str, Tensor]:
    ways = "give weights=FILE (.safetensors or a torch state dict), or weights='none' for random ones"
    if pretrained is None:
        raise UsageError(f"{name}: the library has no pretrained weights; {ways}")
    try:
        return pretrained()
    except Exception as error:  # each library and each network failure has its own
        reason = first_line(error)
        raise UsageError(f"{name}: its pretrained weights could not be had ({reason}); {ways}") from error


def _as_said(recipe: Recipe, checkpoint: Checkpoint | None) -> Recipe:
    """What a file's head was trained for, where its metadata says so."""
    for key, choices in (("activation", ("softmax", "sigmoid")), ("prediction_score", ("mean", "relu_mean"))):
        said = checkpoint.metadata.get(key) if checkpoint is not None else None
        if checkpoint is not None and said is not None:
            if said not in choices:
                wanted = " or ".join(map(repr, choices))
                raise UsageError(f"weights {checkpoint.source}: {key} is {said!r}; wanted {wanted}")
            recipe = replace(recipe, **{key: said})  # type: ignore[arg-type]
    return recipe


def _head_size(checkpoint: Checkpoint, recipe: Recipe) -> int:
    key = f"{recipe.head}.weight"
    if key not in checkpoint.tensors:
        raise UsageError(f"weights {checkpoint.source}: {key} [C, K] is missing")
    if checkpoint.tensors[key].ndim not in (2, 4):
        raise UsageError(f"weights {checkpoint.source}: {key} is {list(checkpoint.tensors[key].shape)}; wanted [C, K]")
    return len(checkpoint.tensors[key])
