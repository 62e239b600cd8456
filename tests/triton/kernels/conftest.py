"""The Triton kernels against the reference: on the device, or interpreted on the CPU in a process of its own.

triton reads TRITON_INTERPRET when it is imported, so without a GPU these tests are collected only where it is set:
tests/triton/test_interpreted.py starts that process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from guarded import Guarded

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _can_run() -> bool:
    if not (INTERPRETED or torch.cuda.is_available()):
        return False
    try:
        import triton.language  # noqa: F401  # not "triton": the folder above has that name
    except ImportError:
        return False
    return True


if not _can_run():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """Everything allocated under it lies between canaries and starts as NaN; they are looked at when the test ends."""
    memory = Guarded()
    yield memory
    memory.check()
