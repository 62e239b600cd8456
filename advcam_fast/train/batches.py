"""Which images are learned from at which step: the same whenever and wherever it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from advcam_fast.errors import UsageError


@dataclass(frozen=True)
class Batches:
    """Lists of (epoch, index) from step `first` on: each epoch's own order of the images, a last part left out.

    With fewer images than a batch takes, the batch is all of them. Iterating again starts at `first` again.
    steps: so many in all, whatever the epochs. share: (rank, processes); each process takes its part of every batch.
    Raises UsageError for a batch that has no equal parts.
    """

    count: int
    most: int
    epochs: int
    seed: int
    first: int = 0
    steps: int | None = None
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.batch % self.share[1] or self.batch == 0:
            parts = f"{self.share[1]} processes" if self.share[1] > 1 else "a training"
            raise UsageError(f"batch is {self.batch} for {parts}; wanted a multiple of {self.share[1]} above 0")

    @property
    def batch(self) -> int:
        """Images a step, over all processes."""
        return min(self.most, self.count // self.share[1] * self.share[1])

    @property
    def per_epoch(self) -> int:
        return self.count // self.batch

    @property
    def total(self) -> int:
        """Steps from the beginning to the end."""
        return self.per_epoch * self.epochs if self.steps is None else self.steps

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        rank, processes = self.share
        part = self.batch // processes
        for step in range(self.first, self.total):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            start = step % self.per_epoch * self.batch + rank * part
            yield [(epoch, int(index)) for index in order[start : start + part]]


def loader(
    data: Dataset[Any], places: Any, workers: int, device: torch.device, collate: Callable[[Any], Any]
) -> Iterator[Any]:
    """The items of data at lists of places, put together; read ahead by worker processes if there are any."""
    pinned = device.type == "cuda"
    yield from DataLoader(data, batch_sampler=places, num_workers=workers, collate_fn=collate, pin_memory=pinned)
