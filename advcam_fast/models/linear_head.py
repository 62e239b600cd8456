"""The product of a linear head with features, both ways: the own kernel of csrc/linear_head.h, or torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast._native import NATIVE

_MOST = 2**20  # bytes of weights that the kernel reads for every few positions; more do not stay in a close cache


def logits(features: Tensor, weights: Tensor) -> Tensor:
    """z = W . F in the weights' dtype: [B, K, h, w] by [C, K], or item by item [B, C, K] -> [B, C, h, w]."""
    if not _own(features, weights, features.dtype):
        return _product(features.to(weights.dtype), weights.transpose(-1, -2))
    found = _made(features, weights.shape[-2], weights.dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    NATIVE.linear_head(features, weights.contiguous(), found, num_threads=torch.get_num_threads())
    return found


def feature_gradient(gradient: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """dJ/dF = W^T . dJ/dz in `dtype`, of sums in the weights': [B, C, h, w] by [C, K] or [B, C, K] -> [B, K, h, w]."""
    if not _own(gradient, weights, dtype):
        return _product(gradient, weights).to(dtype)
    found = _made(gradient, weights.shape[-1], dtype)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    NATIVE.linear_head_backward(gradient, weights.contiguous(), found, num_threads=torch.get_num_threads())
    return found


def _own(maps: Tensor, weights: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel is built, serves features of this dtype, and nobody asks autograd for a gradient."""
    if NATIVE is None or maps.device.type != "cpu" or maps.requires_grad or weights.requires_grad:
        return False
    if weights.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16):
        return False
    if 4 * weights.shape[-2] * weights.shape[-1] > _MOST:
        return False
    return bool(NATIVE.linear_head_serves(dtype == torch.bfloat16, weights.shape[-1]))


def _made(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Not yet written: [B, channels, h, w], channels-last."""
    shape = (len(like), channels, *like.shape[2:])
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _product(maps: Tensor, weights: Tensor) -> Tensor:
    """[B, M, h, w] times [M, N], or item by item [B, M, N], over the channels: channels-last [B, N, h, w]."""
    batch, _, height, width = maps.shape
    if weights.ndim == 2 and maps.device.type == "cpu" and maps.dtype == torch.float32:
        # As a 1x1 convolution oneDNN has it: up to twice as fast as the BLAS that torch comes with.
        found = F.conv2d(maps, weights.T[:, :, None, None])
        return found.contiguous(memory_format=torch.channels_last)
    product: Tensor = maps.permute(0, 2, 3, 1).flatten(1, 2) @ weights
    return product.view(batch, height, width, weights.shape[-1]).permute(0, 3, 1, 2)
