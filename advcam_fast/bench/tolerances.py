"""The one tolerance table: how far an op may be from its float64 reference, by the dtype it computes in."""

from __future__ import annotations

import torch

# relative to the largest magnitude of the reference tensor, see `close`
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,  # 8 bits of mantissa: outputs of that dtype are rounded at 2^-9
    torch.float16: 2e-3,
}


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype | None = None, limit: float | None = None) -> None:
    """AssertionError unless max|got - want| <= tolerance * max|want|, and both have NaN at the same places.

    dtype: what the op computed in. limit: a relative error in the place of the table's.
    """
    if limit is None:
        limit = TOLERANCE[dtype or got.dtype]
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    got, want = got.double(), want.double()
    if not torch.equal(got.isnan(), want.isnan()):
        raise AssertionError("NaN in different places")
    scale = want.nan_to_num().abs().amax().clamp(min=1e-30) if want.numel() else 1.0
    error = ((got - want).nan_to_num().abs().amax() / scale).item() if want.numel() else 0.0
    if error > limit:
        raise AssertionError(f"relative error {error:.2e} is over {limit:.0e}")
