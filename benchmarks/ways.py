"""Other ways up than the package's: tried by benchmarks/explore.py."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import advcam_fast as af
from advcam_fast import ops
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.canvas import Canvas
from advcam_fast.climb.climber import Climber, Head, Start
from advcam_fast.data import resize_image
from advcam_fast.options import changes_of, check_option

VELOCITIES = ("normalised", "heavy", "nesterov")
SCHEDULES = ("constant", "linear", "cosine", "rising")
CARRIES = ("none", "add", "instead", "follow")


@dataclass(frozen=True)
class Way:
    """How a climb takes its steps; the defaults are the package's.

    velocity: what momentum mu makes of v <- mu v + g: normalised, a step along v, as the package does; nesterov, along
    g + mu v; heavy, a step of v itself, with g over its maximum.
    schedule: of a climb's step sizes, their mean the config's: linear and cosine fall to 0, rising is linear from 0.
    carry: what a scale takes from the one before it, resized: its perturbation beside the first step, instead of the
    first step, or with `follow` the perturbation of every step, without gradients of its own.
    """

    velocity: str = "normalised"
    schedule: str = "constant"
    carry: str = "none"

    def __post_init__(self) -> None:
        for name, known in (("velocity", VELOCITIES), ("schedule", SCHEDULES), ("carry", CARRIES)):
            check_option(name, getattr(self, name), getattr(self, name) in known, f"one of {', '.join(known)}")

    def factors(self, steps: int) -> list[float]:
        """What the step sizes of so many steps are multiplied by."""
        times = [(step + 0.5) / steps for step in range(steps)]
        shape = {
            "constant": lambda t: 1.0,
            "linear": lambda t: 2 - 2 * t,
            "cosine": lambda t: 1 + math.cos(math.pi * t),
            "rising": lambda t: 2 * t,
        }[self.schedule]
        return [shape(t) for t in times]

    def work(self, steps: int, first: bool) -> float:
        """In steps: the passes for so many maps; without a gradient a pass is half a step. first: of the scales."""
        if self.carry == "follow" and not first:
            return steps / 2
        return steps - 0.5 - (0.5 if self.carry == "instead" and not first and steps > 1 else 0)


def climb_of(text: str) -> tuple[ClimbConfig, Way]:
    """ "PRESET;KEY=VALUE;...", of a ClimbConfig's keys and a Way's."""
    name, *settings = text.split(";")
    own = [setting for setting in settings if setting.partition("=")[0] in Way.__dataclass_fields__]
    way = Way(**changes_of(Way(), own, lambda _, value: value))
    return ClimbConfig.preset(name).with_settings([s for s in settings if s not in own]), way


@dataclass
class Trail:
    """What a label's climb at one scale has passed."""

    maps: list[Tensor] = dataclasses.field(default_factory=list)  # [1, h, w]
    off: list[Tensor] = dataclasses.field(default_factory=list)  # [members, 3, H, W] from the clean image
    velocity: Tensor | None = None
    steps: int = 0


class Recorder(Climber):
    """A climber that keeps the pair map of every step, and may go another way. One view and one pair at a time."""

    def __init__(self, model: af.CamModel, config: ClimbConfig, way: Way | None = None) -> None:
        self.way, self.given = way or Way(), config
        self.own = config if self.way.velocity == "normalised" else dataclasses.replace(config, momentum=0.0)
        super().__init__(model, self.own)
        self.trails: list[Trail] = []  # of the labels, in order
        self.before: list[Trail] = []  # at the scale before
        self.trail = Trail()  # of the label whose turn it is
        self.clean = self.image = torch.empty(0)  # [members, 3, H, W]; the latter is looked at

    def sums(self, image: Tensor, labels: list[int]) -> dict[float, Tensor]:
        """uint8 [3, H, W] -> at every scale the maps' sums after 1, 2, ... steps: [steps, labels, h, w]."""
        height, width = int(image.shape[1]), int(image.shape[2])
        self.before, found = [], {}
        for scale in self.given.scales:
            self.trails, self.turns = [], iter(range(len(labels)))
            view = resize_image(image, self.given.factor(scale, height, width))[None]
            self.climb(view, torch.tensor([labels]), self.given.steps_for(scale), 1)
            found[scale] = torch.stack([torch.cat(trail.maps) for trail in self.trails], 1).cumsum(0)
            self.before = self.trails
        return found

    def _network_input(self, image: Tensor) -> Tensor:
        self.image = image
        return super()._network_input(image)

    def _loss(self, logits: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        if initial is None:  # step 0, where the labels come one after the other
            self.trail, self.clean = Trail(), self.image
            self.trails.append(self.trail)
        loss = super()._loss(logits, head, initial)
        self.trail.maps.append(loss.pair_map)
        if self.way.carry != "none":
            self.trail.off.append((self.image - self.clean).detach())
        return loss

    def _image_gradient(self, forward: Tensor, seen: Tensor, look: ops.ClimbLoss, head: Head, again: bool) -> Tensor:
        """What is stepped along; the step's size goes into the config that is read after this."""
        g = super()._image_gradient(forward, seen, look, head, again)
        way, trail = self.way, self.trail
        along = g if way.velocity == "normalised" else self._velocity(g)
        factor = way.factors(self.steps - 1)[trail.steps]
        reach = float(along.abs().max()) if way.velocity == "heavy" else 1.0
        self.config = dataclasses.replace(self.own, step_size=self.own.step_size * factor * reach)
        trail.steps += 1
        return along

    def _step_zero(
        self, image: Tensor, labels: Tensor, steps: int, canvas: Canvas | None
    ) -> tuple[Tensor, Tensor, Start, Tensor]:
        self.steps = steps
        maps, initial, starts, slopes = super()._step_zero(image, labels, steps, canvas)
        if self.before and self.way.carry in ("add", "instead") and steps > 1:
            own = starts.image if self.way.carry == "add" else image.expand_as(starts.image)
            moved = [self._carried(start, trail.off[-1]) for start, trail in zip(own, self.before, strict=True)]
            starts = starts._replace(image=torch.stack(moved))
        return maps, initial, starts, slopes

    def _ascend(
        self, start: Start, clean: Tensor, initial: Tensor, head: Any, steps: int, canvas: Canvas | None
    ) -> tuple[Tensor, Tensor]:
        turn = next(self.turns)
        self.trail = self.trails[turn]
        if not (self.before and self.way.carry == "follow"):
            return super()._ascend(start, clean, initial, head, steps, canvas)
        for off in self.before[turn].off[1:steps]:
            seen = self._network_input(self._carried(self.clean, off))
            self._look(self._forward(seen, False, canvas), head, clean)
        return initial, initial.new_empty(len(initial), steps - 2)

    def _velocity(self, g: Tensor) -> Tensor:
        momentum, heavy, before = self.given.momentum, self.way.velocity == "heavy", self.trail.velocity
        g = g / (g.abs().max() if heavy else g.abs().sum()).clamp(min=torch.finfo(g.dtype).tiny)
        self.trail.velocity = g if before is None else momentum * before + g
        return self.trail.velocity if heavy else g + momentum * self.trail.velocity

    @torch.no_grad()
    def _carried(self, images: Tensor, off: Tensor) -> Tensor:
        """Images [members, 3, H, W] with another scale's perturbation, in the clean image's range."""
        resized = torch.nn.functional.interpolate(off, images.shape[-2:], mode="bilinear")
        return (images + resized).clamp(self.clean.min(), self.clean.max())
