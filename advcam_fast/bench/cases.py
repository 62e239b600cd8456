"""What the kernels are measured on: one table for the benchmarks, the GPU command and the checks on a device.

Every case is an item of real work: flip pairs of 375x500 images, stride-16 maps, heads of 20 and of 1000 classes, the
activation behind a ResNet-50's first stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast.ops import hard_unary, reference

Arguments = dict[str, Any]  # by the parameter names that ops.<stem>, reference.<stem> and triton.<stem> share
SCALED_MAPS = ((12, 16), (24, 32), (36, 47), (47, 63))  # of 375x500 at the scales 0.5, 1, 1.5, 2 and stride 16


class Source:
    """Random tensors on one device, always the same ones; sides are divided by `shrink`."""

    def __init__(self, device: str, shrink: int, channels_last: bool) -> None:
        self.device = device
        self.shrink = shrink
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = torch.Generator(device).manual_seed(0)

    def side(self, length: int) -> int:
        return max(1, length // self.shrink)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self.generator)


@dataclass(frozen=True)
class Case:
    """stem: the op. make: (source, flip pairs) -> its arguments. peer: see `eager`.

    compiles: False where torch.compile of the peer would unroll thousands of operations and take minutes.
    peer_error: relative, of a peer that float32 takes further off than bench/tolerances.py allows.
    """

    stem: str
    name: str
    make: Callable[[Source, int], Arguments]
    peer: Callable[[Arguments], Callable[..., Any]] | None = None
    compiles: bool = True
    peer_error: float | None = None

    def arguments(self, pairs: int = 1, device: str = "cpu", shrink: int = 1, channels_last: bool = True) -> Arguments:
        """The op's arguments; channels_last is the engine's layout, the eager reference is faster without."""
        return self.make(Source(device, shrink, channels_last), pairs)

    def eager(self, arguments: Arguments) -> Callable[..., Any]:
        """What the op is compared with on these arguments: the reference, or the PyTorch that it stands in for."""
        return getattr(reference, self.stem) if self.peer is None else self.peer(arguments)


def _step(half: torch.dtype | None) -> Callable[[Source, int], Arguments]:
    """half: dtype of the gradient and of the network's input; None: float32, and no such input."""

    def make(source: Source, pairs: int) -> Arguments:
        shape = (2 * pairs, 3, source.side(375), source.side(500))
        image = source.normal(*shape).contiguous(memory_format=source.layout)
        gradient = source.normal(*shape).contiguous(memory_format=source.layout) * 1e-3
        return {
            "image": image,
            "gradient": gradient if half is None else gradient.to(half),
            "step_size": 0.08,
            "group_size": 2,
            "network_input": None if half is None else torch.empty_like(image, dtype=half),
        }

    return make


def _loss(classes: int) -> Callable[[Source, int], Arguments]:
    def make(source: Source, pairs: int) -> Arguments:
        height, width = source.side(24), source.side(32)
        target = torch.arange(pairs, device=source.device) % classes
        weight = torch.full((pairs, classes), -1.0, device=source.device).scatter_(1, target[:, None], 1.0)
        return {
            "logit_map": source.normal(2 * pairs, classes, height, width).contiguous(memory_format=source.layout),
            "target": target,
            "weight": weight,
            "positive": torch.full((pairs,), 1000.0, device=source.device),
            "initial_map": source.uniform(pairs, height, width) * 1e-3,
            "suppression": 7.0,
            "mask_threshold": 0.5,
            "rectify": True,
            "group_size": 2,
        }

    return make


def _one_map(source: Source, pairs: int) -> Arguments:
    shape = (pairs, source.side(24), source.side(32))
    return {"maps": [source.uniform(*shape)], "total": source.uniform(*shape), "size": shape[1:], "normalise": False}


def _scales(source: Source, pairs: int) -> Arguments:
    return {
        "maps": [source.uniform(pairs, source.side(height), source.side(width)) for height, width in SCALED_MAPS],
        "total": torch.zeros(pairs, source.side(375), source.side(500), device=source.device),
        "size": (source.side(384), source.side(512)),
        "normalise": True,
    }


