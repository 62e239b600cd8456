"""How much memory a pass through a network takes, and how much there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


class _Live(TorchDispatchMode):
    """Keeps account of the bytes that the results of operations hold."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._sizes = {key: entry for key, entry in self._sizes.items() if not entry[0].expired()}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:  # oneDNN's own hold weights alone
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._sizes[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._sizes.values()))
        return result


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by `run` hold at once; what kernels take for themselves is not seen."""
    with _Live() as live:
        run()
    return live.peak


def available_bytes(device: torch.device) -> int | None:
    """What may still be allocated on a device; None where nobody says."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_system_bytes(), _group_bytes()]
    return min((limit for limit in limits if limit is not None), default=None)


def _system_bytes() -> int | None:
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _group_bytes() -> int | None:
    """What the control group of a container leaves; pages of files count as free."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = int((_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))
