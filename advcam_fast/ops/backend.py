"""Which implementation of an op runs on a device, and how ops are registered with PyTorch.

CPU: the compiled kernels, else the reference. CUDA: the compiled kernels, else Triton, else the reference.
`torch.library.Library` is used directly and not `@custom_op`, which costs twice as much a call; the price is that
nothing bumps the version counter of an argument written in place: `mutates` does, or stale gradients would pass unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops import reference

LIBRARY = torch.library.Library("advcam_fast", "DEF")  # module level: an op lives as long as its library
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


@cache
def backend_of(device_type: str, stem: str = "climb_step") -> str:
    """ "native", "triton" or "reference": what serves tensors of `device_type` ("cpu", "cuda") in this installation."""
    if NATIVE is not None and (device_type == "cpu" or NATIVE.cuda_compiled):
        return "native"
    if device_type != "cuda" or not has_triton():
        return "reference"
    from advcam_fast.ops import triton

    return "triton" if hasattr(triton, stem) else "reference"


def has_triton() -> bool:
    try:
        import triton.language  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def fallback(stem: str, device_type: str) -> Callable[..., Any] | None:
    """What takes the compiled kernel's place on this device, with the public signature; None: the kernel is there."""
    backend = backend_of(device_type, stem)
    if backend == "native":
        return None
    if backend == "reference":
        return getattr(reference, stem)
    from advcam_fast.ops import triton

    return getattr(triton, stem)


def define(stem: str, arguments: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Registers advcam_fast::<stem> for CPU and CUDA tensors."""
    LIBRARY.define(stem + arguments, tags=_TAGS)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(stem, run, key)
    torch.library.register_fake(f"advcam_fast::{stem}", fake, lib=LIBRARY)


def mutates(tensor: Tensor | None) -> None:
    if tensor is not None:
        torch.autograd.graph.increment_version(tensor)


def workspace(like: Tensor, elements: int) -> Tensor | None:
    """Scratch memory of a CUDA kernel, from torch's allocator (so that it is safe under CUDA graphs)."""
    return like.new_empty(elements) if like.is_cuda else None


def stream_of(tensor: Tensor) -> int | None:
    """The current stream of a CUDA tensor's device. Said to the kernel, since not every torch tells it by DLPack."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def refuse_grad(stem: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(f"{stem} works in place and has no derivative: call it under torch.no_grad() or detach")
