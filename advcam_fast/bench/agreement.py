"""Is an implementation of an op green? No time is reported of one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advcam_fast.bench.cases import Arguments, mapped, outputs
from advcam_fast.bench.tolerances import close
from advcam_fast.ops import reference


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.to("cpu", copy=True)
    return tensor.double() if tensor.is_floating_point() else tensor


def check(
    stem: str,
    run: Callable[..., Any],
    arguments: Arguments,
    copy: Callable[[Tensor], Tensor] = torch.clone,
    limit: float | None = None,
) -> dict[str, Tensor]:
    """AssertionError unless `run` equals the float64 reference on the CPU; it gets copies. Returns its results.

    limit: a relative error in the place of the table's, for a peer that is not as exact.
    """
    expected = mapped(arguments, _wide)
    if stem == "climb_step":
        expected["network_input"] = None
    want = outputs(stem, getattr(reference, stem), expected)
    got = outputs(stem, run, mapped(arguments, copy))
    for name, result in got.items():
        if name == "network_input":
            if not torch.equal(result, got["image"].to(result.dtype)):
                raise AssertionError("network_input is not the image, rounded")
        elif result.is_floating_point():
            close(result.cpu(), want[name], limit=limit)
        elif not torch.equal(result.cpu(), want[name]):
            raise AssertionError(f"the {name} differ")
    return got
