"""The planted bugs: stores that the interpreter lets pass must not pass here."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from guarded import Guarded


@triton.jit
def _fill(out: tl.tensor, first: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = first + tl.arange(0, BLOCK)
    tl.store(out + at, 1.0, at < n)


@pytest.mark.parametrize(
    ("first", "n", "complaint"), [(0, 6, "past the tensor's end"), (-1, 5, "before the tensor's begin")]
)
def test_store_outside_is_caught(first: int, n: int, complaint: str, device: str) -> None:
    memory = Guarded()
    with memory:
        out = torch.empty(5, device=device)
    _fill[(1,)](out, first, n, BLOCK=8)
    with pytest.raises(AssertionError, match=complaint):
        memory.check()


def test_unwritten_element_is_nan(guarded: Guarded, device: str) -> None:
    with guarded:
        out = torch.empty(5, device=device)
    _fill[(1,)](out, 0, 4, BLOCK=8)
    assert out.isnan().tolist() == [False, False, False, False, True]
