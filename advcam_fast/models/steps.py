"""The steps of a tape: each computes a value from earlier ones, and passes the value's gradient back to them.

Every gradient in `gradients` belongs to its entry alone, so that a step may write it. `writable` says the same of the
values that a step reads: they are its own when nobody reads them later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from advcam_fast import ops
from advcam_fast.models.convolution import Convolution, sliding_of, window_of
from advcam_fast.models.ragged import Frame, Sliding, Unplaceable

Gradients = list[Any]  # by value: Tensor, or None before the first


class Step:
    sliding: Sliding | None = None  # how its window moves over its first source; None: it sees each position by itself
    pooled = False  # it makes one value of a whole plane

    def __init__(self, sources: tuple[int, ...], output: int) -> None:
        self.sources = sources
        self.output = output
        self.last_use: tuple[int, ...] = ()  # values that nobody reads after this step
        self.writable: frozenset[int] = frozenset()  # of them those that this step may write

    def bits(self, kept: Any) -> Tensor | None:
        """Of the rectifier that this step ends with, of what `forward` kept."""
        return None

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        """The value, and what backward needs. frame: where items of different sizes lie; None: all fill the canvas."""
        raise NotImplementedError

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        """gradient: of the value before the rectifier, if the step ends with one."""
        raise NotImplementedError


def free_early(steps: list[Step], output: int) -> None:
    """Fills last_use and writable. The network's input and output are nobody's to write."""
    last = {source: step for step in steps for source in step.sources if source != output}
    shared = {0, output}
    for step in steps:
        if isinstance(step, Autograd):  # its result may be a view of what it reads
            shared |= {*step.sources, step.output}
    for step in steps:
        step.last_use = tuple({source for source in step.sources if last.get(source) is step})
        step.writable = frozenset(source for source in step.last_use if source not in shared)


def gradient_order(steps: list[Step]) -> list[int]:
    """The numbers of the steps from the last to the first, but for convolutions that see only some positions.

    These come after all others that read the same value: they add to the few positions of a gradient that is there,
    rather than have it filled with zeros for the others to be added to.
    """
    order = list(reversed(range(len(steps))))
    for number, step in enumerate(steps):
        if isinstance(step, Convolved) and step.residual is None and step.sliding.skips():
            first = next(at for at, other in enumerate(steps) if step.source in other.sources)
            if first < number:
                order.remove(number)
                order.insert(order.index(first) + 1, number)
    return order


def rectify_early(steps: list[Step], order: list[int]) -> None:
    """Fills rectifies: bits are applied by who completes a value's gradient, as it is written if that costs no pass.

    Steps that only see some positions of the value may come last: each applies the bits to what it has added.
    """
    made = {step.output: number for number, step in enumerate(steps) if isinstance(step, (Convolved, Rectifier))}
    for value, number in made.items():
        completing: list[Convolved] = []
        for reader in (steps[at] for at in reversed(order) if value in steps[at].sources):
            if not isinstance(reader, Convolved) or reader.residual == value:
                break
            completing.append(reader)
            if not reader.only_where_it_sees():
                for step in completing:
                    step.rectifies, step.everywhere = number, step is reader
                break


def _give(gradients: Gradients, index: int, gradient: Tensor) -> None:
    """Adds to a value's gradient; `gradient` then belongs to it."""
    there = gradients[index]
    gradients[index] = gradient if there is None else there.add_(gradient)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.channels_last)


def _canvas(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[2], tensor.shape[3]


def _hidden(tensor: Tensor, outside: Tensor | None, fill: float = 0.0) -> Tensor:
    return tensor if outside is None else _copy(tensor).masked_fill_(outside, fill)  # masked_fill loses the layout


def _hide(gradient: Tensor, outside: Tensor | None) -> Tensor:
    """In place."""
    return gradient if outside is None else gradient.masked_fill_(outside, 0.0)


def _shaped(size: torch.Size, gradient: Tensor) -> Tensor:
    """What stands for the input of an averaging layer, of which only shape and layout are read."""
    return torch.empty(size, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)


class Convolved(Step):
    """Convolution, addition of a residual, rectifier; of the last two either may be missing."""

    def __init__(
        self,
        source: int,
        residual: int | None,
        output: int,
        module: nn.Conv2d,
        ceiling: float | None,
        dtype: torch.dtype,
        backward_dtype: torch.dtype,
    ) -> None:
        super().__init__((source,) if residual is None else (source, residual), output)
        self.source, self.residual, self.ceiling = source, residual, ceiling
        self.convolution = Convolution(module, dtype, backward_dtype)
        self.sliding: Sliding = sliding_of(module)
        self.rectifies: int | None = None  # number of the step whose bits `backward` applies to the source's gradient
        self.everywhere = True  # to all positions of it, not only to those that this step sees

    def only_where_it_sees(self) -> bool:
        """Whether it can apply bits to these positions alone."""
        return self.sliding.skips() and self.convolution.rectifies_where_it_sees()

    def bits(self, kept: Any) -> Tensor | None:
        bits: Tensor | None = kept[1]
        return bits

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        x, residual = channels_last(values[self.source]), None
        if self.residual is not None:
            residual = values[self.residual]
        writable = self.residual in self.writable and self.residual != self.source
        around, outside, inside = None, None, None
        if frame is not None:
            window, canvas = self.sliding, _canvas(x)
            around = frame.padding(window, self.output, canvas)
            outside = frame.outside(self.source, canvas) if window.looks_around() else None
            x = _hidden(x, outside)
            if self.ceiling is not None:
                inside = frame.rectify(self.output, window.output(canvas, around))
        value, bits = self.convolution.forward(x, residual, writable, self.ceiling, save, around, inside)
        return value, (x.shape, bits, around, outside)

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients, bits: Tensor | None = None) -> None:
        """bits: of the step that it `rectifies`."""
        size, _, around, outside = kept
        found = self.convolution.gradient(gradient, size, gradients[self.source], around, bits, self.everywhere)
        gradients[self.source] = _hide(found, outside)
        if self.residual is not None:
            _give(gradients, self.residual, gradient)


class Rectifier(Step):
    def __init__(self, source: int, output: int, ceiling: float = math.inf) -> None:
        super().__init__((source,), output)
        self.source, self.ceiling = source, ceiling

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        source = values[self.source]
        value = channels_last(source) if self.source in self.writable else _copy(source)
        inside = None if frame is None else frame.rectify(self.output, _canvas(value))
        return value, ops.masked_relu(value, ceiling=self.ceiling, valid=inside, save=save)

    def bits(self, kept: Any) -> Tensor | None:
        found: Tensor | None = kept
        return found

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        _give(gradients, self.source, gradient)


class Addition(Step):
    """Of two values of one shape."""

    def __init__(self, first: int, second: int, output: int) -> None:
        super().__init__((first, second), output)

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        first, second = self.sources
        if first in self.writable:
            return values[first].add_(values[second]), None
        if second in self.writable:
            return values[second].add_(values[first]), None
        return channels_last(values[first] + values[second]), None

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        first, second = self.sources
        if gradients[first] is None:
            gradients[first] = _copy(gradient)
        else:
            gradients[first].add_(gradient)
        _give(gradients, second, gradient)


class MaxPool(Step):
    def __init__(self, source: int, output: int, module: nn.MaxPool2d) -> None:
        super().__init__((source,), output)
        self.source = source
        self.sliding = sliding_of(module)
        self.window = window_of(module, "dilation")
        self.ceil_mode = module.ceil_mode

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        x, beside = channels_last(values[self.source]), None
        if frame is not None:
            x = _hidden(x, frame.outside(self.source, _canvas(x), rectified=True), -math.inf)
        kernel, stride, padding, dilation = self.window
        value, at = ops.max_pool(x, kernel, stride, padding, dilation, self.ceil_mode, save)
        if frame is not None:
            beside = frame.outside(self.output, _canvas(value))
        return _hide(value, beside), (_canvas(x), at) if save else None  # no infinity may meet another layer

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        size, at = kept
        _give(gradients, self.source, ops.max_pool_backward(gradient, at, size, *self.window))


class AveragePool(Step):
    """Over windows. Zeros outside an item are counted as padding is."""

    def __init__(self, source: int, output: int, module: nn.AvgPool2d) -> None:
        super().__init__((source,), output)
        self.source = source
        self.sliding = sliding_of(module)
        self.window = window_of(module)
        self.options = (module.ceil_mode, module.count_include_pad, module.divisor_override)

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        x, outside, share = channels_last(values[self.source]), None, None
        if frame is not None and frame.of(self.source) is not None:
            if self.options[0]:
                raise Unplaceable("average pooling with ceil_mode")
            outside = frame.outside(self.source, _canvas(x))
            x = _hidden(x, outside)
            if not self.options[1]:
                share = self._share(frame.inside(self.source, _canvas(x)), x.dtype)
        options = self.options if share is None else (False, True, None)
        value = torch.ops.aten.avg_pool2d(x, *self.window, *options)
        if share is not None:
            value = value.div_(share)
        return channels_last(value), (x.shape, options, share, outside)

    def _share(self, inside: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, h, w]: how much of each window is inside; 1 where nothing is."""
        assert inside is not None
        share = torch.ops.aten.avg_pool2d(inside[:, None].to(dtype), *self.window)
        return share.masked_fill_(share == 0, 1.0)

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        size, options, share, outside = kept
        if share is not None:
            gradient = gradient.div_(share)
        like = _shaped(size, gradient)
        found = torch.ops.aten.avg_pool2d_backward(gradient, like, *self.window, *options)
        _give(gradients, self.source, _hide(channels_last(found), outside))


def pool(source: int, output: int, module: nn.MaxPool2d | nn.AvgPool2d) -> Step:
    return (MaxPool if isinstance(module, nn.MaxPool2d) else AveragePool)(source, output, module)  # type: ignore[arg-type]


class GlobalMean(Step):
    """Over each item's plane: [B, C, H, W] -> [B, C, 1, 1], or [B, C]."""

    pooled = True

    def __init__(self, source: int, output: int, keepdim: bool) -> None:
        super().__init__((source,), output)
        self.source, self.keepdim = source, keepdim

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        x = values[self.source]
        inside = None if frame is None else frame.inside(self.source, _canvas(x))
        if inside is None:
            return x.mean((2, 3), keepdim=self.keepdim), (x.shape, None)
        weight = inside[:, None].to(x.dtype)
        share = weight / weight.sum((2, 3), keepdim=True)  # of each position; 0 outside
        x = _hidden(x, frame.outside(self.source, _canvas(x)))  # type: ignore[union-attr]
        return (x * share).sum((2, 3), keepdim=self.keepdim), (x.shape, share)

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        size, share = kept
        gradient = gradient.view(*size[:2], 1, 1)
        each = gradient / (size[2] * size[3]) if share is None else gradient * share.to(gradient.dtype)
        _give(gradients, self.source, _copy(each.expand(size)))


class Concatenation(Step):
    """Of the channels of several values."""

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        parts = [values[source] for source in self.sources]
        return channels_last(torch.cat(parts, 1)), [part.shape[1] for part in parts]

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        for source, part in zip(self.sources, gradient.split(kept, 1), strict=True):
            _give(gradients, source, _copy(part))


class Autograd(Step):
    """Whatever a tape does not know, one layer at a time; what is no floating-point tensor gets no gradient."""

    def __init__(
        self,
        sources: tuple[int, ...],
        output: int,
        name: str,
        run: Callable[[dict[int, Any]], Any],
        in_place: bool,
    ) -> None:
        super().__init__(sources, output)
        self.name = name
        self.run = run
        self.in_place = in_place

    def forward(self, values: list[Any], save: bool, frame: Frame | None = None) -> tuple[Any, Any]:
        given = {source: values[source] for source in self.sources}
        moving = {s: v for s, v in given.items() if save and isinstance(v, Tensor) and v.is_floating_point()}
        leaves = {s: v.detach().requires_grad_() for s, v in moving.items()}
        with torch.set_grad_enabled(bool(leaves)):
            read = given | leaves
            if self.in_place:  # it must not write a leaf
                read = {s: v.clone() if isinstance(v, Tensor) else v for s, v in read.items()}
            result = self.run(read)
        if not isinstance(result, Tensor):
            return result, None
        return result.detach(), (leaves, result) if leaves and result.requires_grad else None

    def backward(self, gradient: Tensor, kept: Any, gradients: Gradients) -> None:
        if kept is None:
            return
        leaves, result = kept
        found = torch.autograd.grad(
            result, list(leaves.values()), gradient.to(result.dtype), retain_graph=True, allow_unused=True
        )
        for source, part in zip(leaves, found, strict=True):
            if part is not None:
                _give(gradients, source, _own(part.to(gradient.dtype)))


def _own(part: Tensor) -> Tensor:
    """Autograd may give one tensor to several inputs, or an expanded one."""
    return _copy(part) if part.ndim == 4 else part.clone(memory_format=torch.contiguous_format)
