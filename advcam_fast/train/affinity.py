"""Trains the heads of an AffinityNet on the sure labels of images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from advcam_fast.errors import UsageError
from advcam_fast.models.affinity_net import AffinityNet, normalised
from advcam_fast.options import changes_of, parsed_like
from advcam_fast.train.affinity_loss import AffinityLosses, affinity_loss
from advcam_fast.train.batches import Batches, loader
from advcam_fast.train.crops import Crops
from advcam_fast.train.cutting import LabelledImages
from advcam_fast.train.training import Training, TrainingStep, fingerprint, poly
from advcam_fast.train.training_folder import TrainingFolder


@dataclass(frozen=True)
class AffinityConfig:
    """How an affinity net is trained; the rates fall as rate (1 - step / steps)^power.

    crop: side in pixels. batch: in images. radius: of the pairs, in pixels of the maps. scales: images are drawn at
    sizes between these. save_every: steps from checkpoint to checkpoint. workers: processes that read images.
    With momentum 0.9 both rates move weights as IRN's displacement head's do: its code gives weight_decay as momentum,
    so that it has none, and a rate of 0.1 for the boundary and 1.0 for the displacement.
    Raises UsageError for a number out of its range.
    """

    crop: int = 512
    batch: int = 32
    epochs: int = 3
    boundary_rate: float = 0.1
    displacement_rate: float = 0.1
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scales: tuple[float, float] = (0.5, 1.5)
    mirror: bool = True
    radius: int = 10
    seed: int = 0
    workers: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        least = dict(crop=4, batch=1, epochs=1, seed=0, workers=0, save_every=1, power=0, weight_decay=0)
        for name, limit in least.items():
            value = getattr(self, name)
            if not limit <= value < math.inf:
                raise UsageError(f"{name} is {value}; wanted {limit} or more")
        for name in ("boundary_rate", "displacement_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; wanted above 0")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}; wanted 0 to below 1")
        if not 2 <= self.radius <= 64:
            raise UsageError(f"radius is {self.radius}; wanted 2 to 64")
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise UsageError(f"scales are {self.scales}; wanted two numbers above 0, the smaller one first")

    def with_settings(self, settings: Iterable[str]) -> AffinityConfig:
        """Changed by texts such as "epochs=5", "scales=0.8,1.2" (as `train-affinity --set`)."""
        defaults = asdict(AffinityConfig())
        return replace(self, **changes_of(self, settings, lambda key, text: parsed_like(defaults[key], text)))


def train_affinity(
    net: AffinityNet,
    data: LabelledImages,
    folder: str | Path,
    config: AffinityConfig | None = None,
    resume: bool = False,
    report: Callable[[TrainingStep], None] = lambda _: None,
) -> Path:
    """Trains the heads of a net in place, on its device, and returns the file of its weights.

    SGD on affinity_loss of random crops, stages frozen; then the displacement that all images have in common is
    measured over crops at their top left and goes into the net's running mean.

    data: data[i] is (uint8 [3, H, W], labels uint8 [H, W]): affinity_labels makes them. folder: gets log.jsonl (a line
    a step: losses, rates, images a second), checkpoint.pt and weights.safetensors, each file whole or not there; those
    of new_affinity_net's stages are what load_affinity_net reads, others go into a net of the same stages.
    resume: goes on from the folder's checkpoint, heads and all, on a CPU to the bits of a run that was never stopped
    (at an equal number of threads; on a GPU some of PyTorch's gradients add in no fixed order). Without a checkpoint it
    begins anew, and a run that is done gives its weights at once. The stages must be those that the run began with.
    report: is told after every step.
    Raises UsageError for data, a folder or settings that do not fit, StoppedError when the loss is no number.
    Source: Ahn et al., CVPR 2019 (IRN).
    """
    config = config or AffinityConfig()
    if len(data) == 0:
        raise UsageError("data: 0 images came; wanted 1 or more")
    path = _Training(net, data, TrainingFolder(folder, resume), config, report).train()
    net.eval()
    return path


@torch.no_grad()
def mean_displacement(net: AffinityNet, data: LabelledImages, config: AffinityConfig) -> Tensor:  # [2]
    """The mean displacement of all images, each one crop at its top left, without any running mean taken off."""
    crops = Crops(data, _normaliser(net), config.crop)
    places: list[list[tuple[None, int]]] = [
        [(None, index) for index in range(start, min(start + config.batch, len(data)))]
        for start in range(0, len(data), config.batch)
    ]
    device = next(net.parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    net.train()  # a net in training gives the displacement as it is
    for images, _ in loader(crops, places, config.workers, device, default_collate):
        total += net(images.to(device, non_blocking=True))[1].double().mean((2, 3)).sum(0)
    return total / len(data)


class _Training(Training):
    """The heads of a net and the displacement that all images have in common."""

    LOSS = "total"

    def __init__(
        self,
        net: AffinityNet,
        data: LabelledImages,
        files: TrainingFolder,
        config: AffinityConfig,
        report: Callable[[TrainingStep], None],
    ) -> None:
        self.net, self.data, self.config = net, data, config
        self.device = next(net.parameters()).device
        groups = [
            {"params": net.boundary_parameters(), "lr": config.boundary_rate},
            {"params": net.displacement_parameters(), "lr": config.displacement_rate},
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
        # what changes no bit of the result may change between a run and its resumption
        free = ("workers", "save_every")
        chosen = {key: value for key, value in asdict(config).items() if key not in free}
        chosen["scales"] = list(config.scales)
        stages = fingerprint({key: value for key, value in net.state_dict().items() if key.startswith("stage")})
        settings = {**chosen, "images": len(data), "stages": stages}
        batches = Batches(len(data), config.batch, config.epochs, config.seed)
        super().__init__(files, batches, settings, config.save_every, report)

    def load(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        crops = Crops(self.data, _normaliser(self.net), config.crop, config.scales, config.mirror, config.seed)
        self.net.train()
        return loader(crops, batches, config.workers, self.device, default_collate)

    def state(self) -> dict[str, Any]:
        return {"heads": {key: value for key, value in self.net.state_dict().items() if not key.startswith("stage")}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["heads"], strict=False)  # the stages are the caller's, known by fingerprint

    def learn(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        share = poly(self.step, self.steps, self.config.power)
        rates = [self.config.boundary_rate * share, self.config.displacement_rate * share]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        logits, displacement = self.net(images)
        losses = affinity_loss(logits.sigmoid(), displacement, labels, self.config.radius)
        numbers = torch.stack(losses).tolist()
        self.check(sum(numbers), rates[1])
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        named = dict(zip(AffinityLosses._fields, numbers, strict=True))
        return {**named, "boundary_rate": rates[0], "displacement_rate": rates[1]}

    def finish(self) -> None:
        self.net.mean_shift.running_mean.copy_(mean_displacement(self.net, self.data, self.config))
        self.save()
        self.files.write_line({"step": self.steps, "mean_shift": self.net.mean_shift.running_mean.tolist()})
        self.files.save_weights(
            self.net.state_dict(), {"settings": json.dumps(self.settings), "backbone": self.net.backbone}
        )


def _normaliser(net: AffinityNet) -> Callable[[Tensor], Tensor]:
    return partial(normalised, mean=net.mean, std=net.std, dtype=net.fc_edge6.weight.dtype)