def _activation(source: Source, pairs: int) -> Tensor:
    """Channels-last for all: nothing that works element by element is faster without."""
    shape = (2 * pairs, 256, source.side(94), source.side(125))
    return source.normal(*shape).contiguous(memory_format=torch.channels_last)


def _relu(source: Source, pairs: int) -> Arguments:
    absent = {"bias": None, "residual": None, "valid": None}
    return {"x": _activation(source, pairs), "ceiling": math.inf, "save": True, **absent}


def _relu_of_torch(arguments: Arguments) -> Callable[..., Any]:
    """In place too; what autograd keeps of it is the result, which needs no further write."""

    def run(x: Tensor, **_: Any) -> None:
        torch.relu_(x)

    return run


def _relu_backward(source: Source, pairs: int) -> Arguments:
    gradient = _activation(source, pairs)
    size = ((gradient.numel() + 7) // 8,)
    bits = torch.randint(0, 256, size, dtype=torch.uint8, device=source.device, generator=source.generator)
    return {"gradient": gradient, "bits": bits}


def _relu_backward_of_torch(arguments: Arguments) -> Callable[..., Any]:
    """Autograd's function, with the activation that it kept."""
    activation = reference.masked_relu_backward(torch.ones_like(arguments["gradient"]), arguments["bits"])

    def run(gradient: Tensor, bits: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(gradient, activation, 0)

    return run


_POOL = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)}


def _pool(source: Source, pairs: int) -> Arguments:
    """A ResNet's, behind its first convolution."""
    shape = (2 * pairs, 64, source.side(188), source.side(250))
    x = source.normal(*shape).contiguous(memory_format=torch.channels_last)
    return {"x": x, **_POOL, "ceil_mode": False, "save": True}


def _pool_of_torch(arguments: Arguments) -> Callable[..., Any]:
    """With the int64 indices that its gradient needs, which are not compared."""

    def run(x: Tensor, save: bool, **window: Any) -> tuple[Tensor, None]:
        return torch.ops.aten.max_pool2d_with_indices(x, *window.values())[0], None

    return run


def _pool_backward(source: Source, pairs: int) -> Arguments:
    given = _pool(source, pairs)
    y, at = reference.max_pool(**given)
    return {"gradient": y, "at": at, "size": given["x"].shape[2:], **_POOL}


def _pool_backward_of_torch(arguments: Arguments) -> Callable[..., Any]:
    gradient, at, size = arguments["gradient"], arguments["at"].long(), arguments["size"]
    row, column = (torch.arange(n, device=at.device) for n in at.shape[2:])
    top, left = (row * 2 - 1)[:, None], (column * 2 - 1)[None, :]
    indices = (top + at // 3) * size[1] + left + at % 3
    x = torch.empty(*gradient.shape[:2], *size, device=at.device).contiguous(memory_format=torch.channels_last)

    def run(gradient: Tensor, at: Tensor, size: Any, **window: Any) -> Tensor:
        return torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *window.values(), False, indices)

    return run


def _walk(height: int, width: int) -> Callable[[Source, int], Arguments]:
    """Two labels of a photo at stride 4, with the settings of the method."""

    def make(source: Source, pairs: int) -> Arguments:
        size = (source.side(height), source.side(width))
        maps, boundary = source.uniform(pairs, 2, *size), source.uniform(pairs, *size) ** 4
        return {"maps": maps, "boundary": boundary * 0.9, "radius": 5, "beta": 10.0, "steps": 256, "restart": 0.0}

    return make


