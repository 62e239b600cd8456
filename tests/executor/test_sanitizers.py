"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and each tool's planted bug."""

from __future__ import annotations

import pytest
from conftest import Drive

FOUND_BY_ASAN = [
    ("global_out_of_bounds", "heap-buffer-overflow"),
    ("shared_out_of_bounds", "heap-buffer-overflow"),
    ("misaligned_vector", "misaligned address"),
]
FOUND_BY_TSAN = ["missing_syncthreads", "missing_syncwarp", "race_of_blocks"]
FOUND_BY_EXECUTOR = [
    ("divergent_barrier", "deadlock in block 0: of 32 live threads 16 wait at __syncthreads, 16 at __shfl_xor_sync"),
    ("lane_outside_its_mask", "the calling lane is not in its own mask"),
    ("uninitialised_shared", "a NaN of uninitialised memory"),
]


@pytest.mark.parametrize("order", ["fwd", "3"])
def test_kernels_touch_only_their_memory(asan: Drive, order: str) -> None:
    done = asan("kernels", EXECUTOR_ORDER=order)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stdout + done.stderr


def test_kernels_do_not_race(tsan: Drive) -> None:
    done = tsan("few")
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stdout + done.stderr[:4000]


@pytest.mark.parametrize(("bug", "message"), FOUND_BY_ASAN)
def test_asan_and_ubsan_find_their_bugs(asan: Drive, bug: str, message: str) -> None:
    done = asan(bug)
    assert done.returncode not in (0, 3) and message in done.stderr, done.stderr


@pytest.mark.parametrize("bug", FOUND_BY_TSAN)
def test_tsan_finds_its_bugs(tsan: Drive, bug: str) -> None:
    done = tsan(bug)
    assert done.returncode not in (0, 3) and "data race" in done.stderr, done.stderr


def test_tsan_accepts_the_cure(tsan: Drive) -> None:
    assert tsan("with_syncwarp").returncode == 0


@pytest.mark.parametrize(("bug", "message"), FOUND_BY_EXECUTOR)
def test_the_executor_finds_its_bugs(asan: Drive, bug: str, message: str) -> None:
    done = asan(bug)
    assert done.returncode == 3 and message in done.stdout, done.stdout + done.stderr
