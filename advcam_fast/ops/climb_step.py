"""climb_step: one normalised ascent step on the images of every flip pair, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import define, fallback, mutates, refuse_grad, stream_of, workspace


def _run(image: Tensor, gradient: Tensor, step_size: float, group_size: int, network_input: Tensor | None) -> Tensor:
    groups = image.shape[0] // group_size
    if image.numel() == 0:
        return image.new_zeros(groups)
    if image.stride() != gradient.stride():  # a convolution's gradient may be channels-last where the image is not
        gradient = torch.empty_like(image, dtype=gradient.dtype).copy_(gradient)
    if (other := fallback("climb_step", image.device.type)) is not None:
        largest = other(image, gradient, step_size, group_size, network_input)
    else:
        largest = image.new_empty(groups)
        NATIVE.climb_step(
            image,
            gradient,
            largest,
            step_size,
            network_input,
            workspace(image, groups * NATIVE.climb_step_workspace),
            stream=stream_of(image),
            num_threads=torch.get_num_threads(),
        )
    mutates(image)
    mutates(network_input)
    return largest


def _fake(image: Tensor, gradient: Tensor, step_size: float, group_size: int, network_input: Tensor | None) -> Tensor:
    return image.new_empty(image.shape[0] // group_size)


define(
    "climb_step",
    "(Tensor(a!) image, Tensor gradient, float step_size, int group_size, Tensor(b!)? network_input) -> Tensor",
    _run,
    _fake,
)


def climb_step(
    image: Tensor, gradient: Tensor, step_size: float, group_size: int = 2, network_input: Tensor | None = None
) -> Tensor:
    """One step up the gradient for every flip pair, in place; returns each pair's max|g|.

    x <- clamp(x + step_size * g / (max|g| + 1e-12), min x, max x), the three extrema over each pair before the step.

    Args:
        image: [B, ...], float32 or float64, B = groups * group_size; contiguous or channels-last. Written.
        gradient: like image; float32, bfloat16 or float16 for a float32 image, float64 for a float64 one.
        step_size: the step of the steepest pixel, in the normalised units of the image (the paper's xi).
        group_size: consecutive items that share their extrema: 2 for an image and its mirror image, 1 without.
        network_input: like image, bfloat16 or float16, or None. Written: the new image rounded to its dtype.

    Returns:
        [groups], in image's dtype: max|g|. 0 where the gradient vanished; NaN where it held one (as the image then is).

    Raises:
        RuntimeError: an input requires grad. TypeError, ValueError: dtype, shape, strides or device do not fit.

    Source: Lee et al., CVPR 2021, eq. 3, with the released code's normalisation and clamp.
    """
    refuse_grad("climb_step", image, gradient, network_input)
    if group_size < 1 or image.ndim < 1 or image.shape[0] % group_size:
        raise ValueError(f"image: shape {tuple(image.shape)} came, its first dimension must divide by {group_size}")
    if gradient.shape != image.shape:
        raise ValueError(f"gradient: shape {tuple(gradient.shape)} came, wanted is image's {tuple(image.shape)}")
    return torch.ops.advcam_fast.climb_step(image, gradient, step_size, group_size, network_input)
