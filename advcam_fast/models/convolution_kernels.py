"""How a frozen convolution is computed on a device: oneDNN with weights laid out once, or torch; and its transposes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.models.pointwise import Pointwise, PointwiseGradient

Forward = Callable[[Tensor, "Tensor | None"], Tensor]  # x, into -> W * x (+ into, in place)
Gradient = Callable[[Tensor, torch.Size, "Tensor | None"], Tensor]  # g, size of x, into -> W^T * g (+ into, in place)

_RGB = 3
_FEW_CHANNELS = 4  # of the input: an image's three leave oneDNN's transposed convolution a third of its speed


class Window(NamedTuple):
    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


@cache
def onednn_serves(device_type: str, dtype: torch.dtype) -> bool:
    """Whether torch's prepacked oneDNN convolutions are there for this dtype, and quick: bf16 needs the hardware's."""
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def operator(weight: Tensor, bias: Tensor | None, window: Window) -> Forward:
    if window.padding == [0, 0] and window.groups == 1 and Pointwise.serves(weight):
        return Pointwise(weight, bias, window.stride)
    kind = _Onednn if onednn_serves(weight.device.type, weight.dtype) else Aten
    return kind(weight, bias, window)


def gradient_of(weight: Tensor, window: Window) -> Gradient:
    """The quickest way that is known to the input's gradient."""
    if window.padding == [0, 0] and window.groups == 1 and PointwiseGradient.serves(weight):
        return PointwiseGradient(weight, window.stride)
    depthwise = window.groups == weight.shape[0] and weight.shape[1] == 1
    reach = _reach(weight, window)
    if window.stride == [1, 1] and all(p <= r for p, r in zip(window.padding, reach, strict=True)):
        return _Turned(weight, window)
    if reach == window.padding == [0, 0] and window.groups == 1:
        return _Sampled(weight, window)
    if (
        window.stride == [2, 2]
        and window.dilation == [1, 1]
        and window.groups == 1
        and weight.shape[1] <= _FEW_CHANNELS
    ):
        if weight.device.type == "cpu" and ImageGradient.serves(weight):
            return ImageGradient(weight, window)
        # Cells of 4 x 4 give more zeros to multiply, but whole vectors of bf16 channels.
        return Phases(weight, window, cell=4 if weight.dtype == torch.bfloat16 else 2)
    if depthwise and weight.dtype == torch.bfloat16 and onednn_serves(weight.device.type, weight.dtype):
        return _Spread(weight, window)  # 10 to 40 times as fast as oneDNN's own
    return _Transposed(weight, window)


def _reach(weight: Tensor, window: Window) -> list[int]:
    return [d * (k - 1) for d, k in zip(window.dilation, weight.shape[2:], strict=True)]


def _spare(g: Tensor, size: torch.Size, reach: list[int], window: Window) -> list[int]:
    """Rows and columns of x below and right of the last position of the kernel."""
    return [
        size[2 + i] - ((g.shape[2 + i] - 1) * window.stride[i] - 2 * window.padding[i] + reach[i] + 1) for i in (0, 1)
    ]


def _given(result: Tensor, into: Tensor | None) -> Tensor:
    """The result channels-last, or added to `into`."""
    result = result.contiguous(memory_format=torch.channels_last)
    return result if into is None else into.add_(result)


