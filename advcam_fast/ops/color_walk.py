"""color_walk: maps spread between pixels of like colours; random_walk without a trained boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advcam_fast.ops import reference
from advcam_fast.ops.backend import backend_of, define
from advcam_fast.ops.random_walk import (
    check_walk,
    like_both,
    like_maps,
    plain_gradient,
    register_gradient,
    walk,
    walk_backward,
)


def _run(maps: Tensor, images: Tensor, radius: int, sigma: float, steps: int, restart: float) -> Tensor:
    if backend_of(maps.device.type) != "native":
        return reference.color_walk(maps, images, radius, sigma, steps, restart)
    return walk(maps, images, radius, 0.5 / sigma**2, steps, restart, True)


def _run_backward(
    gradient: Tensor, maps: Tensor, images: Tensor, radius: int, sigma: float, steps: int, restart: float
) -> tuple[Tensor, Tensor]:
    if maps.is_cuda or backend_of(maps.device.type) != "native":
        return plain_gradient(reference.color_walk, gradient, maps, images, radius, sigma, steps, restart)
    return walk_backward(gradient, maps, images, radius, 0.5 / sigma**2, steps, restart, True)


_OPTIONS = "Tensor maps, Tensor images, int radius, float sigma, int steps, float restart)"
define("color_walk", f"({_OPTIONS} -> Tensor", _run, like_maps)
define("color_walk_backward", f"(Tensor gradient, {_OPTIONS} -> (Tensor, Tensor)", _run_backward, like_both)
register_gradient("color_walk")


def color_walk(
    maps: Tensor, images: Tensor, radius: int = 5, sigma: float = 7.0, steps: int = 128, restart: float = 0.0
) -> Tensor:
    """Spreads maps between pixels of like colours: random_walk where no net has been trained to see boundaries.

    With x0 = maps, A_ij = exp(-|c_i - c_j|^2 / (2 sigma^2)) for two pixels nearer than `radius`, A_jj = 1 and
    T_ij = A_ij / sum_i A_ij, `steps` times x_j <- (1 - restart) sum_i x_i T_ij + restart x0_j.

    Args:
        maps: [..., N, h, w], float32 or float64: one map a label.
        images: [..., C, h, w] of the maps' size, uint8 or float, finite; gradients go to float ones.
        radius: in pixels, 1 to 64. steps: 0 or more.
        sigma: above 0, in the images' own unit; the default is for 0 to 255.
        restart: the share of x0 that each step brings back, 0 to 1: against colours that meet in the end.

    Returns:
        [..., N, h, w], the walked maps; autograd knows maps and images.

    Raises:
        TypeError, ValueError: dtype, shape, device or range do not fit, or an image is not finite (CPU only).

    Source: the walk of Ahn et al., CVPR 2019; the affinity of Shi and Malik, PAMI 2000, without their distance term.
    """
    check_walk(maps, images, "images", True, steps, restart)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma: {sigma} came, wanted is a finite number above 0")
    return torch.ops.advcam_fast.color_walk(maps, images.to(maps.dtype), radius, sigma, steps, restart)
