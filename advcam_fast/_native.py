"""Loads the compiled kernels, torch first: its OpenMP runtime must be the one that advcam_fast._C uses.

Where the extension cannot be loaded everything still works through ops/reference.py, only slower; that is said once,
by a warning, and by `advcam-fast doctor`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch  # noqa: F401  (must come before _C)

NATIVE: Any  # the module, or None
NATIVE_ERROR: str | None = None

try:
    from advcam_fast import _C as NATIVE  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    NATIVE, NATIVE_ERROR = None, str(error)
    warnings.warn(
        f"advcam_fast's compiled kernels could not be loaded ({error}): the slower PyTorch reference is used instead; "
        "build them again (in the source folder: `pip install --no-deps .`) and see `advcam-fast doctor`",
        RuntimeWarning,
        stacklevel=2,
    )
