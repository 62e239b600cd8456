"""Plots of figures: curves over thresholds, bars by class and by object size; PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Interval = tuple[float, float] | None


def curve_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str) -> bytes:
    """One line a name, its best point marked: name -> (x, y)."""
    figure, axes = _figure(7, 4.5)
    for name, (x, y) in curves.items():
        best = max(range(len(y)), key=lambda at: y[at])
        (line,) = axes.plot(x, y, marker="o" if len(x) == 1 else None, label=f"{name}: {y[best]:.3f} at {x[best]:g}")
        axes.plot([x[best]], [y[best]], "o", color=line.get_color())
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def class_plot(names: Sequence[str], values: Mapping[str, Sequence[float | None]], along: str) -> bytes:
    """A row of bars a class, the greatest of the first series on top; classes without a value are left out."""
    first = next(iter(values.values()))
    order = sorted((at for at, value in enumerate(first) if value is not None), key=lambda at: first[at] or 0.0)
    figure, axes = _figure(7, 1.2 + 0.28 * max(1, len(order)))
    height = 0.8 / len(values)
    for number, (series, own) in enumerate(values.items()):
        rows = [row - number * height for row in range(len(order))]
        axes.barh(rows, [own[at] or 0.0 for at in order], height, label=series)
    axes.set_yticks(range(len(order)), [names[at] for at in order])
    axes.set_xlabel(along)
    axes.legend(loc="lower right")
    return _png(figure)


def group_plot(groups: Sequence[str], values: Mapping[str, Sequence[tuple[float | None, Interval]]], up: str) -> bytes:
    """Bars by group with their intervals, one colour a series."""
    figure, axes = _figure(7, 4)
    width = 0.8 / len(values)
    for number, (series, own) in enumerate(values.items()):
        for at, (value, span) in enumerate(own):
            if value is None:
                continue
            error = [[max(0.0, value - span[0])], [max(0.0, span[1] - value)]] if span else None
            axes.bar(
                at + (number - (len(values) - 1) / 2) * width,
                value,
                width,
                yerr=error,
                capsize=3,
                color=f"C{number}",
                label=series if at == _first(own) else None,
            )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(up)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return _png(figure)


def _first(values: Sequence[tuple[float | None, Interval]]) -> int:
    return next(at for at, (value, _) in enumerate(values) if value is not None)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
