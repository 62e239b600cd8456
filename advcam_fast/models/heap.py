"""Freed memory stays with the process: on a CPU a climb asks for the same large blocks thousands of times a minute.

glibc gives every block above some megabytes back to the system when it is freed, and the system clears each page of the
next one: for light networks that takes longer than the arithmetic. The process then keeps what its largest batch
needed, as PyTorch's allocator does on a GPU.

oneDNN keeps what it generated for the last 1,024 convolutions, megabytes each, and every size of image brings a hundred
or more: some gigabytes that are never read again. 256 are enough for the sizes of one image.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

SWITCH = "ADVCAM_KEEP_MEMORY"  # environment: 0 leaves the allocator as it is

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # read by oneDNN and torch when first used
_CACHED = 256  # convolutions; the two passes of a ResNet-50 have 106

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_KEPT = 2**31 - 1  # bytes; the largest that mallopt takes
_GROWN_BY = 64 * 2**20  # bytes


@cache
def keep_freed_memory() -> bool:
    """Tells glibc to keep and reuse freed blocks of any size, once a process. False where it is not glibc, or off.

    The caches of oneDNN are bounded too, unless their environment variables say otherwise or they are in use already.
    """
    if not keeps_freed_memory():
        return False
    for name in _CACHES:
        os.environ.setdefault(name, str(_CACHED))
    library = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _GROWN_BY))
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def give_back_free_memory() -> None:
    """Returns what is free now to the system, once: after preparing a network, or before memory is measured."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` does anything here."""
    library = ctypes.CDLL(None)
    glibc = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")
    return glibc and os.environ.get(SWITCH) != "0"
