"""Freed memory is kept: said once a process, in one of its own here, and never where it is switched off."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from advcam_fast.models.heap import SWITCH

FAULTS = """
import resource, torch
from advcam_fast.models.heap import keep_freed_memory
kept = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
before = faults()
for _ in range(10):
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
print(kept, (faults() - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is set there")
@pytest.mark.parametrize("switch", [None, "0"])
def test_large_blocks_are_reused(switch: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != SWITCH}
    environment |= {} if switch is None else {SWITCH: switch}
    command = [sys.executable, "-c", FAULTS]
    kept, faults = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert kept == str(switch is None)
    pages = 64 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert (float(faults) < pages / 4) == (switch is None)


BOUNDED = """
import os
from advcam_fast.models.heap import keep_freed_memory
keep_freed_memory()
print(os.environ.get("LRU_CACHE_CAPACITY"), os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY"))
"""


@pytest.mark.parametrize(
    ("own", "bounds"), [({}, "256 256"), ({"LRU_CACHE_CAPACITY": "9"}, "9 256"), ({SWITCH: "0"}, "None None")]
)
def test_caches_are_bounded_unless_the_user_did_it(own: dict[str, str], bounds: str) -> None:
    names = (SWITCH, "LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    environment = {key: value for key, value in os.environ.items() if key not in names} | own
    command = [sys.executable, "-c", BOUNDED]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip() == bounds
