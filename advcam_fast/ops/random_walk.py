"""random_walk: maps spread by the affinities that a boundary leaves between neighbours, without an N x N matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops import reference
from advcam_fast.ops.backend import LIBRARY, backend_of, define, stream_of, workspace


def walk(maps: Tensor, guide: Tensor, radius: int, scale: float, steps: int, restart: float, color: bool) -> Tensor:
    """The compiled kernel: maps [..., N, h, w] with a boundary [..., h, w], or with colours [..., C, h, w]."""
    out = torch.empty_like(maps, memory_format=torch.contiguous_format)
    if maps.numel() == 0:
        return out
    sizes = _flat(maps, 3).shape
    NATIVE.random_walk(
        _flat(maps, 3),
        _flat(guide, 3 if color else 2),
        out.view(sizes),
        radius,
        scale,
        steps,
        restart,
        color,
        workspace(maps, NATIVE.random_walk_workspace(*sizes, radius) if maps.is_cuda else 0),
        stream=stream_of(maps),
        num_threads=torch.get_num_threads(),
    )
    return out


def walk_backward(
    gradient: Tensor, maps: Tensor, guide: Tensor, radius: int, scale: float, steps: int, restart: float, color: bool
) -> tuple[Tensor, Tensor]:
    """The compiled gradient by maps and guide."""
    like = torch.contiguous_format
    by_maps, by_guide = torch.empty_like(maps, memory_format=like), torch.zeros_like(guide, memory_format=like)
    if maps.numel() == 0:
        return by_maps, by_guide
    channels = 3 if color else 2
    NATIVE.random_walk_backward(
        _flat(gradient, 3),
        _flat(maps, 3),
        _flat(guide, channels),
        _flat(by_maps, 3),
        _flat(by_guide, channels),
        radius,
        scale,
        steps,
        restart,
        color,
        num_threads=torch.get_num_threads(),
    )
    return by_maps, by_guide


def _flat(tensor: Tensor, kept: int) -> Tensor:
    """[..., *kept dimensions] -> [batch, *kept dimensions], contiguous and without grad."""
    tensor = tensor.detach().contiguous()
    return tensor.view(tensor.shape[: tensor.ndim - kept].numel(), *tensor.shape[tensor.ndim - kept :])


def plain_gradient(run: Any, gradient: Tensor, maps: Tensor, guide: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The gradient where no kernel has it: autograd through the reference, which keeps every sqrt(steps)-th state.

    The slower path of CUDA tensors, and of an installation without kernels.
    """
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (maps, guide)]
        by_maps, by_guide = torch.autograd.grad(run(*leaves, *options), leaves, gradient)
    return by_maps.contiguous(), by_guide.contiguous()


def check_walk(maps: Tensor, guide: Tensor, name: str, channels: bool, steps: int, restart: float) -> None:
    """What can be said without reading a tensor."""
    kept = 3 if channels else 2
    wanted = f"[..., {'C, ' if channels else ''}h, w]"
    fits = maps.ndim >= 3 and guide.ndim == maps.ndim - 3 + kept and guide.shape[-2:] == maps.shape[-2:]
    if not fits or guide.shape[:-kept] != maps.shape[:-3]:
        raise ValueError(
            f"{name}: shape {tuple(guide.shape)} came for maps of shape {tuple(maps.shape)}, "
            f"wanted are maps [..., N, h, w] and {name} {wanted} of the same h, w and leading sizes"
        )
    if maps.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"maps: dtype {maps.dtype} came, wanted is torch.float32 or torch.float64")
    if maps.device != guide.device:
        raise ValueError(f"maps and {name} are on different devices: {maps.device} and {guide.device}")
    if steps < 0:
        raise ValueError(f"steps: {steps} came, wanted is 0 or more")
    if not 0 <= restart <= 1:
        raise ValueError(f"restart: {restart} came, wanted is 0 to 1")


def register_gradient(stem: str) -> None:
    """Autograd of advcam_fast::<stem>(maps, guide, *options) by advcam_fast::<stem>_backward(gradient, ...)."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        run = getattr(torch.ops.advcam_fast, f"{stem}_backward")
        return (*run(gradient, *ctx.saved_tensors, *ctx.options), *[None] * len(ctx.options))

    torch.library.register_autograd(f"advcam_fast::{stem}", backward, setup_context=setup, lib=LIBRARY)


def like_maps(maps: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.contiguous_format)


def like_both(gradient: Tensor, maps: Tensor, guide: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return like_maps(maps), like_maps(guide)


def _run(maps: Tensor, boundary: Tensor, radius: int, beta: float, steps: int, restart: float) -> Tensor:
    if backend_of(maps.device.type) != "native":
        return reference.random_walk(maps, boundary, radius, beta, steps, restart)
    return walk(maps, boundary, radius, beta, steps, restart, False)


def _run_backward(
    gradient: Tensor, maps: Tensor, boundary: Tensor, radius: int, beta: float, steps: int, restart: float
) -> tuple[Tensor, Tensor]:
    if maps.is_cuda or backend_of(maps.device.type) != "native":
        return plain_gradient(reference.random_walk, gradient, maps, boundary, radius, beta, steps, restart)
    return walk_backward(gradient, maps, boundary, radius, beta, steps, restart, False)


_OPTIONS = "Tensor maps, Tensor boundary, int radius, float beta, int steps, float restart)"
define("random_walk", f"({_OPTIONS} -> Tensor", _run, like_maps)
define("random_walk_backward", f"(Tensor gradient, {_OPTIONS} -> (Tensor, Tensor)", _run_backward, like_both)
register_gradient("random_walk")


def random_walk(
    maps: Tensor, boundary: Tensor, radius: int = 5, beta: float = 10.0, steps: int = 256, restart: float = 0.0
) -> Tensor:
    """Spreads maps between the pixels that no boundary parts, each pixel by an average over its neighbourhood.

    With x0 = maps (1 - boundary), A_ij = (1 - max of the boundary on the path from i to j)^beta for two pixels nearer
    than `radius`, A_jj = 1 and T_ij = A_ij / sum_i A_ij, whose columns sum to 1, `steps` times

        x_j <- (1 - restart) sum_i x_i T_ij + restart x0_j

    so without restart x0 T^steps. A path is every pixel of the bounding box of its two ends, ends included, at a
    distance < 1 from the line; what lies outside the image is no neighbour. A map of zeros stays zero.

    Args:
        maps: [..., N, h, w], float32 or float64: one map a label.
        boundary: [..., h, w] in the maps' dtype, the probability of an edge at each pixel, 0 to 1 (seen to on a CPU
            only: on a GPU it would cost a synchronisation).
        radius: in pixels, 1 to 64; 5 has 68 neighbours. beta: 0 or more. steps: 0 or more; the time grows with it.
        restart: the share of x0 that each step brings back, 0 to 1.

    Returns:
        [..., N, h, w], the walked maps; autograd knows maps and boundary. On a CPU the gradient has a kernel; of CUDA
        tensors it goes through the plain reference, which is slower.

    Raises:
        TypeError, ValueError: dtype, shape, device or range do not fit, or the boundary holds a NaN.

    Source: Ahn et al., CVPR 2019 (IRN), where T^256 is a dense power; the restart is that of Tong et al., ICDM 2006.
    """
    check_walk(maps, boundary, "boundary", False, steps, restart)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta: {beta} came, wanted is a finite number, 0 or more")
    return torch.ops.advcam_fast.random_walk(maps, boundary.to(maps.dtype), radius, beta, steps, restart)
