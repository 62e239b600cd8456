"""RefineConfig: every number between maps and masks, named presets, and changes by `key=value`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from advcam_fast.options import changes_of, check_option, parsed_like, preset_of, whole


@dataclass(frozen=True)
class RefineConfig:
    """How the maps of an image become its mask, and the masks of its instances.

    maps <- maps^power; walked at stride 4; enlarged, divided by their largest value over all classes; label = argmax
    over the background's score and the maps; then the dense CRF. For instances each map is cut into the clusters of
    ops.centroid_walk before it is walked, and label = argmax over the background's score and all of these.

    power: > 0; above 1 the walk starts from what is surest. walk: color, by the image's own colours (ops.color_walk);
    boundary, by that of an affinity net (ops.random_walk); or none. radius: of the walk, 1 to 64 pixels at stride 4.
    sigma: of its colours, in levels of 0 to 255, > 0. beta: of the boundary, affinity = (1 - boundary)^beta, > 0.
    walk_steps: >= 0. restart: what each step brings back of the start, 0 to 1. background: the score that a class must
    exceed, 0 to 1. crf: none; hard, on the labels of the argmax, each sure by crf_confidence (the method's); soft, on
    the scores themselves as probabilities. crf_steps: of mean field, >= 0. crf_gaussian: (sxy, weight). crf_bilateral:
    (sxy, srgb, weight). centroid_steps: along the displacement, >= 0. least_instance: connected parts of an instance
    of a smaller share of the image's pixels are left out, 0 to 1.
    Raises UsageError for a value out of range. Source: Ahn et al., CVPR 2019, for what is not ours.
    """

    power: float = 1.0
    walk: Literal["color", "boundary", "none"] = "none"
    radius: int = 5
    sigma: float = 7.0
    beta: float = 10.0
    walk_steps: int = 128
    restart: float = 0.0
    background: float = 0.25
    crf: Literal["none", "hard", "soft"] = "none"
    crf_confidence: float = 0.7
    crf_steps: int = 10
    crf_gaussian: tuple[float, ...] = (3.0, 3.0)
    crf_bilateral: tuple[float, ...] = (50.0, 5.0, 10.0)
    centroid_steps: int = 300
    least_instance: float = 0.01

    def __post_init__(self) -> None:
        positive: Callable[[Any], bool] = lambda value: 0 < value < math.inf  # noqa: E731
        check_option("power", self.power, positive(self.power), "a number > 0")
        check_option("walk", self.walk, self.walk in ("color", "boundary", "none"), "color, boundary or none")
        near = whole(self.radius) and 1 <= self.radius <= 64
        check_option("radius", self.radius, near, "1 to 64 pixels at stride 4")
        check_option("sigma", self.sigma, positive(self.sigma), "a number > 0")
        check_option("beta", self.beta, positive(self.beta), "a number > 0")
        for name in ("walk_steps", "crf_steps", "centroid_steps"):
            count = getattr(self, name)
            check_option(name, count, whole(count) and count >= 0, "a whole number >= 0")
        for name in ("restart", "background", "least_instance"):
            value = getattr(self, name)
            check_option(name, value, 0 <= value <= 1, "a number from 0 to 1")
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
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        parse = lambda key, text: parsed_like(defaults[key], text)  # noqa: E731
        return dataclasses.replace(self, **changes_of(self, settings, parse))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for run.toml."""
        return dataclasses.asdict(self)


REFINE_PRESETS: dict[str, RefineConfig] = {
    "irn": RefineConfig(power=1.5, walk="boundary", walk_steps=256, background=0.25),  # the paper's
    # ours, searched on horses 1-100 (docs/presets.md)
    "crf": RefineConfig(crf="soft", background=0.35),
    "color-walk": RefineConfig(walk="color", background=0.45),
    "color-walk-crf": RefineConfig(walk="color", crf="soft", background=0.45),
}
