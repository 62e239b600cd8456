"""A step of the climb as a CUDA graph: recorded once a batch, then replayed without Python between its kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advcam_fast.errors import first_line

FEWEST_REPLAYS = 3  # recording costs what launching a step costs
Step = Callable[[], Tensor]  # writes the tensors it has closed over, and returns a new one


class Replay:
    """Records steps on a GPU. Where that fails they run as they are: a warning says so once, `problem` says why.

    On a CPU, and with ADVCAM_CUDA_GRAPHS=0, steps run as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.wanted = device.type == "cuda" and os.environ.get("ADVCAM_CUDA_GRAPHS", "1") != "0"
        self.problem = ""
        self._pool: Any = None
        self._last: torch.cuda.CUDAGraph | None = None

    def recorded(self, step: Step, times: int) -> Step:
        """What does a step `times` times. It must have run once before, so that nothing is set up while it is recorded.

        Recording itself does no step.
        """
        if not self.wanted or self.problem or times < FEWEST_REPLAYS:
            return step
        try:
            replay, result = self._capture(step)
        except torch.cuda.OutOfMemoryError:  # beside what the step before left in the allocator; next time it may fit
            torch.cuda.empty_cache()
            return step
        except Exception as error:  # a user's network may do anything that a graph cannot hold
            self.problem = f"{type(error).__name__}: {first_line(error)}"
            warnings.warn(f"no CUDA graphs, steps are launched one by one: {self.problem}", stacklevel=2)
            return step

        def run() -> Tensor:
            replay()
            return result.clone()

        return run

    def _capture(self, step: Step) -> tuple[Callable[[], None], Tensor]:
        """What replays the step, and the tensor that its result is always in."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads pin memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = step()
        self._last = graph  # as long as one graph lives, the next finds the pool's memory
        return graph.replay, result