class _Onednn:
    """Weights in oneDNN's own blocked layout; the addition happens while the result is written.

    Which layout is quick depends on the size of the input, and one for another size can cost ten times the convolution:
    the weights are laid out again whenever the size changes, which it does not within a climb.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window) -> None:
        self.weight = weight.contiguous()
        self.bias = bias
        self.window = window
        self.size: torch.Size | None = None
        self.packed = self.weight

    def __call__(self, x: Tensor, into: Tensor | None) -> Tensor:
        if x.shape != self.size:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.window, list(x.shape))
            self.size = x.shape
        arguments = (x, self.packed, self.bias, *self.window)
        if into is None:
            return torch.ops.mkldnn._convolution_pointwise(*arguments, "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise_.binary(into, *arguments, "add", 1.0, None, [], None)


class Aten:
    """torch's own convolution (cuDNN on a GPU), for what oneDNN's prepacked one does not serve."""

    def __init__(self, weight: Tensor, bias: Tensor | None, window: Window) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.bias = bias
        self.wide_bias = None if bias is None else bias.to(wide)  # as masked_relu takes it
        self.arguments = (window.stride, window.padding, window.dilation, window.groups)

    def product(self, x: Tensor) -> Tensor:
        """Without the bias."""
        return _given(F.conv2d(x, self.weight, None, *self.arguments), None)

    def __call__(self, x: Tensor, into: Tensor | None) -> Tensor:
        return _given(F.conv2d(x, self.weight, self.bias, *self.arguments), into)


class _Turned:
    """Stride 1: a convolution with the kernel mirrored, and inputs and outputs exchanged."""

    def __init__(self, weight: Tensor, window: Window) -> None:
        turned = weight.flip(2, 3).unflatten(0, (window.groups, -1)).transpose(1, 2).flatten(0, 1)
        padding = [r - p for r, p in zip(_reach(weight, window), window.padding, strict=True)]
        self.operator = operator(turned, None, window._replace(padding=padding))

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        return self.operator(g, into)


class _Sampled:
    """A kernel of one element with a stride: only every so many positions of x meet it."""

    def __init__(self, weight: Tensor, window: Window) -> None:
        self.stride = window.stride
        self.turned = _Turned(weight, window._replace(stride=[1, 1]))

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        found = self.turned(g, size, None)
        if into is None:
            into = torch.empty(size, dtype=g.dtype, device=g.device, memory_format=torch.channels_last).zero_()
            into[:, :, :: self.stride[0], :: self.stride[1]] = found
        else:
            into[:, :, :: self.stride[0], :: self.stride[1]] += found
        return into


class _Spread:
    """Any stride: g with zeros between its elements, then as for stride 1."""

    def __init__(self, weight: Tensor, window: Window) -> None:
        self.window, self.reach = window, _reach(weight, window)
        self.turned = _Turned(weight, window._replace(stride=[1, 1]))

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        spare = _spare(g, size, self.reach, self.window)
        sides = [(g.shape[2 + i] - 1) * self.window.stride[i] + 1 + spare[i] for i in (0, 1)]
        shape = (*g.shape[:2], *sides)
        spread = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last).zero_()
        spread[:, :, : sides[0] - spare[0] : self.window.stride[0], : sides[1] - spare[1] : self.window.stride[1]] = g
        return self.turned(spread, size, into)


class Phases:
    """Stride 2: one convolution for all positions of x within a cell (even), which are then interleaved.

    x_i with i = c q + r in cell q of c positions meets the kernel's elements k = r + p (mod 2), and of g then
    o = c / 2 q + (r + p - k) / 2.
    """

    def __init__(self, weight: Tensor, window: Window, cell: int) -> None:
        self.cell, self.stride = cell, cell // 2
        (outputs, inputs), kernel = weight.shape[:2], weight.shape[2:]
        ways = [[_phase(r, p, k) for r in range(cell)] for p, k in zip(window.padding, kernel, strict=True)]
        lows = [min(offset for phase in side for _, offset in phase) for side in ways]
        highs = [max(offset for phase in side for _, offset in phase) for side in ways]
        joint = weight.new_zeros(
            cell, cell, inputs, outputs, *(high - low + 1 for low, high in zip(lows, highs, strict=True))
        )
        for row, vertical in enumerate(ways[0]):
            for column, horizontal in enumerate(ways[1]):
                for i, y in vertical:
                    for j, x in horizontal:
                        joint[row, column, :, :, y - lows[0], x - lows[1]] = weight[:, :, i, j].T
        padding = [max(-low, high) for low, high in zip(lows, highs, strict=True)]
        padding = [p + -(p + low) % self.stride for p, low in zip(padding, lows, strict=True)]
        self.skipped = [(p + low) // self.stride for p, low in zip(padding, lows, strict=True)]
        self.inputs = inputs
        self.operator = operator(joint.flatten(0, 2), None, Window(padding, [self.stride] * 2, [1, 1], 1))

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        cells = [-(-side // self.cell) for side in size[2:]]
        g = _grown(g, [self.stride * (cell - 1) + 1 for cell in cells])
        phases = self.operator(g, None).permute(0, 2, 3, 1)  # [B, rows, columns, cell * cell * inputs]
        phases = phases[:, self.skipped[0] : self.skipped[0] + cells[0], self.skipped[1] : self.skipped[1] + cells[1]]
        phases = phases.unflatten(3, (self.cell, self.cell, self.inputs)).permute(0, 1, 3, 2, 4, 5)
        found = phases.reshape(size[0], self.cell * cells[0], self.cell * cells[1], self.inputs).permute(0, 3, 1, 2)
        return _given(found[:, :, : size[2], : size[3]], into)


def _phase(r: int, padding: int, kernel: int) -> list[tuple[int, int]]:
    """(element of the kernel, o less that of the cell's first) for the positions r of cells of x."""
    return [(k, (r + padding - k) // 2) for k in range((r + padding) % 2, kernel, 2)]


def _grown(g: Tensor, sides: list[int]) -> Tensor:
    """g with zeros below and right, where x has cells that no position of the kernel begins in."""
    missing = [max(wanted - side, 0) for wanted, side in zip(sides, g.shape[2:], strict=True)]
    if not any(missing):
        return g
    return F.pad(g, (0, missing[1], 0, missing[0])).contiguous(memory_format=torch.channels_last)


class ImageGradient:
    """Stride 2, for three input channels: the own kernel of csrc/image_gradient.h, which has no zeros to multiply."""

    def __init__(self, weight: Tensor, window: Window) -> None:
        self.weight, self.padding = weight.contiguous(), window.padding

    @staticmethod
    def serves(weight: Tensor) -> bool:
        """Whether it is built, the machine has what it needs, and weights of this dtype and shape are for it."""
        if NATIVE is None or weight.dtype not in (torch.float32, torch.bfloat16) or weight.shape[1] != _RGB:
            return False
        return max(weight.shape[2:]) <= NATIVE.image_gradient_kernel and NATIVE.image_gradient_serves(
            weight.dtype == torch.bfloat16, len(weight)
        )

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        found = torch.empty(size, dtype=g.dtype, memory_format=torch.channels_last)
        NATIVE.image_gradient(g, self.weight, found, self.padding, num_threads=torch.get_num_threads())
        return found if into is None else into.add_(found)


class _Transposed:
    def __init__(self, weight: Tensor, window: Window) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.window, self.reach = window, _reach(weight, window)

    def __call__(self, g: Tensor, size: torch.Size, into: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.window
        spare = _spare(g, size, self.reach, self.window)
        return _given(F.conv_transpose2d(g, self.weight, None, stride, padding, spare, groups, dilation), into)
