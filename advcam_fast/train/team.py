"""The processes of one training: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Rank and number of the processes; the first one writes what is written once."""

    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        return self.rank, self.processes

    def wait(self) -> None:
        if self.processes > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks, for all of them."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a float tensor over the processes, without a gradient."""
        total = value.detach().clone()
        if self.processes > 1:
            dist.all_reduce(total)
        return total / self.processes

    def learner(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module, its gradients averaged over the processes."""
        if self.processes == 1:
            return module
        return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


ALONE = Team()


@contextmanager
def joined_team(device: torch.device) -> Iterator[Team]:
    """The team of torchrun's environment (gloo on CPUs, nccl on GPUs), left at the end; alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
