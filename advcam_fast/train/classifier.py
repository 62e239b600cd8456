"""Trains a classifier on image-level tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.models import TrainableClassifier
from advcam_fast.train.batches import Batches, loader
from advcam_fast.train.classifier_config import ClassifierConfig
from advcam_fast.train.classifier_views import TaggedImages, ViewBatch, Views, stacked
from advcam_fast.train.judging import autocast, class_logits, fit_probe, normaliser
from advcam_fast.train.scores import multi_label_scores, top1
from advcam_fast.train.team import ALONE, Team
from advcam_fast.train.training import Training, TrainingStep, fingerprint
from advcam_fast.train.training_folder import TrainingFolder


@dataclass
class TrainedClassifier:
    """What came of a training: the last weights, the best ones where there are images to judge by, and how good.

    problems: why images could not be read, by their index in the data, and in the data judged by.
    """

    weights: Path
    best: Path | None = None
    score: dict[str, float] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    judged_problems: dict[int, str] = field(default_factory=dict)


def train_classifier(
    net: TrainableClassifier,
    data: TaggedImages,
    class_names: Sequence[str],
    folder: str | Path,
    config: ClassifierConfig | None = None,
    *,
    single_label: bool = False,
    judge: TaggedImages | None = None,
    resume: bool = False,
    data_digest: str = "",
    report: Callable[[TrainingStep], None] = lambda _: None,
    watch: Callable[[Mapping[str, Any]], None] = lambda _: None,
    team: Team = ALONE,
) -> TrainedClassifier:
    """Trains a classifier in place, on its device.

    Loss: sum over classes of log(1 + exp(-+y)) / C (multi-label soft margin), or cross entropy for one label an image,
    averaged over the images that could be read.

    data: data[i] is (uint8 [3, H, W], class indices). judge: the same, scored after every epoch: mAP and micro-AP, or
    top-1; the best epoch's weights go to best.safetensors. folder: gets log.jsonl (a line a step, a line a score),
    checkpoint.pt and weights.safetensors, each file whole or not there; `load_model` reads the weights.
    resume: goes on from the folder's checkpoint, on a CPU to the bits of a run that was never stopped (at an equal
    number of threads and processes); data_digest: names the data that it must then be.
    report: is told after every step. watch: is told every line of the log. team: the processes that train together.
    Raises UsageError for data, a folder or settings that do not fit, StoppedError when the loss is no number or no
    image can be read.
    """
    config = config or ClassifierConfig()
    for name, images in (("data", data), ("judge", judge)):
        if images is not None and len(images) == 0:
            raise UsageError(f"{name}: 0 images came; wanted 1 or more")
    files = TrainingFolder(folder, resume or not team.first)
    team.wait()
    job = _Job(net, data, judge, tuple(class_names), config, single_label, data_digest)
    training = _Training(job, files, report, watch, team)
    path = training.train()
    net.eval()
    best = files.best if judge is not None else None
    return TrainedClassifier(path, best, training.best_score, training.problems, training.judged_problems)


@dataclass(frozen=True)
class _Job:
    net: TrainableClassifier
    data: TaggedImages
    judge: TaggedImages | None
    class_names: tuple[str, ...]
    config: ClassifierConfig
    single_label: bool
    data_digest: str

    @property
    def activation(self) -> str:
        return "softmax" if self.single_label else "sigmoid"

    def settings(self) -> dict[str, Any]:
        return {
            **self.config.settings(),
            "model": self.net.name,
            "class_names": list(self.class_names),
            "activation": self.activation,
            "images": len(self.data),
            "judged": 0 if self.judge is None else len(self.judge),
            "data": self.data_digest,
            "began_with": fingerprint(self.net.state_dict()),
        }


class _Training(Training):
    """A network, the average of its weights, and the best score so far."""

    def __init__(
        self,
        job: _Job,
        files: TrainingFolder,
        report: Callable[[TrainingStep], None],
        watch: Callable[[Mapping[str, Any]], None],
        team: Team,
    ) -> None:
        self.job, self.net, self.config, config = job, job.net, job.config, job.config
        self.device = next(self.net.parameters()).device
        settings = {**job.settings(), "processes": team.processes}
        batches = Batches(len(job.data), config.batch, config.epochs, config.seed, share=team.share)
        super().__init__(files, batches, settings, config.save_every, report, team, watch)
        self.frozen = self.net.first_stages(config.frozen_stages)
        for stage in self.frozen:
            stage.requires_grad_(False)
        self.net.head.requires_grad_(True)
        self.optimizer = _optimizer(self.net, config)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(self.net, multi_avg_fn=partial(_averaged, config.ema), use_buffers=True)
        self.learner = team.learner(self.net, self.device)
        self.best_score: dict[str, float] = {}
        self.problems: dict[int, str] = {}
        self.judged_problems: dict[int, str] = {}

    @property
    def result(self) -> TrainableClassifier:
        """The network that is judged and written."""
        if self.average is None:
            return self.net
        module = self.average.module
        assert isinstance(module, TrainableClassifier)
        return module

    def begin(self) -> None:
        if not self.net.kept_head and self.config.new_head != "random":
            for parameter in self.net.head.parameters():
                torch.nn.init.zeros_(parameter)
            if self.config.new_head == "probe":
                fit_probe(self.net, self.job.data, self._losses, len(self.job.class_names), self.config, self.team)
        super().begin()

    def load(self, batches: Batches) -> Iterator[ViewBatch]:
        self._training_mode()
        views = Views(self.job.data, normaliser(self.net), len(self.job.class_names), self.config)
        return loader(views, batches, self.config.workers, self.device, stacked)

    def learn(self, batch: ViewBatch) -> dict[str, float]:
        share = self.config.share(self.step, self.steps, self.batches.per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.problems |= batch.problems
        images, classes, weights = (tensor.to(self.device, non_blocking=True) for tensor in batch[:3])
        with autocast(self.device, self.config):
            logits = self.learner(images)
        losses = self._losses(logits.float(), classes)
        # Gradients are averaged over the processes, of which one may have more images that could be read.
        loss = (losses * weights).sum() / self.team.mean(weights.sum()).clamp(min=1 / self.team.processes)
        number = float(self.team.mean(loss))
        self.check(number, self.config.rate * share)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        return {"loss": number, "rate": self.config.rate * share}

    def end_epoch(self) -> dict[str, Any]:
        self._share_problems()
        if len(self.problems) == len(self.job.data):
            reason = next(iter(self.problems.values()))
            raise StoppedError(f"none of the {len(self.job.data)} images can be read; the first: {reason}")
        if self.job.judge is None:
            return {}
        score = self._judge(self.job.judge)
        name = next(iter(score))
        if not self.best_score or score[name] > self.best_score[name]:
            self.best_score = score
            self._write_weights(self.files.best)
        self._training_mode()
        return score

    def state(self) -> dict[str, Any]:
        self._share_problems()
        average = None if self.average is None else self.average.state_dict()
        kept = dict(best=self.best_score, problems=self.problems, judged_problems=self.judged_problems)
        return {"network": self.net.state_dict(), "average": average, **kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best_score = state["best"]
        self.problems, self.judged_problems = state["problems"], state["judged_problems"]

    def _share_problems(self) -> None:
        for found in self.team.gather(self.problems):
            self.problems |= found

    def finish(self) -> None:
        self._write_weights(self.files.weights)
        self.team.wait()

    def _write_weights(self, path: Path) -> None:
        if self.team.first:
            said = {"settings": json.dumps(self.settings), "score": json.dumps(self.best_score)}
            metadata = self.net.metadata(self.job.class_names, self.job.activation)
            self.files.save_weights(self.result.network.state_dict(), {**metadata, **said}, path)

    def _training_mode(self) -> None:
        self.net.train()
        norms = self.net.modules() if self.config.batch_norm == "frozen" else ()
        for module in (*(norm for norm in norms if isinstance(norm, _BatchNorm)), *self.frozen):
            module.eval()

    def _losses(self, logits: Tensor, classes: Tensor) -> Tensor:  # [B]
        if self.job.single_label:
            return F.cross_entropy(logits, classes.argmax(1), reduction="none", label_smoothing=self.config.smoothing)
        return F.multilabel_soft_margin_loss(logits, classes, reduction="none")

    def _judge(self, data: TaggedImages) -> dict[str, float]:
        found = class_logits(self.result, data, len(self.job.class_names), self.config, self.team)
        self.judged_problems = found.problems
        if not found.indices:
            reason = next(iter(found.problems.values()))
            raise StoppedError(f"none of the {len(data)} images to judge by can be read; the first: {reason}")
        if self.job.single_label:
            return top1(found.values, found.classes.argmax(1))
        return multi_label_scores(found.values, found.classes > 0)


def _optimizer(net: TrainableClassifier, config: ClassifierConfig) -> torch.optim.Optimizer:
    head = {id(parameter) for parameter in net.head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            plain = config.optimizer == "adamw" and parameter.ndim < 2  # biases and norms do not decay
            groups.setdefault((id(parameter) in head, plain), []).append(parameter)
    chosen: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": config.head_rate if of_head else config.rate,
            "weight_decay": 0.0 if plain else config.weight_decay,
        }
        for (of_head, plain), parameters in groups.items()
    ]
    return (
        torch.optim.AdamW(chosen) if config.optimizer == "adamw" else torch.optim.SGD(chosen, momentum=config.momentum)
    )


def _averaged(decay: float, averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
    """averages <- d averages + (1 - d) current; d rises to the decay, so that a short training forgets its start."""
    number = int(count)
    get_ema_multi_avg_fn(min(decay, (1 + number) / (10 + number)))(averages, current, count)
