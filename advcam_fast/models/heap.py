"""Freed memory stays with the process: on a CPU a climb asks for the same large blocks thousands of times a minute.

glibc gives every block above some megabytes back to the system when it is freed, and the system clears each page of the
next one: for light networks that takes longer than the arithmetic. The process then keeps what its largest batch
needed, as PyTorch's allocator does on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

SWITCH = "ADVCAM_KEEP_MEMORY"  # environment: 0 leaves the allocator as it is

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_KEPT = 2**31 - 1  # bytes; the largest that mallopt takes
_GROWN_BY = 64 * 2**20  # bytes


@cache
def keep_freed_memory() -> bool:
    """Tells glibc to keep and reuse freed blocks of any size, once a process. False where it is not glibc, or off."""
    if os.environ.get(SWITCH) == "0":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _GROWN_BY))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
