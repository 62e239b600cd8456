"""Memory that tells of a store past a tensor's end and of an element never written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MARGIN = 4096  # bytes on each side: keeps a tensor aligned, and is more than a block reaches beyond
_BYTE = 0xFF  # NaN in every float dtype, -1 in int64: a load past the end shows too, as does an output left unwritten
_ALLOCATORS = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default)


class Guarded(TorchDispatchMode):
    """`with guarded:` every tensor that torch.empty, empty_like or new_empty gives lies in guarded memory."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[tuple[Tensor, int]] = []  # (bytes with both margins, bytes of the tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._surround(result) if func in _ALLOCATORS and result.numel() else result

    def copy(self, tensor: Tensor) -> Tensor:
        """`tensor`, same strides, in guarded memory."""
        return self._surround(tensor).copy_(tensor) if tensor.numel() else tensor

    def _surround(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        end = -(-size // 16) * 16  # a view's offset counts in elements
        memory = torch.full((end + 2 * _MARGIN,), _BYTE, dtype=torch.uint8, device=tensor.device)
        self._memory.append((memory, size))
        return memory.view(tensor.dtype).as_strided(tensor.size(), tensor.stride(), _MARGIN // tensor.element_size())

    def check(self) -> None:
        for memory, size in self._memory:
            before, after = memory[:_MARGIN], memory[_MARGIN + size :]
            assert (before == _BYTE).all(), "a store before the tensor's begin"
            assert (after == _BYTE).all(), "a store past the tensor's end"
