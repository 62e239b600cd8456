"""Ours against another package, side by side in one run, and only where both are right."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from advcam_fast.errors import first_line

SHORTEST = 0.01  # seconds that a measurement lasts at least: shorter calls are repeated


@dataclass(frozen=True)
class Scope:
    """How much is measured: images of `side` pixels, `batch` of them through `network`; rounds of each duel.

    shrink: what the sides of the ops' cases are divided by.
    """

    network: str = "resnet50"
    side: int = 224
    batch: int = 8
    shrink: int = 1
    rounds: int = 7


FULL, QUICK = Scope(), Scope("resnet18", 224, 2, shrink=2, rounds=3)


@dataclass(frozen=True)
class Duel:
    """name: what both do. against: the other's name; package: as it is installed, or "" for what is always there.

    make: sizes -> (ours, theirs, check), where check raises AssertionError unless both results are right.
    """

    name: str
    against: str
    package: str
    make: Callable[[Scope], tuple[Callable[[], Any], Callable[[], Any], Callable[[], None]]]


@dataclass(frozen=True)
class Row:
    """What came of a duel. Seconds are medians; ratio, theirs / ours, is the median over rounds of both in turn, lowest
    and highest its extremes. Without times, `reason` says why there are none.
    """

    name: str
    against: str
    version: str = ""
    ours: float = 0.0
    theirs: float = 0.0
    ratio: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    reason: str = ""
    wrong: bool = False


def fight(duel: Duel, scope: Scope) -> Row:
    """Checks, warms up and measures; a package that is missing and an answer that is wrong have no time."""
    version = ""
    if duel.package:
        try:
            version = importlib.metadata.version(duel.package)
        except importlib.metadata.PackageNotFoundError:
            return Row(duel.name, duel.against, reason=f"not installed: pip install {duel.package}")
    torch.manual_seed(0)
    ours, theirs, check = duel.make(scope)
    try:
        check()
    except AssertionError as error:
        reason = f"no time, since the results differ: {first_line(error)}"
        return Row(duel.name, duel.against, version, reason=reason, wrong=True)
    counts = [_calls(run) for run in (ours, theirs)]  # the warm-up too
    taken = [
        [_seconds(run, count) for run, count in zip((ours, theirs), counts, strict=True)] for _ in range(scope.rounds)
    ]
    ratios = [other / own for own, other in taken]
    own, other = (statistics.median(side) for side in zip(*taken, strict=True))
    return Row(duel.name, duel.against, version, own, other, statistics.median(ratios), min(ratios), max(ratios))


def _seconds(run: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - began) / count


def _calls(run: Callable[[], Any]) -> int:
    """How many calls last SHORTEST."""
    run()
    return max(1, math.ceil(SHORTEST / max(_seconds(run, 1), 1e-7)))


def results(rows: Iterable[Row], scope: Scope, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored as JSON."""
    return {"machine": dict(machine), "scope": asdict(scope), "rows": [asdict(row) for row in rows]}


def compared(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, str, float, float, float]]:
    """(name, against, ratio before, ratio now, now / before) of every row that both have times of.

    Ratios are compared and not times, so that another machine's results serve too.
    """
    old = {(row["name"], row["against"]): row["ratio"] for row in before["rows"] if row["ratio"]}
    return [
        (row["name"], row["against"], was, row["ratio"], row["ratio"] / was)
        for row in now["rows"]
        if row["ratio"] and (was := old.get((row["name"], row["against"])))
    ]
