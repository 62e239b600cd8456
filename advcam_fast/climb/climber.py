"""The climb of a batch of same-sized views: step 0 once for all labels of a view, then every pair on its own path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.climb.config import DTYPES, ClimbConfig
from advcam_fast.models import CamModel, Classifier, FrozenFeatures, freeze


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


class Executor(Protocol):
    """What runs the network."""

    @property
    def executor(self) -> str: ...  # in words, for the log


class Look(Protocol):
    """What a step finds in the pairs' present images."""

    @property
    def pair_map(self) -> Tensor: ...  # [P, h, w], acc: R


Model = TypeVar("Model", bound=Classifier)


class Ascent(Generic[Model]):
    """The loop of a climb, whatever a CAM and its objective are: how to look at images is said by what is derived.

    These climb with one frozen model and one config. Source: Lee et al., CVPR 2021, eq. 3-7.
    """

    features: Executor

    def __init__(self, model: Model, config: ClimbConfig) -> None:
        self.model = model
        self.config = config
        self.members = 2 if config.flip else 1
        self.network_dtype, self.gradient_dtype = DTYPES[config.dtype]
        self.acc = torch.float64 if config.dtype == "fp64" else torch.float32

    def climb(self, views: Tensor, labels: Tensor, steps: int, max_pairs: int) -> Climbed:
        """Climbs every label of every view, at most `max_pairs` pairs at once.

        views: uint8 [V, 3, H, W]. labels: int64 [V, L] class indices, on the model's device. The result does not
        depend on max_pairs beyond what the convolutions of the backend make of another batch size.
        """
        image = self.model.normalise(views, self.acc)
        if self.config.flip:
            image = torch.stack([image, image.flip(-1)], 1).flatten(0, 1)  # [V * members, 3, H, W]
            image = image.contiguous(memory_format=torch.channels_last)
        clean, initial, starts, first_slope = self._step_zero(image, labels, steps)
        if steps == 1:
            return Climbed(initial.clone(), initial, first_slope)
        own, present = labels.flatten(), labels.repeat_interleave(labels.shape[1], 0)  # [P], [P, L]
        clean, flat = clean.flatten(0, 1), initial.flatten(0, 1)
        total, steepest = [], []
        for at in range(0, len(own), max_pairs):
            of = slice(at, at + max_pairs)
            summed, slopes = self._ascend(starts[of], clean[of], flat[of], self._head(own[of], present[of]), steps)
            total.append(summed)
            steepest.append(slopes)
        slopes = torch.cat([first_slope, torch.cat(steepest).view(*labels.shape, steps - 2)], 2)
        return Climbed(torch.cat(total).view(initial.shape), initial, slopes)

    def _step_zero(self, image: Tensor, labels: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One forward pass for all labels, then one backward pass and one step a label.

        Returns R0 [V, L, h, w], the clean maps that are accumulated (R0 itself unless the model says otherwise), the
        images after the step [V * L, members, 3, H, W] and max|g| [V, L, 1]; of the last two nothing when there are no
        steps to come.
        """
        seen = self._network_input(image)
        seen.requires_grad_(steps > 1)
        forward = self._forward(seen, steps > 1)
        clean, gathered, starts, slopes = [], [], [], []
        for label in range(labels.shape[1]):
            head = self._head(labels[:, label], labels)
            look = self._look(forward, head, None)
            clean.append(look.pair_map)
            gathered.append(self._gathered(look))
            if steps == 1:
                continue
            g = self._image_gradient(forward, seen, look, head, label + 1 < labels.shape[1])
            start = image.detach().clone(memory_format=torch.channels_last)
            slopes.append(ops.climb_step(start, g, self.config.step_size, self.members))
            starts.append(start.unflatten(0, (-1, self.members)))
        maps, initial = torch.stack(clean, 1), torch.stack(gathered, 1)
        if steps == 1:
            return maps, initial, image, maps.new_empty(*labels.shape, 0)
        return maps, initial, torch.stack(starts, 1).flatten(0, 1), torch.stack(slopes, 1)[..., None]

    def _ascend(self, start: Tensor, clean: Tensor, initial: Tensor, head: Any, steps: int) -> tuple[Tensor, Tensor]:
        """Maps 1 to steps - 1 of some pairs, added to the initial ones; the last map needs no backward pass."""
        image = start.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self._network_input(image)
        total = initial.clone()
        steepest = []
        for step in range(1, steps):
            last = step == steps - 1
            seen.requires_grad_(not last)
            forward = self._forward(seen, not last)
            look = self._look(forward, head, clean)
            ops.cam_accumulate([self._gathered(look)], total)
            if last:
                break
            g = self._image_gradient(forward, seen, look, head, False)
            image, seen = image.detach(), seen.detach()  # one memory where the network runs in the image's dtype
            rounded = seen if self.network_dtype != self.acc else None
            steepest.append(ops.climb_step(image, g, self.config.step_size, self.members, rounded))
        return total, torch.stack(steepest, 1) if steepest else initial.new_empty(len(initial), 0)

    def _head(self, own: Tensor, present: Tensor) -> Any:
        """What the objective of pairs of the classes `own` [P] is made of; present: [P, L] all labels of each image."""
        raise NotImplementedError

    def _forward(self, seen: Tensor, gradient: bool) -> Any:
        """One pass through the network; gradient: one with respect to `seen` is to follow."""
        raise NotImplementedError

    def _look(self, forward: Any, head: Any, initial: Tensor | None) -> Look:
        """The pairs' maps, and what their gradient needs. initial: R0 [P, h, w], None at step 0."""
        raise NotImplementedError

    def _image_gradient(self, forward: Any, seen: Tensor, look: Any, head: Any, again: bool) -> Tensor:
        """dJ/dx, like `seen`; again: the same pass will be asked for another class's."""
        raise NotImplementedError

    def _gathered(self, look: Any) -> Tensor:
        """The maps [P, h, w] that are summed."""
        maps: Tensor = look.pair_map
        return maps

    def _network_input(self, image: Tensor) -> Tensor:
        """The image itself, or its copy in the dtype of the network: bf16 alone would swallow small steps."""
        return image if image.dtype == self.network_dtype else image.to(self.network_dtype)


class Climber(Ascent[CamModel]):
    """Climbs views with a linear head: CAM, objective and its gradient in closed form."""

    features: FrozenFeatures

    def __init__(self, model: CamModel, config: ClimbConfig) -> None:
        super().__init__(model, config)
        self.features = freeze(model.features, self.network_dtype, self.gradient_dtype)
        self.positive = model.positive_counts.clamp(min=1).to(self.acc)  # a row without any: R stays finite

    def _forward(self, seen: Tensor, gradient: bool) -> Tensor:
        with torch.set_grad_enabled(gradient):
            return self.features(seen)

    def _look(self, forward: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        return self._loss(self._logits(forward.detach(), head), head, initial)

    def _image_gradient(self, forward: Tensor, seen: Tensor, look: ops.ClimbLoss, head: Head, again: bool) -> Tensor:
        own = self._feature_gradient(look.gradient, head, forward.dtype)
        return torch.autograd.grad(forward, seen, own, retain_graph=again)[0]

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
