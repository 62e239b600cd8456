"""Batches of several processes, and of so many steps."""

from __future__ import annotations

import pytest

from advcam_fast.errors import UsageError
from advcam_fast.train.batches import Batches


def test_processes_share_every_batch() -> None:
    whole = list(Batches(11, 4, 3, seed=0))
    parts = [list(Batches(11, 4, 3, seed=0, share=(rank, 2))) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_a_batch_that_has_no_equal_parts_is_refused() -> None:
    with pytest.raises(UsageError, match="batch is 3 for 2 processes; wanted a multiple of 2 above 0"):
        Batches(11, 3, 1, seed=0, share=(0, 2))
    assert Batches(11, 16, 1, seed=0, share=(1, 4)).batch == 8  # of too few images what can be shared
    with pytest.raises(UsageError, match="batch is 0 for 2 processes"):
        Batches(1, 16, 1, seed=0, share=(0, 2))


def test_steps_go_on_over_epochs() -> None:
    batches = Batches(5, 2, 0, seed=0, steps=7)
    found = list(batches)
    assert len(batches) == len(found) == 7
    assert [batch[0][0] for batch in found] == [0, 0, 1, 1, 2, 2, 3]
