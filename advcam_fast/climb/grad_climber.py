"""The climb of any classifier: Grad-CAM by autograd where no closed form is known, in the same batched loop."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from advcam_fast.climb.canvas import Canvas
from advcam_fast.climb.climber import Ascent
from advcam_fast.climb.config import ClimbConfig
from advcam_fast.errors import UsageError
from advcam_fast.models.grad_cam_model import GradCamModel, LayerTap, Seen


class Target(NamedTuple):
    """What the objective of some pairs is made of."""

    own: Tensor  # [P] own class
    weight: Tensor  # [P, C], acc: 1 for the own class, -1 or 0 for others


class Forward(NamedTuple):
    """One pass through the network, with its graph."""

    seen: Seen
    images: Tensor  # [P * members, 3, H, W], its input


class GradLook(NamedTuple):
    """What a step finds in the pairs' present images."""

    pair_map: Tensor  # [P, h, w], acc: R
    gathered: Tensor  # [P, h', w'], acc: R, or the map that the model accumulates instead
    objective: Tensor  # [P], acc: J, with its graph


class GradClimber(Ascent[GradCamModel]):
    """Climbs views of a GradCamModel: two backward passes over the same forward pass.

    The first, through what follows the layer, gives the channel weights of R (see GradCamModel), constants from there
    on; the second, through all of it, dJ/dx of J = sum_n sum_k weight_k y_k,n - suppression * sum_p M |R - R0|.
    Both are gradients of sums over the pairs, which in eval mode do not meet.
    Raises UsageError for dtype "mixed". Source: Lee et al., CVPR 2021, eq. 6 and 7.
    """

    features: LayerTap

    def __init__(self, model: GradCamModel, config: ClimbConfig) -> None:
        super().__init__(model, config)
        if config.dtype == "mixed":
            raise UsageError(f"dtype mixed is not to be had with {model.features.executor}; use fp32 or bf16")
        network = copy.deepcopy(model.features).to(self.network_dtype)
        self.features = network.to(memory_format=torch.channels_last)

    def _head(self, own: Tensor, present: Tensor, canvas: Canvas | None) -> Target:
        weight = torch.zeros(len(own), self.model.num_classes, dtype=self.acc, device=own.device)
        if self.config.other_classes == "all":
            weight.fill_(-1.0)
        elif self.config.other_classes == "present":
            weight.scatter_(1, present, -1.0)
        return Target(own, weight.scatter_(1, own[:, None], 1.0))

    def _forward(self, seen: Tensor, gradient: bool, canvas: Canvas | None) -> Forward:
        with torch.enable_grad():  # for the last map too: its channel weights are a gradient
            return Forward(self.features(seen), seen)

    def _look(self, forward: Forward, head: Target, initial: Tensor | None) -> GradLook:
        _, logits, maps = forward.seen
        own = head.own.repeat_interleave(self.members)
        with torch.enable_grad():
            pair_map = self._pair_map(forward, own)
            summed = self._by_pair(logits.to(self.acc)).sum(1)  # [P, C]
            objective = (head.weight * summed).sum(1)
            if initial is not None:
                clean = pair_map.detach()
                mask = clean > self.config.mask_threshold * clean.amax((1, 2), keepdim=True)
                change = (mask * (pair_map - initial).abs()).sum((1, 2))
                objective = objective - self.config.suppression * change
        found = pair_map.detach()
        if maps is None:
            return GradLook(found, found, objective)
        chosen = maps[torch.arange(len(own), device=own.device), own]
        return GradLook(found, self._added(chosen.to(self.acc).relu()), objective)

    def _image_gradient(self, forward: Forward, seen: Tensor, look: GradLook, head: Target, again: bool) -> Tensor:
        return torch.autograd.grad(look.objective.sum(), seen, retain_graph=again)[0]

    def _gathered(self, look: GradLook) -> Tensor:
        return look.gathered

    def _pair_map(self, forward: Forward, own: Tensor) -> Tensor:
        """R [P, h, w] with its graph; own: [P * members] each image's class."""
        (raw, logits, _), images = forward
        slope = None
        if logits.requires_grad:
            score = logits.gather(1, own[:, None]).sum()
            (slope,) = torch.autograd.grad(score, raw, retain_graph=True, allow_unused=True)
        if slope is None:
            raise UsageError(f"target layer {self.features.layer!r}: the logits do not depend on its output")
        slope = self._by_pair(self.features.as_map(slope, images).to(self.acc))  # [P, members, K, h, w]
        activation = self._by_pair(self.features.as_map(raw, images).to(self.acc))
        positions = slope.shape[3] * slope.shape[4]
        positive = (slope > 0).flatten(1).sum(1).clamp(min=1)  # of the whole pair
        channel = positions * slope.sum((3, 4)) / positive[:, None, None]
        cam = torch.einsum("pmk,pmkhw->pmhw", channel, activation).relu()
        return self._added(cam.flatten(0, 1))

    def _added(self, maps: Tensor) -> Tensor:
        """[P * members, h, w] -> [P, h, w]: the mirror image's turned back and added."""
        pair = self._by_pair(maps)
        return pair[:, 0] + pair[:, 1].flip(-1) if self.members == 2 else pair[:, 0]
