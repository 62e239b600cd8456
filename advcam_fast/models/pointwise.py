"""Convolutions with a kernel of one element by the own kernel of csrc/pointwise.h: all that follows in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast._native import NATIVE

Strides = list[int]  # vertical, horizontal


class Pointwise:
    """y = W x + b (+ residual), of every so many positions, and its rectifier."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: Strides) -> None:
        self.outputs = len(weight)
        self.weight = _packed(weight)
        self.bias = None if bias is None else bias.float()
        self.stride = stride

    @staticmethod
    def serves(weight: Tensor) -> bool:
        """Whether it is built, the machine has what it needs, and weights [Co, Ci, 1, 1] of this dtype are for it."""
        if NATIVE is None or weight.device.type != "cpu" or weight.shape[2:] != (1, 1):
            return False
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return False
        return bool(NATIVE.pointwise_serves(weight.dtype == torch.bfloat16, weight.shape[1], weight.shape[0]))

    def __call__(self, x: Tensor, into: Tensor | None) -> Tensor:
        y = self._empty(x) if into is None else into
        self._run(x, into, y, None, None)
        return y

    def rectified(
        self, x: Tensor, residual: Tensor | None, writable: bool, ceiling: float, save: bool
    ) -> tuple[Tensor, Tensor]:
        """The value after the rectifier, and its bits as of ops.masked_relu; into the residual where `writable`."""
        y = residual if residual is not None and writable else self._empty(x)
        bits = torch.empty(y.numel() // 8 if save else 0, dtype=torch.uint8)
        self._run(x, residual, y, ceiling, bits if save else None)
        return y, bits

    def _empty(self, x: Tensor) -> Tensor:
        sides = [-(-side // stride) for side, stride in zip(x.shape[2:], self.stride, strict=True)]
        return _empty((len(x), self.outputs, *sides), x.dtype)

    def _run(self, x: Tensor, residual: Tensor | None, y: Tensor, ceiling: float | None, bits: Tensor | None) -> None:
        threads = torch.get_num_threads()
        NATIVE.pointwise(x, self.weight, self.bias, residual, y, ceiling, bits, stride=self.stride, num_threads=threads)


class PointwiseGradient:
    """dJ/dx = W^T dJ/dy, added at every so many positions of x, and what the rectifier behind x leaves of it."""

    def __init__(self, weight: Tensor, stride: Strides) -> None:
        self.weight = _packed(weight.transpose(0, 1))
        self.stride = stride
        self.everywhere = stride == [1, 1]

    @staticmethod
    def serves(weight: Tensor) -> bool:
        """As Pointwise, for weights [Co, Ci, 1, 1]."""
        return Pointwise.serves(weight.transpose(0, 1))

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """kept: bits of the rectifier; applied to the sum, but with a stride only where this convolution saw x."""
        y = _empty(tuple(size), g.dtype) if into is None else into
        if into is None and not self.everywhere:
            y.zero_()
        threads = torch.get_num_threads()
        NATIVE.pointwise(
            g, self.weight, None, into, y, kept=kept, stride=self.stride, transposed=True, num_threads=threads
        )
        return y


def _packed(weight: Tensor) -> Tensor:
    """[Co, Ci, 1, 1] as the kernel reads it."""
    flat = weight.flatten(1).contiguous()
    packed = torch.empty(flat.numel(), dtype=flat.dtype)
    NATIVE.pointwise_pack(flat, packed)
    return packed


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
