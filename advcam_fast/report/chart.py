"""Line charts as points of an SVG, which the page's template draws in its own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 14, 44
_MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """A curve: its name, its points for an SVG polyline, and its highest point with what it says."""

    name: str
    points: str
    best: tuple[float, float]
    says: str


@dataclass(frozen=True)
class Chart:
    """A chart of WIDTH x HEIGHT: ticks are (place in pixels, text)."""

    title: str
    across: str
    up: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def line_chart(
    title: str,
    across: str,
    up: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    says: Callable[[float, float], str],
) -> Chart:
    """Curves of (x, y), from 0 up, and what is said of the highest point of each.

    Raises ValueError where a curve has no point, or there is none.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points or not all(curves.values()):
        raise ValueError(f"{title}: a curve needs at least one point")
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(0.0, max(y for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - y / y_ticks[-1] * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    lines = []
    for name, curve in curves.items():
        thin = curve[:: math.ceil(len(curve) / _MOST_POINTS)]
        best = max(curve, key=lambda point: point[1])
        drawn = " ".join(f"{x},{y}" for x, y in (at(*point) for point in thin))
        lines.append(Line(name, drawn, at(*best), says(*best)))
    return Chart(
        title,
        across,
        up,
        tuple(lines),
        tuple((at(tick, 0)[0], f"{tick:g}") for tick in x_ticks),
        tuple((at(x_ticks[0], tick)[1], f"{tick:g}") for tick in y_ticks),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that hold low and high between them."""
    span = max(high - low, 1e-6 * abs(high), 1e-6 * abs(low))
    rough = (span if span > 1e-12 else 1.0) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [number * step for number in range(first, last + 1)]
