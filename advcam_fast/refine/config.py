"""RefineConfig: every number between maps and masks, named presets, and changes by `key=value`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from advcam_fast.options import changes_of, check_option, preset_of, whole


@dataclass(frozen=True)
class RefineConfig:
    """How the maps of an image become its mask.

    maps <- maps^power; walked (ops.color_walk at stride 4); enlarged, divided by their largest value over all classes;
    label = argmax over the background's score and the maps; then the dense CRF.

    power: > 0; above 1 the walk starts from what is surest. walk: color, by the image's own colours, or none. radius:
    of the walk, 1 to 64 pixels at stride 4. sigma: of its colours, in levels of 0 to 255, > 0. walk_steps: >= 0.
    restart: what each step brings back of the start, 0 to 1. background: the score that a class must exceed, 0 to 1.
    crf: none; hard, on the labels of the argmax, each sure by crf_confidence (the method's); soft, on the scores
    themselves as probabilities. crf_steps: of mean field, >= 0. crf_gaussian: (sxy, weight). crf_bilateral: (sxy, srgb,
    weight).
    Raises UsageError for a value out of range. Source: Ahn et al., CVPR 2019, for what is not ours.
    """

    power: float = 1.0
    walk: Literal["color", "none"] = "none"
    radius: int = 5
    sigma: float = 7.0
    walk_steps: int = 128
    restart: float = 0.0
    background: float = 0.25
    crf: Literal["none", "hard", "soft"] = "none"
    crf_confidence: float = 0.7
    crf_steps: int = 10
    crf_gaussian: tuple[float, ...] = (3.0, 3.0)
    crf_bilateral: tuple[float, ...] = (50.0, 5.0, 10.0)

    def __post_init__(self) -> None:
        positive: Callable[[Any], bool] = lambda value: 0 < value < math.inf  # noqa: E731
        check_option("power", self.power, positive(self.power), "a number > 0")
        check_option("walk", self.walk, self.walk in ("color", "none"), "color or none")
        near = whole(self.radius) and 1 <= self.radius <= 64
        check_option("radius", self.radius, near, "1 to 64 pixels at stride 4")
        check_option("sigma", self.sigma, positive(self.sigma), "a number > 0")
        for name in ("walk_steps", "crf_steps"):
            count = getattr(self, name)
            check_option(name, count, whole(count) and count >= 0, "a whole number >= 0")
        check_option("restart", self.restart, 0 <= self.restart <= 1, "a number from 0 to 1")
        check_option("background", self.background, 0 <= self.background <= 1, "a number from 0 to 1")
        check_option("crf", self.crf, self.crf in ("none", "hard", "soft"), "none, hard or soft")
        sure = 0 < self.crf_confidence <= 1
        check_option("crf_confidence", self.crf_confidence, sure, "a probability, above 0 and at most 1")
        for name, size in (("crf_gaussian", 2), ("crf_bilateral", 3)):
            value = getattr(self, name)
            check_option(name, value, len(value) == size and all(map(positive, value)), f"{size} numbers > 0")

    @classmethod
    def preset(cls, name: str) -> RefineConfig:
        """The settings of that name, see REFINE_PRESETS. Raises UsageError naming the presets there are."""
        return preset_of(REFINE_PRESETS, name)

    def with_settings(self, settings: Iterable[str]) -> RefineConfig:
        """Changed by texts such as "sigma=10", "crf_bilateral=50,5,10" (as `refine --set`)."""
        return dataclasses.replace(self, **changes_of(self, settings, _parse))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for run.toml."""
        return dataclasses.asdict(self)


def _parse(key: str, text: str) -> Any:
    if key in ("walk", "crf"):
        return text
    if key in ("crf_gaussian", "crf_bilateral"):
        return tuple(float(number) for number in text.split(","))
    return int(text) if key in ("radius", "walk_steps", "crf_steps") else float(text)


REFINE_PRESETS: dict[str, RefineConfig] = {  # ours, searched on horses 1-100 (README)
    "crf": RefineConfig(crf="soft", background=0.35),
    "color-walk": RefineConfig(walk="color", background=0.45),
    "color-walk-crf": RefineConfig(walk="color", crf="soft", background=0.45),
}