def _crf(labels: int) -> Callable[[Source, int], Arguments]:
    """Two of IRN's ten steps, which amplify rounding too much to be checked; blurred noise for photographs."""

    def make(source: Source, pairs: int) -> Arguments:
        height, width = source.side(375), source.side(500)
        coarse = source.uniform(pairs, 3, height // 8 + 1, width // 8 + 1)
        smooth = F.interpolate(coarse, (height, width), mode="bicubic") + 0.02 * source.normal(pairs, 3, height, width)
        cells = F.interpolate(source.uniform(pairs, 1, height // 32 + 1, width // 32 + 1), (height, width))[:, 0]
        return {
            "images": (smooth.clamp(0, 1) * 255).to(torch.uint8).movedim(1, 3).contiguous(),
            "unary": hard_unary((cells * labels).long().clamp(max=labels - 1), labels),
            "steps": 2,
            "gaussian": (3.0, 3.0),
            "bilateral": (50.0, 5.0, 10.0),
        }

    return make


def _dense_walk(arguments: Arguments) -> Callable[..., Any]:
    """As released: the N x N matrix squared eight times. What it takes to build the matrix is not counted."""
    boundary = arguments["boundary"]
    pairs, height, width = boundary.shape
    pixels = height * width
    spots = torch.eye(pixels, device=boundary.device, dtype=boundary.dtype).view(1, pixels, height, width)
    once = reference.random_walk(spots.expand(pairs, -1, -1, -1), boundary, arguments["radius"], arguments["beta"], 1)
    matrix = once.flatten(2) / (1 - boundary).flatten(1)[:, :, None]

    def run(maps: Tensor, boundary: Tensor, steps: int, **_: Any) -> Tensor:
        start = (maps * (1 - boundary)[:, None]).flatten(2)
        return (start @ torch.linalg.matrix_power(matrix, steps)).view_as(maps)

    return run


def _color_walk(source: Source, pairs: int) -> Arguments:
    size = (source.side(94), source.side(125))
    images = source.uniform(pairs, 3, *size) * 255
    maps = source.uniform(pairs, 2, *size)
    return {"maps": maps, "images": images, "radius": 5, "sigma": 30.0, "steps": 32, "restart": 0.0}


def _wells(source: Source, pairs: int) -> Arguments:
    """A field that leads to a dozen centres, which lie elsewhere for each of the pairs."""
    size = (source.side(94), source.side(125))
    moves = []
    for axis, count in ((0, 3), (1, 4)):
        period = size[axis] / count
        at = torch.arange(size[axis], device=source.device) + source.uniform(pairs, 1) * period
        move = torch.sin(at * (2 * math.pi / period)) * (period / (4 * math.pi))
        moves.append((move[:, :, None] if axis == 0 else move[:, None]).expand(-1, *size))
    return {"displacement": torch.stack(moves, 1), "steps": 300, "threshold": 1.0}


def _numpy_steps(arguments: Arguments) -> Callable[..., Any]:
    """As released: the steps in NumPy on the CPU, image by image; the labels are the reference's."""
    height, width = arguments["displacement"].shape[-2:]

    def steps_of(field: Any, steps: int) -> Any:
        y, x = (a.astype(field.dtype) for a in np.mgrid[:height, :width])
        for _ in range(steps):
            (top, left), (bottom, right) = ((f(y).astype(int), f(x).astype(int)) for f in (np.floor, np.ceil))
            up, across = y - top.astype(y.dtype), x - left.astype(x.dtype)
            weights = (up * across, (1 - up) * across, up * (1 - across), (1 - up) * (1 - across))
            corners = ((bottom, right), (top, right), (bottom, left), (top, left))
            moves = [sum(f[at] * weight for at, weight in zip(corners, weights, strict=True)) for f in field]
            y, x = np.clip(y + moves[0], 0, height - 1), np.clip(x + moves[1], 0, width - 1)
        return np.stack([y, x])

    def run(displacement: Tensor, steps: int, threshold: float) -> tuple[Tensor, Tensor]:
        walked = np.stack([steps_of(field, steps) for field in displacement.cpu().numpy()])
        centroids = torch.from_numpy(walked).to(displacement.device)
        return centroids, reference.labels_at(centroids, displacement, threshold)

    return run


def _sweep(source: Source, pairs: int) -> Arguments:
    """Two maps of a photo, or of a tall one; thresholds that every dtype holds."""
    shape = (pairs * source.side(375), source.side(500))
    truth = (source.uniform(*shape) * 22).long()
    return {
        "maps": source.uniform(2, *shape),
        "classes": torch.tensor([3, 14], device=source.device),
        "truth": torch.where(truth == 21, 255, truth).to(torch.uint8),
        "thresholds": torch.arange(10, 30, device=source.device) / 64,
        "num_classes": 20,
    }


def _outlines(source: Source, pairs: int) -> Arguments:
    """Maps of 7x7 cells, resized as the common evaluator of WSOL does."""
    size = (source.side(224), source.side(224))
    maps = F.interpolate(source.uniform(pairs, 1, 7, 7), size, mode="bicubic")[:, 0].clamp(0, 1) * 255
    return {"maps": maps.to(torch.uint8), "levels": torch.arange(256, device=source.device)}


CASES = (
    Case("climb_step", "375x500 fp32", _step(None)),
    Case("climb_step", "375x500 bf16 gradient", _step(torch.bfloat16)),
    Case("climb_loss", "20 classes 24x32", _loss(20)),
    Case("climb_loss", "1000 classes 24x32", _loss(1000)),
    Case("cam_accumulate", "one step 24x32", _one_map),
    Case("cam_accumulate", "one step of 64 pairs 24x32", lambda source, pairs: _one_map(source, 64 * pairs)),
    Case("cam_accumulate", "4 scales to 375x500", _scales),
    Case("masked_relu", "256x94x125 fp32 with bits", _relu, _relu_of_torch),
    Case("masked_relu_backward", "256x94x125 fp32", _relu_backward, _relu_backward_of_torch),
    Case("max_pool", "64x188x250 fp32", _pool, _pool_of_torch),
    Case("max_pool_backward", "64x188x250 fp32", _pool_backward, _pool_backward_of_torch),
    Case("random_walk", "94x125 256 steps", _walk(94, 125), compiles=False, peer_error=1e-4),
    Case("random_walk", "32x42 against the dense power", _walk(32, 42), _dense_walk, compiles=False, peer_error=1e-3),
    Case("color_walk", "94x125 32 steps", _color_walk, compiles=False),
    Case("centroid_walk", "94x125 300 steps", _wells, _numpy_steps, compiles=False),
    Case("dense_crf", "2 labels 375x500", _crf(2)),
    Case("dense_crf", "21 labels 375x500", _crf(21)),
)

# Of a set's evaluation: their outputs are counts, whose sizes depend on the values.
EVALUATION_CASES = (
    Case("threshold_sweep", "20 thresholds, 2 maps 375x500", _sweep, compiles=False),
    Case("component_boxes", "256 levels 224x224", _outlines, compiles=False),
)


def outputs(stem: str, run: Callable[..., Any], arguments: Arguments) -> dict[str, Tensor]:
    """Calls `run` and names everything that it returned or wrote."""
    result = run(**arguments)
    if stem == "climb_loss":
        return dict(zip(("objective", "gradient", "pair_map", "mask", "score"), result, strict=True))
    if stem == "cam_accumulate":
        return {"total": arguments["total"]}
    if stem == "masked_relu":  # torch's relu has no bits
        return {"x": arguments["x"]} | ({} if result is None else {"bits": result})
    if stem == "masked_relu_backward":  # torch's is not in place
        return {"gradient": arguments["gradient"] if result is None else result}
    if stem == "max_pool":
        return {name: found for name, found in zip(("y", "at"), result, strict=True) if found is not None}
    if stem == "max_pool_backward":
        return {"x_gradient": result}
    if stem in ("random_walk", "color_walk"):
        return {"walked": result}
    if stem == "centroid_walk":
        return dict(zip(("centroids", "labels"), result, strict=True))
    if stem == "dense_crf":
        return {"probability": result}
    if stem == "threshold_sweep":
        return {"confusion": result}
    if stem == "component_boxes":
        return dict(zip(("boxes", "polygon_area", "offsets"), result, strict=True))
    written = {"image": arguments["image"], "largest": result}
    network_input = arguments["network_input"]
    return written if network_input is None else written | {"network_input": network_input}


def mapped(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """The arguments with every tensor changed, those in lists too."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(item) for item in value]
        return change(value) if isinstance(value, Tensor) else value

    return {name: of(value) for name, value in arguments.items()}


def minimum_bytes(arguments: Arguments, results: dict[str, Tensor]) -> int:
    """What any implementation moves: every input read once, every output written once."""
    values = [value for name, value in arguments.items() if name != "network_input"]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return sum(tensor.nbytes for tensor in (*flat, *results.values()) if isinstance(tensor, Tensor))
