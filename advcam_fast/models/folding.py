"""BatchNorm folded into the convolution before it, on a traced copy that is compared with the network."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

_PROBE_SIZE = 96  # pixels; the smallest multiple of 32 that every network of load_model takes
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # what does nothing in eval mode
_PROBE_TOLERANCE = 1e-9  # float64, relative to the largest value


def probe_of(network: nn.Module) -> Tensor:
    """The float64 image that a network and what was made from it are compared on."""
    weight = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, _PROBE_SIZE, _PROBE_SIZE, dtype=torch.float64, generator=generator).to(weight.device)


def check_same(what: str, got: Tensor, wanted: Tensor) -> None:
    """Raises ArithmeticError unless the two agree to rounding."""
    error = (got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
    if not error <= _PROBE_TOLERANCE:
        raise ArithmeticError(f"the folded network's {what} differs by {error:.1e}")


class _Tracer(fx.Tracer):
    """Subclasses of convolution, BatchNorm and pooling stay whole: their padding arithmetic cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = isinstance(module, (nn.Conv2d, _BatchNorm, nn.MaxPool2d, nn.AvgPool2d))
        return whole or super().is_leaf_module(module, name)


@torch.no_grad()
def folded(network: nn.Module) -> fx.GraphModule:
    """The network, float64 and in eval mode, with every BatchNorm that follows a convolution folded into it.

    Layers that do nothing in eval mode are left out.
    W' = W * g / sqrt(v + eps), b' = (b - m) * g / sqrt(v + eps) + beta. Every node knows the shape of its value
    (`meta["shape"]`, for the probe's size). Raises whatever tracing raises; ArithmeticError where the result differs.
    """
    probe = probe_of(network)
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
    for node in calls:
        if isinstance(traced.get_submodule(str(node.target)), _NOTHING) and len(node.all_input_nodes) == 1:
            node.replace_all_uses_with(node.all_input_nodes[0])  # or nothing before it would see what comes after
            graph.erase_node(node)
    result = fx.GraphModule(traced, graph)
    check_same("value", ShapeProp(result).propagate(probe), wanted)
    for node in result.graph.nodes:
        tensor: Any = node.meta.get("tensor_meta")
        if hasattr(tensor, "shape"):
            node.meta["shape"] = tuple(tensor.shape)
    return result


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
