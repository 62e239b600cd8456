"""Is an implementation of an op green? No time is reported of one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tolerances import close
from torch import Tensor

from advcam_fast.bench.cases import Arguments, mapped, outputs
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
    """Fails unless `run` equals the float64 reference on the CPU; it gets copies, and its results are returned.

    limit: a relative error in the place of the table's, for a peer that is not as exact.
    """
    expected = mapped(arguments, _wide)
    if stem == "climb_step":
        expected["network_input"] = None
    want = outputs(stem, getattr(reference, stem), expected)
    got = outputs(stem, run, mapped(arguments, copy))
    for name, result in got.items():
        if name == "network_input":
            assert torch.equal(result, got["image"].to(result.dtype)), "network_input is not the image, rounded"
        elif not result.is_floating_point():
            assert torch.equal(result.cpu(), want[name]), f"the {name} differ"
        elif limit is not None:
            assert (result.cpu().double() - want[name]).abs().max() <= limit * want[name].abs().max(), name
        else:
            close(result.cpu(), want[name])
    return got
