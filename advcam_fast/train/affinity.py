"""Trains the heads of an AffinityNet on the sure labels of images."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.models.affinity_net import AffinityNet, normalised
from advcam_fast.options import changes_of, parsed_like
from advcam_fast.train.affinity_crops import Batches, Crops, LabelledImages, stack
from advcam_fast.train.affinity_loss import AffinityLosses, affinity_loss
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


class TrainingStep(NamedTuple):
    """Told after every step: how far the training is, and its loss."""

    done: int
    total: int
    loss: float


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
    training = _Training(net, data, TrainingFolder(folder, resume), config, report)
    if not (resume and training.restore() and training.files.weights.exists()):
        training.run()
        training.finish()
    net.eval()
    return training.files.weights


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
    for images, _ in _loader(crops, places, config.workers, device):
        total += net(images.to(device, non_blocking=True))[1].double().mean((2, 3)).sum(0)
    return total / len(data)


class _Training:
    """The net, its optimizer and the step that comes next."""

    def __init__(
        self,
        net: AffinityNet,
        data: LabelledImages,
        files: TrainingFolder,
        config: AffinityConfig,
        report: Callable[[TrainingStep], None],
    ) -> None:
        self.net, self.data, self.files, self.config, self.report = net, data, files, config, report
        self.device = next(net.parameters()).device
        self.step, self.steps = 0, len(Batches(len(data), config.batch, config.epochs, config.seed))
        groups = [
            {"params": net.boundary_parameters(), "lr": config.boundary_rate},
            {"params": net.displacement_parameters(), "lr": config.displacement_rate},
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
        # what changes no bit of the result may change between a run and its resumption
        free = ("workers", "save_every")
        chosen = {key: value for key, value in asdict(config).items() if key not in free}
        chosen["scales"] = list(config.scales)
        self.settings: dict[str, Any] = {**chosen, "images": len(data), "stages": _fingerprint(net)}

    def restore(self) -> bool:
        state = self.files.read_checkpoint(self.settings)
        if state is None:
            return False
        self.net.load_state_dict(state["heads"], strict=False)  # the stages are the caller's, known by fingerprint
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"], self.device)
        return True

    def save(self) -> None:
        heads = {key: tensor for key, tensor in self.net.state_dict().items() if not key.startswith("stage")}
        state = dict(settings=self.settings, step=self.step, heads=heads, optimizer=self.optimizer.state_dict())
        state["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["device_rng"] = torch.cuda.get_rng_state(self.device)
        self.files.save_checkpoint(state)

    def run(self) -> None:
        if self.step == 0:
            torch.manual_seed(self.config.seed)
            self.save()  # the heads that it begins with: a resumed run is given others
        self.files.drop_lines_from(self.step)
        config, began = self.config, time.perf_counter()
        crops = Crops(self.data, _normaliser(self.net), config.crop, config.scales, config.mirror, config.seed)
        batches = Batches(len(self.data), config.batch, config.epochs, config.seed, self.step)
        self.net.train()
        for images, labels in _loader(crops, batches, config.workers, self.device):
            line = {"step": self.step, "epoch": self.step // batches.per_epoch, **self._learn(images, labels)}
            now = time.perf_counter()
            self.files.write_line({**line, "images_per_second": round(len(images) / (now - began), 3)})
            began, self.step = now, self.step + 1
            self.report(TrainingStep(self.step, self.steps, line["total"]))
            if self.step % config.save_every == 0 or self.step == self.steps:
                self.save()

    def finish(self) -> None:
        self.net.mean_shift.running_mean.copy_(mean_displacement(self.net, self.data, self.config))
        self.save()
        self.files.write_line({"step": self.steps, "mean_shift": self.net.mean_shift.running_mean.tolist()})
        self.files.save_weights(
            self.net.state_dict(), {"settings": json.dumps(self.settings), "backbone": self.net.backbone}
        )

    def _learn(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        share = (1 - self.step / self.steps) ** self.config.power
        rates = [self.config.boundary_rate * share, self.config.displacement_rate * share]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        logits, displacement = self.net(images.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        losses = affinity_loss(logits.sigmoid(), displacement, labels, self.config.radius)
        numbers = torch.stack(losses).tolist()
        if not all(map(math.isfinite, numbers)):
            raise StoppedError(f"step {self.step}: the loss is {numbers[0]}; try a lower rate than {rates[1]:.3g}")
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        named = dict(zip(AffinityLosses._fields, numbers, strict=True))
        return {**named, "boundary_rate": rates[0], "displacement_rate": rates[1]}


def _loader(crops: Crops, places: Any, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    pinned = device.type == "cuda"
    yield from DataLoader(crops, batch_sampler=places, num_workers=workers, collate_fn=stack, pin_memory=pinned)


def _normaliser(net: AffinityNet) -> Callable[[Tensor], Tensor]:
    return partial(normalised, mean=net.mean, std=net.std, dtype=net.fc_edge6.weight.dtype)


def _fingerprint(net: AffinityNet) -> str:
    digest = hashlib.sha256()
    for key, tensor in net.state_dict().items():
        if key.startswith("stage"):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
