"""The climb of a batch of views: step 0 once for all labels of a view, then every pair on its own path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.climb.canvas import Canvas
from advcam_fast.climb.config import DTYPES, ClimbConfig
from advcam_fast.climb.replay import Replay
from advcam_fast.models import CamModel, Classifier, FrozenFeatures, freeze
from advcam_fast.models.ragged import Size


@dataclass(frozen=True)
class Climbed:
    """What a climb leaves for each of V views and L labels."""

    total: Tensor  # [V, L, h, w], acc: sum of the pair maps over the steps
    initial: Tensor  # [V, L, h, w], acc: the pair map of the clean view
    steepest: Tensor  # [V, L, steps - 1], acc: max|g| of every step
    sizes: tuple[Size, ...] | None = None  # of each view's maps where they differ; around them, to h and w, are zeros

    def of(self, view: int) -> Climbed:
        """What is left for one view: tensors without V."""
        height, width = self.sizes[view] if self.sizes else self.total.shape[2:]
        return Climbed(
            self.total[view, :, :height, :width], self.initial[view, :, :height, :width], self.steepest[view]
        )


class Head(NamedTuple):
    """Which logits the objective of some pairs is made of."""

    rows: Tensor | None  # [P, C] head rows of each pair; None: the whole head for all
    target: Tensor  # [P] own class's column
    weight: Tensor  # [P, C] 1 for the own class, -1 or 0 for others
    positive: Tensor  # [P] K+ of the own class
    canvas: Canvas | None  # how the pairs lie, if they are of different sizes


class Start(NamedTuple):
    """Where pairs are after their first step."""

    image: Tensor  # [P, members, 3, H, W]
    velocity: Tensor | None  # like image; None: without momentum

    def of(self, pairs: slice) -> Start:
        return Start(self.image[pairs], None if self.velocity is None else self.velocity[pairs])


class Executor(Protocol):
    """What runs the network."""

    @property
    def executor(self) -> str: ...  # in words, for the log
    @property
    def ragged(self) -> bool: ...  # whether it takes images of different sizes at once
    @property
    def bytes_per_pixel(self) -> float | None: ...  # of memory, by pixel of the input, where it is known


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
        self.replay = Replay(model.reference.device)

    def climb(self, views: Tensor | Sequence[Tensor], labels: Tensor, steps: int, max_pairs: int) -> Climbed:
        """Climbs every label of every view, at most `max_pairs` pairs at once.

        views: V of uint8 [3, H, W], of one size unless the executor is ragged; or floats [V, 3, H, W] that are
        normalised already. labels: int64 [V, L] class indices, on
        the model's device. The result does not depend on max_pairs beyond what the convolutions of the backend make of
        another batch size. Raises Unplaceable where views of different sizes do not fit together.
        """
        image, canvas = self._image(views)
        clean, initial, starts, first_slope = self._step_zero(image, labels, steps, canvas)
        sizes = None if canvas is None else canvas.map_sizes
        if steps == 1:
            return Climbed(initial.clone(), initial, first_slope, sizes)
        own, present = labels.flatten(), labels.repeat_interleave(labels.shape[1], 0)  # [P], [P, L]
        clean, flat = clean.flatten(0, 1), initial.flatten(0, 1)
        total, steepest = [], []
        for at in range(0, len(own), max_pairs):
            of = slice(at, at + max_pairs)
            part = canvas and canvas.of([pair // labels.shape[1] for pair in range(len(own))[of]])
            head = self._head(own[of], present[of], part)
            summed, slopes = self._ascend(starts.of(of), clean[of], flat[of], head, steps, part)
            total.append(summed)
            steepest.append(slopes)
        slopes = torch.cat([first_slope, torch.cat(steepest).view(*labels.shape, steps - 2)], 2)
        return Climbed(torch.cat(total).view(initial.shape), initial, slopes, sizes)

    def _image(self, views: Tensor | Sequence[Tensor]) -> tuple[Tensor, Canvas | None]:
        """Every view and its mirror image, normalised: [V * members, 3, H, W]; and how they lie there, if not alike."""
        sizes = [(view.shape[1], view.shape[2]) for view in views]
        if len(set(sizes)) == 1:
            same = views if isinstance(views, Tensor) else torch.stack(list(views))
            image = same.to(self.acc) if same.is_floating_point() else self.model.normalise(same, self.acc)
            if self.config.flip:
                image = torch.stack([image, image.flip(-1)], 1).flatten(0, 1)
            return image.contiguous(memory_format=torch.channels_last), None
        normalised = [self.model.normalise(view[None], self.acc)[0] for view in views]
        canvas = Canvas(self.features, sizes, self.members, normalised[0].device)  # type: ignore[arg-type]
        return canvas.image(normalised), canvas

    def _step_zero(
        self, image: Tensor, labels: Tensor, steps: int, canvas: Canvas | None
    ) -> tuple[Tensor, Tensor, Start, Tensor]:
        """One forward pass for all labels, then one backward pass and one step a label.

        Returns R0 [V, L, h, w], the clean maps that are accumulated (R0 itself unless the model says otherwise), the
        V * L pairs after the step and max|g| [V, L, 1]; of the last two nothing when there are no steps to come.
        """
        seen = self._network_input(image)
        seen.requires_grad_(steps > 1)
        forward = self._forward(seen, steps > 1, canvas)
        clean, gathered, starts, velocities, slopes = [], [], [], [], []
        for label in range(labels.shape[1]):
            head = self._head(labels[:, label], labels, canvas)
            look = self._look(forward, head, None)
            clean.append(look.pair_map)
            gathered.append(self._gathered(look))
            if steps == 1:
                continue
            g = self._image_gradient(forward, seen, look, head, label + 1 < labels.shape[1])
            start = image.detach().clone(memory_format=torch.channels_last)
            velocity = torch.zeros_like(start) if self.config.momentum else None
            slopes.append(self._step(start, g, velocity))
            starts.append(self._by_pair(start))
            if velocity is not None:
                velocities.append(self._by_pair(velocity))
        maps, initial = torch.stack(clean, 1), torch.stack(gathered, 1)
        if steps == 1:
            return maps, initial, Start(self._by_pair(image), None), maps.new_empty(*labels.shape, 0)
        velocity = torch.stack(velocities, 1).flatten(0, 1) if velocities else None
        stepped = Start(torch.stack(starts, 1).flatten(0, 1), velocity)
        return maps, initial, stepped, torch.stack(slopes, 1)[..., None]

    def _ascend(
        self, start: Start, clean: Tensor, initial: Tensor, head: Any, steps: int, canvas: Canvas | None
    ) -> tuple[Tensor, Tensor]:
        """Maps 1 to steps - 1 of some pairs, added to the initial ones; the last map needs no backward pass."""
        image = start.image.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        velocity = start.velocity
        if velocity is not None:  # laid out like the image, or every step would copy it
            velocity = velocity.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self._network_input(image)
        rounded = seen if self.network_dtype != self.acc else None  # else one memory with the image
        total = initial.clone()

        def look(gradient: bool) -> tuple[Any, Any]:
            seen.requires_grad_(gradient)
            forward = self._forward(seen, gradient, canvas)
            found = self._look(forward, head, clean)
            ops.cam_accumulate([self._gathered(found)], total)
            return forward, found

        def climb() -> Tensor:
            forward, found = look(True)
            g = self._image_gradient(forward, seen, found, head, False)
            seen.requires_grad_(False)
            return self._step(image, g, velocity, rounded)

        steepest = [climb()] if steps > 2 else []
        again = self.replay.recorded(climb, steps - 3)
        steepest += [again() for _ in range(steps - 3)]
        look(False)  # of the last image only the map is wanted
        return total, torch.stack(steepest, 1) if steepest else initial.new_empty(len(initial), 0)

    def _step(self, image: Tensor, g: Tensor, velocity: Tensor | None, rounded: Tensor | None = None) -> Tensor:
        """One step of the pairs along g, or along their velocity, which takes it up; max|g| [P]."""
        if velocity is None:
            return ops.climb_step(image, g, self.config.step_size, self.members, rounded)
        flat = self._flat(g)
        norm = torch.linalg.vector_norm(flat, 1, 1, keepdim=True, dtype=self.acc)
        self._flat(velocity).mul_(self.config.momentum).addcdiv_(flat, norm + 1e-12)
        ops.climb_step(image, velocity, self.config.step_size, self.members, rounded)
        return flat.abs().amax(1).to(self.acc)

    def _flat(self, items: Tensor) -> Tensor:
        """[P, all elements of a pair], a view of what is channels-last."""
        return (
            items.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(len(items) // self.members, -1)
        )

    def _by_pair(self, items: Tensor) -> Tensor:
        return items.unflatten(0, (-1, self.members))

    def _head(self, own: Tensor, present: Tensor, canvas: Canvas | None) -> Any:
        """What the objective of pairs of the classes `own` [P] is made of; present: [P, L] all labels of each image."""
        raise NotImplementedError

    def _forward(self, seen: Tensor, gradient: bool, canvas: Canvas | None) -> Any:
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
    """Climbs views with a linear head: CAM, objective and its gradient in closed form.

    ragged: views of different sizes are to come in one call; `features.ragged` says whether they may.
    """

    features: FrozenFeatures

    def __init__(self, model: CamModel, config: ClimbConfig, ragged: bool = False) -> None:
        super().__init__(model, config)
        self.features = freeze(model.features, self.network_dtype, self.gradient_dtype, ragged)
        self.positive = model.positive_counts.clamp(min=1).to(self.acc)  # a row without any: R stays finite

    def _forward(self, seen: Tensor, gradient: bool, canvas: Canvas | None) -> Tensor:
        with torch.set_grad_enabled(gradient):
            return self.features(seen, canvas and canvas.frame)

    def _look(self, forward: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        # The head is a thousandth of the work: it runs in acc, whatever the network runs in.
        logits = self.model.logit_map(forward.detach(), self._item_rows(head), self.acc)
        if head.canvas is not None:
            logits = head.canvas.aligned(logits)
        return self._loss(logits, head, initial)

    def _image_gradient(self, forward: Tensor, seen: Tensor, look: ops.ClimbLoss, head: Head, again: bool) -> Tensor:
        slope = look.gradient if head.canvas is None else head.canvas.returned(look.gradient)
        own = self.model.feature_gradient(slope, self._item_rows(head), forward.dtype)
        return torch.autograd.grad(forward, seen, own, retain_graph=again)[0]

    def _item_rows(self, head: Head) -> Tensor | None:
        return None if head.rows is None else head.rows.repeat_interleave(self.members, 0)

    def _loss(self, logits: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        config = self.config
        return ops.climb_loss(
            logits,
            head.target,
            head.weight if head.canvas is None else head.canvas.mean_weight(head.weight, logits),
            head.positive,
            initial,
            config.suppression,
            config.mask_threshold,
            config.score == "relu_mean",
            self.members,
        )

    def _head(self, own: Tensor, present: Tensor, canvas: Canvas | None) -> Head:
        """The logits that pairs of the classes `own` [P] need; fewer rows are less work, with the same sums.

        present: [P, L] all labels of each pair's image.
        """
        positive = self.positive[own]
        if self.config.other_classes == "all":
            weight = positive.new_full((len(own), self.model.num_classes), -1.0).scatter_(1, own[:, None], 1.0)
            return Head(None, own, weight, positive, canvas)
        rows = own[:, None]
        weight = positive.new_ones(len(own), 1)
        if self.config.other_classes == "present":
            rows = torch.cat([rows, present], 1)
            weight = torch.cat([weight, -(present != own[:, None]).to(self.acc)], 1)
        return Head(rows, torch.zeros_like(own), weight, positive, canvas)
