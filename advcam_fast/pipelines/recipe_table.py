"""The figures of a step of a recipe: what the JSON of its verb says, in one row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = {"cam": "CAM", "advcam": "AdvCAM", "masks": "masks"}
_BOXES = ("MaxBoxAcc", "MaxBoxAccV2", "Top-1 Loc", "Top-5 Loc")


@dataclass(frozen=True)
class Figure:
    """A measure of a step, 0 to 1, with its 95 % interval where the verb gives one."""

    name: str
    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        span = f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else ""
        return f"{self.name} {self.value:.3f}{span}"


def figures_of_step(summary: Mapping[str, Any]) -> list[Figure]:
    """The score of a training and what `evaluate` measured, each at the best threshold; none of other verbs."""
    found = [Figure(name, value) for name, value in summary.get("score", {}).items()]
    for run in summary.get("runs", ()):
        for method, part in _methods(run, "segmentation"):
            found.append(_figure(f"{method} mIoU", part["best"]["ours"], "miou"))
        for kind, names in (("boxes", _BOXES), ("pixels", ("PxAP",))):
            for method, part in _methods(run, kind):
                found += [_figure(f"{method} {name}", part[name], "value") for name in names if name in part]
    return found


def images_of_step(summary: Mapping[str, Any]) -> str:
    """Of how many images a step is: learned from, done of all, or judged."""
    if "runs" in summary:
        return f"{summary['images']['evaluated']} judged"
    parts = [f"{summary['trained_on']} learned from"] if "trained_on" in summary else []
    parts += [f"{summary['ok']} of {summary['images']}"] if "ok" in summary else []
    return ", ".join(parts)


def _methods(run: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(_SHOWN[method], part) for method, part in run.get(kind, {}).items() if method in _SHOWN]


def _figure(name: str, part: Mapping[str, Any], key: str) -> Figure:
    interval = part["interval"]
    return Figure(name, part[key], (interval[0], interval[1]) if interval else None)
