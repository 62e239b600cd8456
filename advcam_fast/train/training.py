"""The loop that all trainings share: steps, log, checkpoints, and how it goes on after a kill."""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advcam_fast.errors import StoppedError
from advcam_fast.train.batches import Batches
from advcam_fast.train.team import ALONE, Team
from advcam_fast.train.training_folder import TrainingFolder


class TrainingStep(NamedTuple):
    """Told after every step: how far the training is, and its loss."""

    done: int
    total: int
    loss: float


class Training(ABC):
    """Steps over batches that may be killed at any moment, and go on to the same bits on a CPU at equal threads.

    Batches depend on the seed and the step alone, and so does what is drawn within a step; the rest is in the
    checkpoint. A subclass sets `optimizer`, says what is learned from a batch, and what there is to keep.
    settings: must be those that the training in the folder was begun with. watch: is told every line of the log.
    """

    LOSS = "loss"  # what the bar shows of a step's numbers
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        files: TrainingFolder,
        batches: Batches,
        settings: Mapping[str, Any],
        save_every: int,
        report: Callable[[TrainingStep], None],
        team: Team = ALONE,
        watch: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.files, self.batches, self.settings, self.team = files, batches, dict(settings), team
        self.save_every, self.report, self.watch = save_every, report, watch
        self.step, self.steps = 0, batches.total

    @abstractmethod
    def load(self, batches: Batches) -> Iterable[Any]:
        """Puts the networks in training mode and reads the images of batches."""

    @abstractmethod
    def learn(self, batch: Any) -> dict[str, float]:
        """One step of the optimizer: the numbers of its line in the log."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the optimizer: tensors, numbers and texts."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Writes the weights."""

    def begin(self) -> None:
        """What is done once, before the first step."""
        self.save()  # a resumed run may be given other random weights

    def end_epoch(self) -> dict[str, Any]:
        """What is measured after an epoch, for the log."""
        return {}

    def train(self) -> Path:
        """Trains to the end, from the folder's checkpoint if there is one, and returns the file of the weights."""
        restored = self._restore()
        done = restored and self.files.weights.exists()
        self.team.wait()
        if not restored:
            self.begin()
        if not done:
            self._run()
            self.finish()
        return self.files.weights

    def save(self) -> None:
        state = dict(settings=self.settings, step=self.step, optimizer=self.optimizer.state_dict(), **self.state())
        if self.team.first:
            self.files.save_checkpoint(state)

    def check(self, loss: float, rate: float) -> None:
        if not math.isfinite(loss):
            raise StoppedError(f"step {self.step}: the loss is {loss}; try a lower rate than {rate:.3g}")

    def _restore(self) -> bool:
        state = self.files.read_checkpoint(self.settings)
        if state is None:
            return False
        self.load_state(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True

    def _run(self) -> None:
        if self.team.first:
            self.files.drop_lines_from(self.step)
        began = time.perf_counter()
        for batch in self.load(replace(self.batches, first=self.step)):
            torch.manual_seed(self._seed())
            line: dict[str, Any] = {"step": self.step, "epoch": self.step // self.batches.per_epoch}
            line |= self.learn(batch)
            now = time.perf_counter()
            self._write({**line, "images_per_second": round(self.batches.batch / (now - began), 3)})
            began, self.step = now, self.step + 1
            if self.step % self.batches.per_epoch == 0 or self.step == self.steps:
                measured = self.end_epoch()
                if measured:
                    self._write({"step": line["step"], "epoch": line["epoch"], **measured})
                    began = time.perf_counter()
            self.report(TrainingStep(self.step, self.steps, line[self.LOSS]))
            if self.step % self.save_every == 0 or self.step == self.steps:
                self.save()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.team.first:
            self.files.write_line(line)
            self.watch(line)

    def _seed(self) -> int:
        place = np.random.SeedSequence([self.batches.seed, self.step, self.team.rank])
        return int(place.generate_state(1, np.uint64)[0] >> 1)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The first digits of a SHA-256 of tensors by name."""
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def poly(step: int, steps: int, power: float) -> float:
    """(1 - step / steps)^power, what is left of a rate."""
    return float((1 - step / steps) ** power)
