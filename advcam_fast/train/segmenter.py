"""Trains a segmenter on masks, true ones or pseudo ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import default_collate

from advcam_fast.errors import UsageError
from advcam_fast.models import HEADS, Segmenter
from advcam_fast.models.affinity_net import normalised
from advcam_fast.options import changes_of, check_option, parsed_like, preset_of
from advcam_fast.train.batches import Batches, loader
from advcam_fast.train.crops import Crops
from advcam_fast.train.cutting import UNSURE, LabelledImages
from advcam_fast.train.team import ALONE, Team
from advcam_fast.train.training import Training, TrainingStep, fingerprint, poly
from advcam_fast.train.training_folder import TrainingFolder


@dataclass(frozen=True)
class SegmenterConfig:
    """How a segmenter is trained; rates fall as rate (1 - step / steps)^power.

    head: v2 or v3plus. head_factor: of the head's rate; v2's biases have twice that and do not decay. batch: images a
    step, over all processes. crop: in pixels. scales: images are drawn at sizes between these. balance: foreground,
    the mean over the background's pixels and the mean over all others weigh the same; none, all pixels do.
    The statistics of the stages' BatchNorm stay; scale and shift learn. save_every: steps between checkpoints.
    test_scales, test_flip: views that are averaged for a mask. crf: sharpen it by a dense CRF.
    Raises UsageError for a number out of its range.
    """

    head: str = "v3plus"
    rate: float = 1e-3
    head_factor: float = 10.0
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 10
    steps: int = 10_000
    crop: int = 321
    scales: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    balance: str = "foreground"
    autocast: str = "none"
    seed: int = 0
    workers: int = 0
    save_every: int = 500
    test_scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    test_flip: bool = True
    crf: bool = True

    def __post_init__(self) -> None:
        choices = {"head": HEADS, "balance": ("foreground", "none"), "autocast": ("none", "bf16")}
        for name, known in choices.items():
            check_option(name, getattr(self, name), getattr(self, name) in known, " or ".join(known))
        least = dict(batch=1, steps=1, crop=8, seed=0, workers=0, save_every=1, power=0, weight_decay=0)
        for name, limit in least.items():
            check_option(name, getattr(self, name), limit <= getattr(self, name) < math.inf, f"{limit} or more")
        for name in ("rate", "head_factor"):
            check_option(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0")
        check_option("momentum", self.momentum, 0 <= self.momentum < 1, "0 to below 1")
        right = len(self.scales) == 2 and 0 < self.scales[0] <= self.scales[1] < math.inf
        check_option("scales", self.scales, right, "two numbers above 0, the smaller one first")
        right = len(self.test_scales) > 0 and all(0 < scale < math.inf for scale in self.test_scales)
        check_option("test_scales", self.test_scales, right, "numbers above 0")

    @classmethod
    def recipe(cls, name: str) -> SegmenterConfig:
        """One of SEGMENTER_RECIPES; raises UsageError naming those there are."""
        return preset_of(SEGMENTER_RECIPES, name)

    def with_settings(self, settings: Iterable[str]) -> SegmenterConfig:
        """Changed by texts such as "steps=500" (as `train-segmenter --set`)."""
        defaults = asdict(SegmenterConfig())
        return replace(self, **changes_of(self, settings, lambda key, text: parsed_like(defaults[key], text)))

    def settings(self) -> dict[str, Any]:
        """What a resumed training must have the same: all but what changes no bit of the weights."""
        free = ("workers", "save_every", "test_scales", "test_flip", "crf")
        chosen = {key: value for key, value in asdict(self).items() if key not in free}
        return {**chosen, "scales": list(self.scales)}

    def mask_settings(self) -> dict[str, Any]:
        return {"test_scales": list(self.test_scales), "test_flip": self.test_flip, "crf": self.crf}


# voc-cvpr2021: the method's; crop, momentum, weight decay and the head's factor are DeepLab-v2's usual ones.
SEGMENTER_RECIPES = {
    "v3plus": SegmenterConfig(),
    "voc-cvpr2021": SegmenterConfig(head="v2", rate=2.5e-4, steps=30_000),
}


def train_segmenter(
    net: Segmenter,
    data: LabelledImages,
    folder: str | Path,
    config: SegmenterConfig | None = None,
    *,
    resume: bool = False,
    data_digest: str = "",
    report: Callable[[TrainingStep], None] = lambda _: None,
    team: Team = ALONE,
) -> Path:
    """Trains a segmenter in place, on its device, and returns the file of its weights, for load_segmenter.

    Loss: cross entropy of the logits, enlarged to the crop, over pixels whose label is not 255.

    data: data[i] is (uint8 [3, H, W], labels uint8 [H, W]: 0 background, v > 0 class v - 1, 255 ignored).
    folder, resume, data_digest, report, team: as of train_classifier.
    Raises UsageError for data, a folder or settings that do not fit, StoppedError when the loss is no number.
    """
    config = config or SegmenterConfig()
    if len(data) == 0:
        raise UsageError("data: 0 images came; wanted 1 or more")
    files = TrainingFolder(folder, resume or not team.first)
    team.wait()
    path = _Training(net, data, files, config, data_digest, report, team).train()
    net.eval()
    return path


class _Training(Training):
    def __init__(
        self,
        net: Segmenter,
        data: LabelledImages,
        files: TrainingFolder,
        config: SegmenterConfig,
        data_digest: str,
        report: Callable[[TrainingStep], None],
        team: Team,
    ) -> None:
        self.net, self.data, self.config = net, data, config
        self.device = next(net.parameters()).device
        settings = {
            **config.settings(),
            "backbone": net.backbone,
            "class_names": list(net.classes),
            "images": len(data),
            "data": data_digest,
            "began_with": fingerprint(net.state_dict()),
            "processes": team.processes,
        }
        batches = Batches(len(data), config.batch, 0, config.seed, steps=config.steps, share=team.share)
        super().__init__(files, batches, settings, config.save_every, report, team)
        groups = _groups(net, config)
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum)
        self.rates = [group["lr"] for group in groups]
        self.learner = team.learner(net, self.device)

    def load(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        self.net.train()
        for module in self.net.stages.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        normalise = partial(normalised, mean=self.net.mean, std=self.net.std, dtype=torch.float32)
        config = self.config
        crops = Crops(self.data, normalise, config.crop, config.scales, config.mirror, config.seed, stride=1)
        return loader(crops, batches, config.workers, self.device, default_collate)

    def learn(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        share = poly(self.step, self.steps, self.config.power)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast == "bf16"):
            logits = self.learner(images)
        loss = segmentation_loss(logits.float(), labels, self.config.balance == "foreground", self.team)
        number = float(self.team.mean(loss))
        self.check(number, self.config.rate * share)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": number, "rate": self.config.rate * share}

    def state(self) -> dict[str, Any]:
        return {"network": self.net.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["network"])

    def finish(self) -> None:
        if self.team.first:
            said = {**self.net.metadata(), "settings": json.dumps(self.settings)}
            self.files.save_weights(self.net.state_dict(), said)
        self.team.wait()


def segmentation_loss(logits: Tensor, labels: Tensor, balanced: bool, team: Team = ALONE) -> Tensor:
    """Cross entropy of logits [B, L, h, w], enlarged to labels uint8 [B, H, W], where labels are not 255; 0 if nowhere.

    balanced: (mean over the pixels of label 0 + mean over those of the others) / 2, where there are both.
    team: the means are over the pixels of all its processes, whose losses (and gradients) are to be averaged.
    """
    large = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    each = F.cross_entropy(large, labels.long(), ignore_index=UNSURE, reduction="none")
    sure = labels != UNSURE
    kinds = (sure & (labels == 0), sure & (labels > 0)) if balanced else (sure,)
    counts = team.mean(torch.stack([kind.sum() for kind in kinds]).to(each.dtype))
    means = torch.stack([(each * kind).sum() for kind in kinds]) / counts.clamp(min=1 / team.processes)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def _groups(net: Segmenter, config: SegmenterConfig) -> list[dict[str, Any]]:
    head = config.rate * config.head_factor
    weights = [parameter for parameter in net.head.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in net.head.parameters() if parameter.ndim <= 1]
    bias_rate, bias_decay = (2 * head, 0.0) if net.kind == "v2" else (head, config.weight_decay)
    return [
        {"params": list(net.stages.parameters()), "lr": config.rate, "weight_decay": config.weight_decay},
        {"params": weights, "lr": head, "weight_decay": config.weight_decay},
        {"params": biases, "lr": bias_rate, "weight_decay": bias_decay},
    ]
