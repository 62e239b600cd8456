"""The climb of a batch of same-sized views: step 0 once for all labels of a view, then every pair on its own path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.climb.config import DTYPES, ClimbConfig
from advcam_fast.models import CamModel, FrozenFeatures, freeze


@dataclass(frozen=True)
class Climbed:
    """What a climb leaves for each of V views and L labels."""

    total: Tensor  # [V, L, h, w], acc: sum of the pair maps over the steps
    initial: Tensor  # [V, L, h, w], acc: the pair map of the clean view
    steepest: Tensor  # [V, L, steps - 1], acc: max|g| of every step


class Head(NamedTuple):
    """Which logits the objective of some pairs is made of."""

    rows: Tensor | None  # [P, C] head rows of each pair; None: the whole head for all
    target: Tensor  # [P] own class's column
    weight: Tensor  # [P, C] 1 for the own class, -1 or 0 for others
    positive: Tensor  # [P] K+ of the own class


class Climber:
    """Climbs views with one frozen model and one config. Source: Lee et al., CVPR 2021, eq. 3-7."""

    def __init__(self, model: CamModel, config: ClimbConfig) -> None:
        self.model = model
        self.config = config
        self.members = 2 if config.flip else 1
        self.network_dtype, gradient_dtype = DTYPES[config.dtype]
        self.acc = torch.float64 if config.dtype == "fp64" else torch.float32
        self.features: FrozenFeatures = freeze(model.features, self.network_dtype, gradient_dtype)
        self.positive = model.positive_counts.clamp(min=1).to(self.acc)  # a row without any: R stays finite

    def climb(self, views: Tensor, labels: Tensor, steps: int, max_pairs: int) -> Climbed:
        """Climbs every label of every view, at most `max_pairs` pairs at once.

        views: uint8 [V, 3, H, W]. labels: int64 [V, L] class indices, on the model's device. The result does not
        depend on max_pairs beyond what the convolutions of the backend make of another batch size.
        """
        image = self.model.normalise(views, self.acc)
        if self.config.flip:
            image = torch.stack([image, image.flip(-1)], 1).flatten(0, 1)  # [V * members, 3, H, W]
            image = image.contiguous(memory_format=torch.channels_last)
        initial, starts, first_slope = self._step_zero(image, labels, steps)
        if steps == 1:
            return Climbed(initial.clone(), initial, first_slope)
        own, present = labels.flatten(), labels.repeat_interleave(labels.shape[1], 0)  # [P], [P, L]
        flat = initial.flatten(0, 1)
        total, steepest = [], []
        for at in range(0, len(own), max_pairs):
            of = slice(at, at + max_pairs)
            summed, slopes = self._ascend(starts[of], flat[of], self._head(own[of], present[of]), steps)
            total.append(summed)
            steepest.append(slopes)
        slopes = torch.cat([first_slope, torch.cat(steepest).view(*labels.shape, steps - 2)], 2)
        return Climbed(torch.cat(total).view(initial.shape), initial, slopes)

    def _step_zero(self, image: Tensor, labels: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """One forward pass for all labels, then one backward pass and one step a label.

        Returns the clean pair maps [V, L, h, w], the images after the step [V * L, members, 3, H, W] and max|g|
        [V, L, 1]; of the last two nothing when there are no steps to come.
        """
        seen = self._network_input(image)
        seen.requires_grad_(steps > 1)
        with torch.set_grad_enabled(steps > 1):
            features = self.features(seen)
        clean, starts, slopes = [], [], []
        for label in range(labels.shape[1]):
            head = self._head(labels[:, label], labels)
            loss = self._loss(self._logits(features.detach(), head), head, None)
            clean.append(loss.pair_map)
            if steps == 1:
                continue
            own = self._feature_gradient(loss.gradient, head, features.dtype)
            (g,) = torch.autograd.grad(features, seen, own, retain_graph=label + 1 < labels.shape[1])
            start = image.detach().clone(memory_format=torch.channels_last)
            slopes.append(ops.climb_step(start, g, self.config.step_size, self.members))
            starts.append(start.unflatten(0, (-1, self.members)))
        maps = torch.stack(clean, 1)
        if steps == 1:
            return maps, image, maps.new_empty(*labels.shape, 0)
        return maps, torch.stack(starts, 1).flatten(0, 1), torch.stack(slopes, 1)[..., None]

    def _ascend(self, start: Tensor, initial: Tensor, head: Head, steps: int) -> tuple[Tensor, Tensor]:
        """Maps 1 to steps - 1 of some pairs; the last map needs no backward pass."""
        image = start.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self._network_input(image)
        total = initial.clone()
        steepest = []
        for step in range(1, steps):
            last = step == steps - 1
            seen.requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                features = self.features(seen)
            loss = self._loss(self._logits(features.detach(), head), head, initial)
            ops.cam_accumulate([loss.pair_map], total)
            if last:
                break
            own = self._feature_gradient(loss.gradient, head, features.dtype)
            (g,) = torch.autograd.grad(features, seen, own)
            image, seen = image.detach(), seen.detach()  # one memory where the network runs in the image's dtype
            rounded = seen if self.network_dtype != self.acc else None
            steepest.append(ops.climb_step(image, g, self.config.step_size, self.members, rounded))
        return total, torch.stack(steepest, 1) if steepest else initial.new_empty(len(initial), 0)

    def _network_input(self, image: Tensor) -> Tensor:
        """The image itself, or its copy in the dtype of the network: bf16 alone would swallow small steps."""
        return image if image.dtype == self.network_dtype else image.to(self.network_dtype)

    def _logits(self, features: Tensor, head: Head) -> Tensor:
        # The head is a thousandth of the work: it runs in acc, whatever the network runs in.
        return self.model.logit_map(features.to(self.acc), self._item_rows(head))

    def _feature_gradient(self, gradient: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
        return self.model.feature_gradient(gradient, self._item_rows(head)).to(dtype)

    def _item_rows(self, head: Head) -> Tensor | None:
        return None if head.rows is None else head.rows.repeat_interleave(self.members, 0)

    def _loss(self, logits: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        config = self.config
        return ops.climb_loss(
            logits,
            head.target,
            head.weight,
            head.positive,
            initial,
            config.suppression,
            config.mask_threshold,
            config.score == "relu_mean",
            self.members,
        )

    def _head(self, own: Tensor, present: Tensor) -> Head:
        """The logits that pairs of the classes `own` [P] need; fewer rows are less work, with the same sums.

        present: [P, L] all labels of each pair's image.
        """
        positive = self.positive[own]
        if self.config.other_classes == "all":
            weight = positive.new_full((len(own), self.model.num_classes), -1.0).scatter_(1, own[:, None], 1.0)
            return Head(None, own, weight, positive)
        rows = own[:, None]
        weight = positive.new_ones(len(own), 1)
        if self.config.other_classes == "present":
            rows = torch.cat([rows, present], 1)
            weight = torch.cat([weight, -(present != own[:, None]).to(self.acc)], 1)
        return Head(rows, torch.zeros_like(own), weight, positive)
