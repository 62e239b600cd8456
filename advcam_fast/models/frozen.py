"""Features made ready for thousands of forward + input-gradient passes: folded, frozen, channels-last."""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from advcam_fast.errors import UsageError, first_line
from advcam_fast.models.cam_model import Features

_PROBE_SIZE = 96  # pixels; the smallest multiple of 32 that every network of load_model takes
_PROBE_TOLERANCE = 1e-9  # float64, relative to the largest feature


class FrozenFeatures(nn.Module):
    """The executor of one network; `executor` says in words what was done to it, for the log."""

    def __init__(self, network: Features, executor: str, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.executor = executor
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, K, h, w]
        return self.network(images.contiguous(memory_format=self.memory_format))


def freeze(features: Features, dtype: torch.dtype = torch.float32, channels_last: bool = True) -> FrozenFeatures:
    """A frozen copy of the features in `dtype`: BatchNorm folded into its convolution, no weight gradients.

    W' = W * g / sqrt(v + eps), b' = (b - m) * g / sqrt(v + eps) + beta, computed in float64; the copy is compared with
    the network in float64 before it is used. Where the network cannot be traced its weights are only frozen, and
    `executor` is "frozen, not folded: REASON". A function that is no nn.Module is used as it is.
    Raises UsageError where a BatchNorm would use the batch's own statistics.
    """
    if not isinstance(features, nn.Module):
        return FrozenFeatures(features, "used as given: not an nn.Module", channels_last)
    _refuse_batch_statistics(features)
    network: nn.Module = copy.deepcopy(features).eval().double().requires_grad_(False)
    try:
        network, executor = _folded(network), "folded"
    except Exception as error:  # a user's network may fail to trace or to run in any way at all
        executor = f"frozen, not folded: {type(error).__name__}: {first_line(error)}"
    _write_activations_apart(network)
    network = network.to(dtype)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return FrozenFeatures(network, executor, channels_last)


def _write_activations_apart(network: nn.Module) -> None:
    """ReLU's gradient reads its output, but that of ReLU6 and others their input: in place, autograd would clone it."""
    for module in network.modules():
        if isinstance(module, (nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU)):
            module.inplace = False


def _refuse_batch_statistics(features: nn.Module) -> None:
    for name, module in features.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        where = f"BatchNorm {name!r}" if name else "the BatchNorm"
        if module.training:
            raise UsageError(f"{where} is in training mode, so it would use the batch's statistics: call .eval() first")
        if module.running_mean is None or module.running_var is None:
            raise UsageError(f"{where} keeps no running statistics, so results would depend on the batch")


class _Tracer(fx.Tracer):
    """Subclasses of convolution, BatchNorm and pooling stay whole: their padding arithmetic cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = isinstance(module, (nn.Conv2d, _BatchNorm, nn.MaxPool2d, nn.AvgPool2d))
        return whole or super().is_leaf_module(module, name)


def _folded(network: nn.Module) -> nn.Module:
    """The network, float64 and in eval mode, with every BatchNorm that follows a convolution folded into it."""
    weight = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, _PROBE_SIZE, _PROBE_SIZE, dtype=torch.float64, generator=generator).to(weight.device)
    with torch.no_grad():
        wanted = network(probe)
        traced = copy.deepcopy(network)  # so that a fold that fails half-way leaves the network whole
        graph = _Tracer().trace(traced)
        modules = dict(traced.named_modules())
        calls = [node for node in graph.nodes if node.op == "call_module"]
        called = [id(modules[str(node.target)]) for node in calls]  # by identity: a module may have several names
        for node in calls:
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
                continue
            convolution, norm = modules[str(source.target)], modules[str(node.target)]
            if max(called.count(id(convolution)), called.count(id(norm))) > 1 or not _can_fold(convolution, norm):
                continue
            _fold_pair(convolution, norm)
            traced.set_submodule(str(node.target), _after_norm(norm))
        folded = fx.GraphModule(traced, graph)
        error = (folded(probe) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
    if not error <= _PROBE_TOLERANCE:
        raise ArithmeticError(f"the folded network differs by {error:.1e}")
    return folded


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    """Exact types only: a subclass may standardise its weight or add a step of its own."""
    timm = sys.modules.get("timm.layers")  # its classes can only be met where it has been imported
    convolutions = (nn.Conv2d, *([timm.Conv2dSame] if timm else []))
    norms = (nn.BatchNorm2d, *([timm.BatchNormAct2d] if timm else []))
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (convolution, norm))
    return type(convolution) in convolutions and type(norm) in norms and not hooked


def _fold_pair(convolution: nn.Module, norm: nn.Module) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,  # type: ignore[arg-type]
        convolution.bias,  # type: ignore[arg-type]
        norm.running_mean,  # type: ignore[arg-type]
        norm.running_var,  # type: ignore[arg-type]
        norm.eps,  # type: ignore[arg-type]
        norm.weight,  # type: ignore[arg-type]
        norm.bias,  # type: ignore[arg-type]
    )


def _after_norm(norm: nn.Module) -> nn.Module:
    """What is left of it: nothing, or the activation that timm keeps inside its BatchNorm."""
    activation = getattr(norm, "act", None)
    return nn.Identity() if activation is None else activation
