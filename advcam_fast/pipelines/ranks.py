"""The processes that `torchrun` starts on one machine: what the first decides, and waiting for each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from advcam_fast.errors import StoppedError, UsageError, first_line

_PATIENCE = timedelta(days=365)  # the first to end waits for the last; a rank that dies is noticed at once


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`; alone, it is number 0 of 1 and nothing here does anything."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """Joins the other processes of a `torchrun`; UsageError where they are on several machines."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1 or "RANK" not in os.environ:
            return cls()
        if int(os.environ.get("LOCAL_WORLD_SIZE", count)) != count:
            raise UsageError("torchrun on several machines: wanted is one (--nnodes 1); for more use --engine ray")
        distributed.init_process_group("gloo", timeout=_PATIENCE)
        rank = distributed.get_rank()
        return cls(rank, count, int(os.environ.get("LOCAL_RANK", rank)))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """Each rank its own GPU, unless one is named."""
        if self.count == 1 or name not in ("auto", "cuda"):
            return name
        return f"cuda:{self.local}" if name == "cuda" or torch.cuda.is_available() else "cpu"

    def decide(self, decision: Callable[[], Any]) -> Any:
        """What the first process makes of `decision`, in all of them; where it raises, the others end with code 2."""
        if self.count == 1:
            return decision()
        answer: list[Any] = [None]
        if not self.first:
            self._together(lambda: distributed.broadcast_object_list(answer))
            if answer[0] is None:
                raise SystemExit(2)
            return answer[0]
        try:
            answer = [decision()]
        finally:
            self._together(lambda: distributed.broadcast_object_list(answer))
        return answer[0]

    def wait(self) -> None:
        """Until all of them have come here; StoppedError if one has ended instead."""
        if self.count > 1:
            self._together(lambda: distributed.barrier())

    def _together(self, step: Callable[[], object]) -> None:
        try:
            step()
        except RuntimeError as error:
            reason = f"another process of this torchrun has ended ({first_line(error)})"
            raise StoppedError(f"{reason}; the same command goes on") from error


ALONE = Ranks()
