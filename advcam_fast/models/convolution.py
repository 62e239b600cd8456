"""One frozen convolution: forward with bias and residual, and the gradient of its input; nothing for the weights."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast import ops
from advcam_fast.models.convolution_kernels import Aten, Window, gradient_of, operator
from advcam_fast.models.pointwise import Pointwise, PointwiseGradient
from advcam_fast.models.ragged import Padding, Size, Sliding


def padding_rule(module: nn.Module) -> Callable[[int, int], Padding] | None:
    """(height, width) of the input -> the zeros around it; None where this is no convolution that is known here."""
    timm = sys.modules.get("timm.layers")  # its classes can only be met where it has been imported
    same = timm is not None and type(module) is timm.Conv2dSame
    if not same and type(module) is not nn.Conv2d:
        return None
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros" or module._forward_hooks or module._forward_pre_hooks:
        return None
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if same:  # as TensorFlow pads: the odd zero goes below and right, and how many there are depends on the size

        def around(size: int, side: int) -> tuple[int, int]:
            total = max(
                (-(-size // stride[side]) - 1) * stride[side] + dilation[side] * (kernel[side] - 1) + 1 - size, 0
            )
            return total // 2, total - total // 2

        return lambda height, width: (*around(height, 0), *around(width, 1))
    if isinstance(module.padding, str):
        totals = [0, 0] if module.padding == "valid" else [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        fixed = tuple(part for total in totals for part in (total // 2, total - total // 2))
    else:
        fixed = tuple(part for side in module.padding for part in (side, side))
    return lambda height, width: fixed  # type: ignore[return-value]


def sliding_of(module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> Sliding:
    """How the window of a layer that is known here moves."""
    if isinstance(module, nn.Conv2d):
        rule = padding_rule(module)
        assert rule is not None
        kernel, stride, dilation = (_pair(v) for v in (module.kernel_size, module.stride, module.dilation))
        return Sliding(kernel, stride, dilation, rule, follows_size=type(module) is not nn.Conv2d)
    kernel, stride, padding = window_of(module)
    around = (padding[0], padding[0], padding[1], padding[1])
    dilation = _pair(module.dilation) if isinstance(module, nn.MaxPool2d) else (1, 1)
    return Sliding(kernel, stride, dilation, lambda *_: around, ceil_mode=module.ceil_mode)


def window_of(module: nn.MaxPool2d | nn.AvgPool2d, *more: str) -> tuple[Size, ...]:
    """Kernel, stride, padding and what else is named, each (vertical, horizontal)."""
    return tuple(_pair(getattr(module, name)) for name in ("kernel_size", "stride", "padding", *more))


def _pair(value: int | tuple[int, ...]) -> Size:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Convolution:
    """y = W * x + b (+ residual), and dJ/dx = W^T * dJ/dy, for frozen weights, channels-last.

    Padding that is not the same on both sides is made so by zeros in the kernel: no padded copy of the input is needed.
    dtype: of the forward pass; backward_dtype: of the gradient. The weights are prepared once for each.
    """

    def __init__(self, module: nn.Conv2d, dtype: torch.dtype, backward_dtype: torch.dtype) -> None:
        rule = padding_rule(module)
        assert rule is not None
        self._rule = rule
        self._prepare = lambda around: _Prepared(module, around, dtype, backward_dtype)
        self._prepared: dict[Padding, _Prepared] = {}
        if type(module) is nn.Conv2d:  # one padding for every size: the float64 weights need not be kept
            self._for(torch.Size((1, 1, 1, 1)))
            del self._prepare

    def _for(self, size: torch.Size, around: Padding | None = None) -> _Prepared:
        around = around or self._rule(size[2], size[3])
        if around not in self._prepared:
            self._prepared[around] = self._prepare(around)
        return self._prepared[around]

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        writable: bool = False,
        ceiling: float | None = None,
        save: bool = True,
        around: Padding | None = None,
        inside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, Ci, H, W] -> rectified(W * x + b + residual) [B, Co, h, w], and the rectifier's bits.

        residual: may be written where `writable`. ceiling: of the rectifier (ops.masked_relu); None for none.
        around: another padding than the module's. inside: bool [B, h, w], what the rectifier leaves.
        """
        convolve = self._for(x.shape, around).forward
        if ceiling is not None and inside is None and isinstance(convolve, Pointwise):
            return convolve.rectified(x, residual, writable, ceiling, save)
        if ceiling is not None and isinstance(convolve, Aten):  # bias and residual in the rectifier's pass
            value = convolve.product(x)
            return value, ops.masked_relu(value, convolve.wide_bias, residual, ceiling, inside, save)
        if residual is not None and not writable:
            residual = residual.clone(memory_format=torch.channels_last)
        value = convolve(x, residual)
        return value, None if ceiling is None else ops.masked_relu(value, None, None, ceiling, inside, save)

    def gradient(
        self,
        g: Tensor,
        size: torch.Size,
        into: Tensor | None = None,
        around: Padding | None = None,
        kept: Tensor | None = None,
        everywhere: bool = True,
    ) -> Tensor:
        """dJ/dy [B, Co, h, w] -> dJ/dx of `size` [B, Ci, H, W]; with `into` added to it, in place.

        kept: bits of the rectifier that x came from, by which the result goes on. everywhere: they are to be applied
        to all of it; else at least to those positions that this convolution sees.
        """
        convolve = self._for(size, around).gradient
        if kept is not None and isinstance(convolve, PointwiseGradient) and (convolve.everywhere or not everywhere):
            return convolve(g, size, into, kept)
        found = convolve(g, size, into)
        return found if kept is None else ops.masked_relu_backward(found, kept)

    def rectifies_where_it_sees(self) -> bool:
        """Whether `gradient` applies bits in its own pass, be it to the positions alone that this convolution sees."""
        return any(isinstance(prepared.gradient, PointwiseGradient) for prepared in self._prepared.values())


class _Prepared:
    """The weights of one convolution for one padding."""

    def __init__(self, module: nn.Conv2d, around: Padding, dtype: torch.dtype, backward_dtype: torch.dtype) -> None:
        top, bottom, left, right = around
        weight, dilation = module.weight.detach(), list(module.dilation)
        if dilation != [1, 1] and (top != bottom or left != right):
            weight, dilation = _spread(weight, dilation), [1, 1]
        # An extra row of zeros above the kernel, and one more of padding there, leave the sums as they are.
        weight = F.pad(weight, (max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0)))
        window = Window([max(top, bottom), max(left, right)], list(module.stride), dilation, module.groups)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        self.forward = operator(weight.to(dtype), bias, window)
        self.gradient = gradient_of(weight.to(backward_dtype), window)


def _spread(weight: Tensor, dilation: list[int]) -> Tensor:
    """The kernel with its dilation written out as zeros."""
    sides = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *sides)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread
