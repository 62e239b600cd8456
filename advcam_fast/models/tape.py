"""A traced network as a tape: its layers in order, and what the gradient of its input needs of each of them.

Autograd saves activations; here a rectifier leaves one bit an element, a convolution nothing, and every value and
gradient is written over as soon as nobody reads it any more. What a tape does not know (a squeeze-and-excitation, say)
runs through autograd as a step of its own, so that one unknown layer does not make the rest slow.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from advcam_fast import ops
from advcam_fast.models import steps
from advcam_fast.models.convolution import padding_rule, window_of
from advcam_fast.models.ragged import Frame, Region, Size, regions

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RECTIFIERS = (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_", F.relu6)
_IN_PLACE = (operator.iadd, operator.imul, operator.isub, "add_", "mul_", "sub_", "relu_", torch.relu_, F.relu_)


class UnknownNetwork(ValueError):
    """The graph has something in it that a tape cannot hold; the text says what."""


class Tape:
    """The steps of a folded graph, in one dtype (and the gradient's own: `mixed` has fp32 and bf16)."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype, backward_dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.backward_dtype = backward_dtype or dtype
        self.steps, self.values, self.output = _Compiler(graph, dtype, self.backward_dtype).compiled()
        self.backwards = steps.gradient_order(self.steps)
        steps.rectify_early(self.steps, self.backwards)
        self._regions: dict[Size, list[Region | None]] = {}
        self.unknown = Counter(step.name for step in self.steps if isinstance(step, steps.Autograd))

    def frame(self, sizes: Sequence[Size], device: torch.device) -> Frame:
        """How images of these sizes lie in one canvas and in the features; raises Unplaceable."""
        for size in set(sizes) - self._regions.keys():
            self._regions[size] = regions(self.steps, self.values, self.output, size)
        return Frame([self._regions[size] for size in sizes], self.output, device)

    @torch.no_grad()
    def forward(self, images: Tensor, save: bool, frame: Frame | None = None) -> tuple[Tensor, list[Any]]:
        """[B, 3, H, W] -> features, and what `gradient` needs (empty without save).

        frame: where in the canvas each image is, if they are of different sizes; the features are then right where
        `frame.of(output)` says, and anything elsewhere.
        """
        values: list[Any] = [None] * self.values
        values[0] = images
        saved: list[Any] = []
        for step in self.steps:
            values[step.output], kept = step.forward(values, save, frame)
            saved.append(kept)
            for index in step.last_use:
                values[index] = None
        return values[self.output], saved if save else []

    @torch.no_grad()
    def gradient(self, saved: list[Any], gradient: Tensor) -> Tensor:
        """dJ/d(features) -> dJ/d(images), of the images' dtype; may be called again for another gradient.

        After a forward pass with a frame: zero outside the items, as the gradient that is given must be.
        """
        gradients: list[Any] = [None] * self.values
        own = gradient.to(self.backward_dtype, memory_format=torch.channels_last)
        gradients[self.output] = own.clone(memory_format=torch.channels_last) if own is gradient else own
        rectified: set[int] = set()  # numbers of steps whose value's gradient has been through their bits
        for number in self.backwards:
            step = self.steps[number]
            own, gradients[step.output] = gradients[step.output], None
            if own is None:
                continue
            bits = step.bits(saved[number])
            if bits is not None and number not in rectified:
                ops.masked_relu_backward(own, bits)
            if isinstance(step, steps.Convolved) and step.rectifies is not None:
                early = step.rectifies
                step.backward(own, saved[number], gradients, self.steps[early].bits(saved[early]))
                if step.everywhere:
                    rectified.add(early)
            else:
                step.backward(own, saved[number], gradients)
        if gradients[0] is None:
            raise UnknownNetwork("no gradient comes to its input")
        return gradients[0].to(self.dtype)


class _Compiler:
    """Turns the nodes of a graph into steps, fusing convolution, addition and rectifier."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype, backward_dtype: torch.dtype) -> None:
        self.graph = graph
        self.dtypes = (dtype, backward_dtype)
        self.modules = dict(graph.named_modules())
        self.index: dict[fx.Node, int] = {}
        self.count = 0
        self.steps: list[steps.Step] = []
        self.taken: set[fx.Node] = set()  # nodes that are part of a step before them
        self.calls: dict[fx.Node, tuple[Callable[[dict[int, Any]], Any], tuple[int, ...]]] = {}  # of several tensors
        self.residuals: dict[fx.Node, fx.Node] = {}  # addition -> the convolution that will do it
        self.late: dict[fx.Node, float] = {}  # maximum over windows -> ceiling of the rectifier before it, done after

    def compiled(self) -> tuple[list[steps.Step], int, int]:
        output = None
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if self.count:
                    raise UnknownNetwork("more than one input")
                self._name(node)
            elif node.op == "output":
                output = node.args[0]
            elif node not in self.taken:
                self._add(node)
        if not isinstance(output, fx.Node) or output not in self.index:
            raise UnknownNetwork("more than one output")
        last = self.index[output]
        if last == 0:
            raise UnknownNetwork("no layers")
        steps.free_early(self.steps, last)
        return self.steps, self.count, last

    def _name(self, node: fx.Node) -> int:
        """A new value, which the node stands for."""
        self.index[node] = self.count
        self.count += 1
        return self.count - 1

    def _add(self, node: fx.Node) -> None:
        kind = self._kind(node)
        self._check_in_place(node)
        if isinstance(kind, nn.Conv2d) and padding_rule(kind) is not None:
            self._convolution(node, kind)
        elif node in self.residuals:
            convolution = self.residuals[node]
            others = [source for source in node.all_input_nodes if source is not convolution]
            self._emit_convolution(convolution, node, self.index[others[0]])
        elif (ceiling := _ceiling(node, kind)) is not None and self._is_map(node):
            source = self.index[node.all_input_nodes[0]]
            if (maximum := self._maximum_after(node)) is not None:
                self.late[maximum], self.index[node] = ceiling, source
            else:
                self.steps.append(steps.Rectifier(source, self._name(node), ceiling))
        elif kind in _ADDITIONS and self._plain_pair(node):
            first, second = (self.index[source] for source in node.all_input_nodes)
            self.steps.append(steps.Addition(first, second, self._name(node)))
        elif self._is_map(node) and (pooling := _pooling(node, kind)) is not None:
            source = self.index[node.all_input_nodes[0]]
            self.steps.append(steps.pool(source, self._name(node), pooling))
            if node in self.late:
                self.steps.append(steps.Rectifier(self.index[node], self._name(node), self.late[node]))
        elif (keepdim := self._global_mean(node, kind)) is not None:
            self.steps.append(steps.GlobalMean(self.index[node.all_input_nodes[0]], self._name(node), keepdim))
        elif kind is torch.cat and _dimension(node) == 1 and self._is_map(node) and _distinct(node.args[0]):
            sources = tuple(self.index[source] for source in node.all_input_nodes)
            self.steps.append(steps.Concatenation(sources, self._name(node)))
        else:
            self._autograd(node, kind)

    def _kind(self, node: fx.Node) -> Any:
        """The module, function or method name that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else node.target

    def _check_in_place(self, node: fx.Node) -> None:
        """A layer that writes its input is a layer like others, as long as nobody reads that input afterwards."""
        if not self._writes(node) or not node.all_input_nodes:
            return
        order = {other: at for at, other in enumerate(self.graph.graph.nodes)}
        if any(order[user] > order[node] for user in node.all_input_nodes[0].users):
            raise UnknownNetwork(f"{node.name} writes a value that is read again")

    def _in_dtype(self, weights: Any) -> Any:
        """A constant or a layer of the graph, which is in float64, as the forward pass takes it."""
        floating = isinstance(weights, nn.Module) or (isinstance(weights, Tensor) and weights.is_floating_point())
        return weights.to(self.dtypes[0]) if floating else weights

    def _global_mean(self, node: fx.Node, kind: Any) -> bool | None:
        """Whether the mean over all positions of a map keeps its dimensions; None where this is no such mean."""
        if not node.all_input_nodes or not self._is_map(node.all_input_nodes[0]):
            return None
        arguments = [*node.args[1:], *node.kwargs.values()]
        if kind is F.adaptive_avg_pool2d:
            return True if arguments in ([1], [(1, 1)], [[1, 1]]) else None
        if type(kind) is nn.AdaptiveAvgPool2d:
            return True if kind.output_size in (1, (1, 1)) else None
        named = set(node.kwargs) <= {"dim", "keepdim"}
        if kind not in ("mean", torch.mean) or not named or not 1 <= len(arguments) <= 2:
            return None
        keepdim = arguments[1] if len(arguments) == 2 else False
        over = arguments[0] if isinstance(arguments[0], (list, tuple)) else ()
        return bool(keepdim) if sorted(side % 4 for side in over) == [2, 3] and isinstance(keepdim, bool) else None

    def _writes(self, node: fx.Node) -> bool:
        kind = self._kind(node)
        if isinstance(kind, nn.Module):
            return bool(getattr(kind, "inplace", False))
        return kind in _IN_PLACE or bool(node.kwargs.get("inplace", False))

    def _maximum_after(self, rectifier: fx.Node) -> fx.Node | None:
        """A maximum over windows that may change places with it, which leaves fewer elements to rectify."""
        users = list(rectifier.users)
        pooling = _pooling(users[0], self._kind(users[0])) if len(users) == 1 else None
        return users[0] if isinstance(pooling, nn.MaxPool2d) and min(window_of(pooling)[1]) > 1 else None

    def _is_map(self, node: fx.Node) -> bool:
        return len(node.meta.get("shape", ())) == 4  # [B, C, H, W]

    def _is_tensor(self, node: fx.Node) -> bool:
        return "shape" in node.meta

    def _plain_pair(self, node: fx.Node) -> bool:
        """Two different tensors of one shape, and nothing else (such as alpha)."""
        sources = node.all_input_nodes
        if len(node.args) != 2 or node.kwargs or len(sources) != 2:
            return False
        return self._is_map(sources[0]) and sources[0].meta["shape"] == sources[1].meta.get("shape")

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        users = list(node.users)
        if len(users) == 1 and users[0] not in self.residuals:
            addition = users[0]
            if self._kind(addition) in _ADDITIONS and self._plain_pair(addition):
                self._check_in_place(addition)
                self.residuals[addition] = node
                return  # done where the other operand is there too
        self._emit_convolution(node, node, None)

    def _emit_convolution(self, node: fx.Node, last: fx.Node, residual: int | None) -> None:
        module = self._kind(node)
        ceiling = None
        users = list(last.users)
        if len(users) == 1 and self._maximum_after(users[0]) is None:
            ceiling = _ceiling(users[0], self._kind(users[0]))
        if ceiling is not None:
            last = users[0]
            self.taken.add(last)
        source = self.index[node.all_input_nodes[0]]
        self.steps.append(steps.Convolved(source, residual, self._name(last), module, ceiling, *self.dtypes))

    def _autograd(self, node: fx.Node, kind: Any) -> None:
        """Any other node; one that gives several tensors (a split) runs again for each of them that is read."""
        if isinstance(node.meta.get("tensor_meta"), tuple) and not self._is_tensor(node):
            self.calls[node] = self._call(node, kind)
            return
        call, sources = self._call(node, kind)
        name = type(kind).__name__ if isinstance(kind, nn.Module) else getattr(kind, "__name__", str(kind))
        self.steps.append(steps.Autograd(sources, self._name(node), name, call, self._writes(node)))

    def _call(self, node: fx.Node, kind: Any) -> tuple[Callable[[dict[int, Any]], Any], tuple[int, ...]]:
        """What computes a node from the values it reads, by their index, and these indices."""
        inner = {source: self.calls[source] for source in node.all_input_nodes if source in self.calls}
        direct = {source: self.index[source] for source in node.all_input_nodes if source not in inner}
        indices = (*direct.values(), *(index for _, sources in inner.values() for index in sources))
        if node.op == "get_attr":
            constant = self._in_dtype(operator.attrgetter(str(node.target))(self.graph))
            call: Callable[..., Any] = lambda: constant  # noqa: E731
        elif node.op == "call_method":
            method = str(node.target)
            call = lambda own, *args, **kwargs: getattr(own, method)(*args, **kwargs)  # noqa: E731
        else:
            call = self._in_dtype(copy.deepcopy(kind)) if isinstance(kind, nn.Module) else kind

        def run(values: dict[int, Any]) -> Any:
            found = lambda source: values[direct[source]] if source in direct else inner[source][0](values)  # noqa: E731
            return call(*fx.map_arg(node.args, found), **fx.map_arg(node.kwargs, found))

        return run, tuple(dict.fromkeys(indices))


def _ceiling(node: fx.Node, kind: Any) -> float | None:
    """infinity for a ReLU, 6 for a ReLU6; None for what is neither."""
    if type(kind) is nn.ReLU or kind in _RECTIFIERS[:-1]:
        return math.inf if len(node.all_input_nodes) == 1 else None
    if type(kind) is nn.ReLU6 or kind is F.relu6:
        return 6.0
    if type(kind) is nn.Hardtanh and kind.min_val == 0:
        return float(kind.max_val)
    return None


def _pooling(node: fx.Node, kind: Any) -> nn.MaxPool2d | nn.AvgPool2d | None:
    """The layer that a node is, or that stands for the function it calls; None for another, or two results."""
    if kind in (F.max_pool2d, F.avg_pool2d) and len(node.all_input_nodes) == 1 and node.args:
        made = nn.MaxPool2d if kind is F.max_pool2d else nn.AvgPool2d
        if len(node.args) > (5 if made is nn.MaxPool2d else 7):  # from there on the two have another order
            return None
        kind = made(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    if type(kind) is nn.MaxPool2d and not kind.return_indices:
        return kind if math.prod(window_of(kind)[0]) <= ops.MOST_ELEMENTS else None
    return kind if type(kind) is nn.AvgPool2d else None


def _dimension(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _distinct(nodes: Any) -> bool:
    return isinstance(nodes, (list, tuple)) and len(set(nodes)) == len(nodes)
