"""Features made ready for thousands of forward + input-gradient passes: folded, frozen, channels-last, on a tape."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from advcam_fast.errors import UsageError, first_line
from advcam_fast.models.cam_model import Features
from advcam_fast.models.folding import check_same, folded, probe_of
from advcam_fast.models.footprint import peak_bytes
from advcam_fast.models.heap import give_back_free_memory, keep_freed_memory
from advcam_fast.models.ragged import Frame, Size, Unplaceable, within
from advcam_fast.models.steps import channels_last
from advcam_fast.models.tape import Tape


class FrozenFeatures(nn.Module):
    """The executor of one network; `executor` says in words what was done to it, for the log."""

    def __init__(self, network: Features, executor: str, ragged: bool = False) -> None:
        super().__init__()
        self.network = network
        self.executor = executor
        self.ragged = ragged  # whether it takes images of different sizes at once
        self.bytes_per_pixel: float | None = None  # that a pass and its gradient hold, by pixel of the input; if known

    def forward(self, images: Tensor, frame: Frame | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, K, h, w]. frame: of `frame`, where the images are of different sizes."""
        images = channels_last(images)
        if frame is None:
            return self.network(images)
        assert isinstance(self.network, _OnTape)
        found: Tensor = self.network(images, frame)
        return found

    def frame(self, sizes: Sequence[Size], device: torch.device) -> Frame:
        """How images of these sizes (rows, columns) lie in one canvas. Only where `ragged`."""
        assert isinstance(self.network, _OnTape)
        return self.network.tape.frame(sizes, device)


def freeze(
    features: Features,
    dtype: torch.dtype = torch.float32,
    backward_dtype: torch.dtype | None = None,
    ragged: bool = False,
) -> FrozenFeatures:
    """A frozen copy of the features in `dtype`: BatchNorm folded, no weight gradients, nothing saved but bits.

    backward_dtype: of the gradient, where it is to be another one (bfloat16 behind a float32 forward pass).
    ragged: images of different sizes are to share a batch; compared in float64 too, each with its own run. Where a
    network cannot do that `ragged` is False afterwards, and `executor` says why.
    Folding is computed in float64, and value and gradient of the copy are compared with the network's in float64 before
    it is used. `executor` is "tape", with the layers it leaves to autograd; where a tape cannot
    hold the network autograd runs it, and `executor` is "folded, no tape: REASON"; where it cannot be traced either its
    weights are only frozen, and `executor` is "frozen, not folded: REASON". A function that is no nn.Module is used as
    it is. On a CPU the process keeps freed memory from here on (models/heap.py).
    Raises UsageError where a BatchNorm would use the batch's own statistics.
    """
    if not isinstance(features, nn.Module):
        return FrozenFeatures(features, "used as given: not an nn.Module")
    refuse_batch_statistics(features)
    frozen = _frozen(features, dtype, backward_dtype, ragged)
    give_back_free_memory()  # the float64 copies were several times the network
    return frozen


def _frozen(
    features: nn.Module, dtype: torch.dtype, backward_dtype: torch.dtype | None, ragged: bool
) -> FrozenFeatures:
    network: nn.Module = copy.deepcopy(features).eval().double().requires_grad_(False)
    original = network
    if next(network.parameters(), torch.empty(0)).device.type == "cpu":
        keep_freed_memory()
    _write_activations_apart(network)
    try:
        network = folded(network)
        alone = _check_tape(original, network, ragged)
        tape = Tape(network, dtype, backward_dtype)
        frozen = FrozenFeatures(_OnTape(tape), _described(tape) + alone, ragged and not alone)
        _measure(frozen, probe_of(network).to(dtype))  # also: may the dtype run at all?
        return frozen
    except Exception as error:  # a user's network may fail to trace or to run in any way at all
        done = "folded, no tape" if isinstance(network, fx.GraphModule) else "frozen, not folded"
        executor = f"{done}: {type(error).__name__}: {first_line(error)}"
    frozen = FrozenFeatures(network.to(dtype).to(memory_format=torch.channels_last), executor)
    with contextlib.suppress(Exception):  # it is told where it is climbed
        _measure(frozen, probe_of(network).to(dtype))
    return frozen


