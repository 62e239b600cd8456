"""A classifier on whole images: its logits, and a linear probe of its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast.models import TrainableClassifier
from advcam_fast.models.affinity_net import normalised
from advcam_fast.train.batches import loader
from advcam_fast.train.classifier_config import ClassifierConfig
from advcam_fast.train.classifier_views import TaggedImages, Views, by_shape
from advcam_fast.train.team import ALONE, Team

_AT_ONCE = 16
_PROBED = 20_000  # images whose features are held at once; a probe needs no more
_PROBE_DECAY = 1e-3


@dataclass(frozen=True)
class Judged:
    """values [N, .] and classes, 0 and 1 [N, C], of the images that could be read; why others could not, by index."""

    indices: list[int]
    values: Tensor
    classes: Tensor
    problems: dict[int, str]


def class_logits(
    net: TrainableClassifier, data: TaggedImages, num_classes: int, config: ClassifierConfig, team: Team = ALONE
) -> Judged:
    """The logits of whole images, each at the configuration's test_side, in the order of the data, float32 on the CPU.

    An image's logits do not depend on those beside it, but for what a batch of equal sizes rounds.
    """
    return _judged(net, net, data, range(len(data)), num_classes, config, team)


def fit_probe(
    net: TrainableClassifier,
    data: TaggedImages,
    losses: Callable[[Tensor, Tensor], Tensor],
    num_classes: int,
    config: ClassifierConfig,
    team: Team = ALONE,
) -> None:
    """Sets the head, now at 0, to the best one on the averaged features as they are: by LBFGS, weights decaying.

    losses: of logits [B, C] and classes [B, C], [B]. Of many images every so-manieth is looked at.
    """
    chosen = range(0, len(data), -(-len(data) // _PROBED))
    found = _judged(net, lambda images: net.features(images).mean((2, 3)), data, chosen, num_classes, config, team)
    if not found.indices:
        return  # the training says that there is nothing to learn from
    weight = torch.zeros(num_classes, found.values.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=net.head.bias is not None)
    optimizer = torch.optim.LBFGS(
        [tensor for tensor in (weight, bias) if tensor.requires_grad], max_iter=200, line_search_fn="strong_wolfe"
    )

    def total() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(found.values, weight, bias)
        loss = losses(logits, found.classes).mean() + _PROBE_DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(total)
    best = team.gather((weight.detach(), bias.detach()))[0]
    with torch.no_grad():
        net.head.weight.copy_(best[0].view_as(net.head.weight))  # type: ignore[operator, arg-type]
        if net.head.bias is not None:
            net.head.bias.copy_(best[1])  # type: ignore[operator]


@torch.no_grad()
def _judged(
    net: TrainableClassifier,
    function: Callable[[Tensor], Tensor],
    data: TaggedImages,
    chosen: Sequence[int],
    num_classes: int,
    config: ClassifierConfig,
    team: Team,
) -> Judged:
    """What a function of normalised images gives for each of the chosen ones; the processes share the work."""
    device = next(net.parameters()).device
    own = [(None, index) for index in chosen[team.rank :: team.processes]]
    places = [own[start : start + _AT_ONCE] for start in range(0, len(own), _AT_ONCE)]
    net.eval()
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    problems: dict[int, str] = {}
    views = Views(data, normaliser(net), num_classes, config)
    for groups in loader(views, places, config.workers, device, by_shape):
        for batch in groups:
            problems |= batch.problems
            with autocast(device, config):
                values = function(batch.images.to(device, non_blocking=True)).float().cpu()
            rows |= dict(zip(batch.indices, zip(values, batch.classes, strict=True), strict=True))
    for found_rows, found_problems in team.gather((rows, problems)):
        rows |= found_rows
        problems |= found_problems
    right = sorted(index for index in rows if index not in problems)
    values, classes = (torch.stack([rows[index][part] for index in right or rows]) for part in (0, 1))
    return Judged(right, values[: len(right)], classes[: len(right)], problems)


def autocast(device: torch.device, config: ClassifierConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.autocast == "bf16")


def normaliser(net: TrainableClassifier) -> Callable[[Tensor], Tensor]:
    dtype = next(net.parameters()).dtype
    return partial(normalised, mean=net.recipe.mean, std=net.recipe.std, dtype=dtype)
