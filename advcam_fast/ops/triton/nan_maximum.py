"""The maximum that hides no NaN: tl.max drops them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nan_maximum(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """max(a, b), NaN if either is: elementwise, and as the combine function of tl.reduce."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