def _measure(frozen: FrozenFeatures, probe: Tensor) -> None:
    def run() -> None:
        image = probe.clone().requires_grad_()
        features = frozen(image)
        torch.autograd.grad(features, image, torch.ones_like(features))

    with torch.enable_grad():
        frozen.bytes_per_pixel = peak_bytes(run) / probe[0, 0].numel()


def _described(tape: Tape) -> str:
    unknown = ", ".join(f"{count} {name}" for name, count in sorted(tape.unknown.items()))
    return f"tape; by autograd: {unknown}" if unknown else "tape"


def _check_tape(network: nn.Module, graph: fx.GraphModule, ragged: bool) -> str:
    """Raises where the tape differs from the network; says why it cannot take images of different sizes, or nothing."""
    probe = probe_of(network).requires_grad_()
    with torch.enable_grad():
        wanted = network(probe)
    ascent = _slope_like(wanted)
    (slope,) = torch.autograd.grad(wanted, probe, ascent)
    tape = Tape(graph, torch.float64)
    features, saved = tape.forward(probe.detach(), save=True)
    check_same("value", features, wanted.detach())
    check_same("gradient", tape.gradient(saved, ascent), slope)
    if not ragged:
        return ""
    try:
        _check_ragged(tape, probe.detach())
    except Exception as error:  # as below: whatever a user's layers do on a canvas
        return f"; one size at a time: {first_line(error)}"
    return ""


def _check_ragged(tape: Tape, probe: Tensor) -> None:
    """Raises ArithmeticError unless images of four sizes have the values and gradients of their own runs."""
    side = probe.shape[2]
    sizes = [(side - above, side - left) for above, left in ((0, 13), (21, 0), (6, 7), (11, 32))]
    frame = tape.frame(sizes, probe.device)
    regions, features = frame.of(0), frame.of(tape.output)
    if regions is None or features is None:
        raise Unplaceable("its features are no maps")
    height, width = frame.canvas()
    canvas = probe.new_full((len(sizes), 3, height + 1, width + 2), 3.0)  # more than is needed, and not zero
    alone = []
    for item, region in enumerate(regions):
        image = probe.roll(item, 3)[..., : region.height, : region.width]
        within(canvas[item], region).copy_(image[0])
        value, saved = tape.forward(channels_last(image), save=True)
        ascent = _slope_like(value)
        alone.append((value[0], ascent[0], tape.gradient(saved, ascent)[0]))
    together, saved = tape.forward(channels_last(canvas), save=True, frame=frame)
    ascent = torch.zeros_like(together)
    for item, (value, own, _) in enumerate(alone):
        check_same("value among other sizes", within(together[item], features[item]), value)
        within(ascent[item], features[item]).copy_(own)
    slope = tape.gradient(saved, ascent)
    for item, (_, _, own) in enumerate(alone):
        check_same("gradient among other sizes", within(slope[item], regions[item]), own)
        within(slope[item], regions[item]).zero_()
    if bool(slope.any()):
        raise ArithmeticError("it has a gradient outside the images")


def _slope_like(features: Tensor) -> Tensor:
    """A gradient of the features whose elements all differ."""
    return torch.cos(torch.arange(features.numel(), dtype=features.dtype, device=features.device)).view(features.shape)


class _OnTape(nn.Module):
    """A tape as a layer of autograd."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def forward(self, images: Tensor, frame: Frame | None = None) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return _Run.apply(images, self.tape, frame)
        return self.tape.forward(images, False, frame)[0]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, tape: Tape, frame: Frame | None) -> Tensor:
        features, ctx.saved = tape.forward(images, True, frame)
        ctx.tape = tape
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.tape.gradient(ctx.saved, gradient), None, None


def _write_activations_apart(network: nn.Module) -> None:
    """In place, an activation that autograd runs would write what it is to remember."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def refuse_batch_statistics(features: nn.Module) -> None:
    for name, module in features.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        where = f"BatchNorm {name!r}" if name else "the BatchNorm"
        if module.training:
            raise UsageError(f"{where} is in training mode, so it would use the batch's statistics: call .eval() first")
        if module.running_mean is None or module.running_var is None:
            raise UsageError(f"{where} keeps no running statistics, so results would depend on the batch")
