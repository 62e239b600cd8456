"""How one named network is built, taken apart into features and head, and filled with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models.checkpoint import Checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NOT_LINEAR = "wanted a head of one linear layer over averaged features, or a target layer (--layer)"


@dataclass(frozen=True)
class Recipe:
    """build(C) gives the library's own network of C classes, features(network) what is before its head.

    The two share their modules. features raises UsageError where the head is not one linear layer over averaged
    features. taken_apart: the network cannot be run as a whole. input_size: (rows, columns) of a network that takes one
    size only.
    Weights files use the network's own keys; `adapt` turns other known layouts into them and drops what is not
    needed. `head` is the key of its last layer, a Linear or a 1x1 convolution. `pretrained` fetches the library's
    weights (None: there are none); `pretrained_head` tells whether they hold a head for `default_classes`.
    """

    head: str
    build: Callable[[int], nn.Module]
    features: Callable[[nn.Module], nn.Module]
    pretrained: Callable[[], Mapping[str, Tensor]] | None
    pretrained_head: bool = True
    default_classes: int = 1000
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    activation: Literal["softmax", "sigmoid"] = "softmax"
    prediction_score: Literal["mean", "relu_mean"] = "mean"
    input_size: tuple[int, int] | None = None
    taken_apart: bool = False


def fill(network: nn.Module, head: str, checkpoint: Checkpoint, with_head: bool = True) -> None:
    """Copies a checkpoint, in the network's own keys, into it: every key must be there and fit, none be left over.

    The head may be [C, K] or [C, K, 1, 1], and its bias may be absent (0). Raises UsageError with the first key that
    does not fit, the shape it has and the shape wanted.
    """
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.endswith("num_batches_tracked")}
    head_keys = (f"{head}.weight", f"{head}.bias")
    if not with_head:
        own, given = ({key: value for key, value in each.items() if key not in head_keys} for each in (own, given))
    elif head_keys[0] in given and given[head_keys[0]].flatten(1).shape == own[head_keys[0]].flatten(1).shape:
        given[head_keys[0]] = given[head_keys[0]].view_as(own[head_keys[0]])
    if with_head and head_keys[1] in own:
        given.setdefault(head_keys[1], torch.zeros_like(own[head_keys[1]]))
    for key, tensor in own.items():
        if key not in given:
            raise UsageError(f"weights {checkpoint.source}: {key} {list(tensor.shape)} is missing")
        if given[key].shape != tensor.shape:
            shapes = f"{list(given[key].shape)}; wanted {list(tensor.shape)}"
            raise UsageError(f"weights {checkpoint.source}: {key} is {shapes}")
    if extra := [key for key in given if key not in own]:
        shape = list(given[extra[0]].shape)
        raise UsageError(f"weights {checkpoint.source}: {extra[0]} {shape} has no place in this network")
    network.load_state_dict(given, strict=False)


def rebase_input(
    weight: Tensor,  # [O, 3, kh, kw] of a first convolution without padding
    scale: Tensor,  # [3]
    shift: Tensor,  # [3]
) -> tuple[Tensor, Tensor]:
    """(W', b) with conv(u * scale + shift; W) = conv(u; W') + b: a network made for one input scale put on another.

    A step of the climb has the same size for every network only if all take inputs on the usual scale.
    """
    wide = weight.double()
    bias = (wide * shift.double().view(3, 1, 1)).sum((1, 2, 3))
    return (wide * scale.double().view(3, 1, 1)).to(weight.dtype), bias.to(weight.dtype)
