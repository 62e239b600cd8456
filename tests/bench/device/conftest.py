"""Every kernel on the device against the float64 reference on the CPU; the CPU is the device where there is no GPU.

ADVCAM_DEVICE names another device. The cases are those of tests/ops and of the benchmarks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from advcam_fast.ops.backend import backend_of, has_triton

TESTS = Path(__file__).parents[2]
for folder in (TESTS / "ops", TESTS / "climb", TESTS / "triton" / "kernels", TESTS.parent / "benchmarks"):
    sys.path.insert(0, str(folder))

DEVICE = os.environ.get("ADVCAM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = [backend_of(DEVICE)]
if DEVICE == "cuda" and BACKENDS == ["native"] and has_triton():
    BACKENDS.append("triton")


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(params=BACKENDS)
def run_of(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Any]]:
    """stem -> the op as this backend runs it, below the dispatcher, where Guarded sees what it allocates."""

    def find(stem: str) -> Callable[..., Any]:
        triton = import_module("advcam_fast.ops.triton") if request.param == "triton" else None
        if hasattr(triton, stem):  # some ops have no twin there
            return getattr(triton, stem)
        module = import_module(f"advcam_fast.ops.{stem.removesuffix('_backward')}")
        return module._run_backward if stem.endswith("_backward") else module._run

    return find


@pytest.fixture
def guarded() -> Iterator[Any]:
    """The guarded memory of tests/triton/kernels: canaries around every allocation, NaN in it."""
    from guarded import Guarded

    memory = Guarded()
    yield memory
    memory.check()
