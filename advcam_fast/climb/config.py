"""ClimbConfig: every number of the method, named presets, and changes by `key=value`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from advcam_fast.errors import UsageError
from advcam_fast.options import changes_of, check_option, preset_of, whole

DTYPES = {  # of the forward pass and of the gradient
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.float32, torch.bfloat16),
}


@dataclass(frozen=True)
class ClimbConfig:
    """How an image is climbed and its maps are summed; the defaults are the paper's (preset voc-cvpr2021).

    J = sum_n (y_c - sum_k y_k) - suppression * sum_p M |R - R0|, M = 1[R > mask_threshold * max R],
    x <- clamp(x + step_size * g / (max|g| + 1e-12), min x, max x), steps - 1 times; the map is the sum of `steps` CAMs
    over all scales. With momentum mu, v <- mu v + g / |g|_1 takes the place of g, its norm over both members of a pair.

    steps: CAMs summed at each scale, >= 1 (1: the plain CAM). steps_at_scale: exceptions, scale -> steps, of which
    those for other scales are not used.
    step_size: the paper's xi, > 0, in units of the normalised image. momentum: mu, 0 (the paper's) to 1.
    suppression: lambda, >= 0.
    mask_threshold: tau, 0 to 1. scales: of the image's sides, > 0, at most 8. base_side: scale 1 has the area of
    a square of this side in pixels, so that the work does not grow with the photo; 0: scale 1 is the image itself.
    flip: climb the mirror image with it.
    score: y = mean over positions of relu(z) or of z. other_classes: which y_k are subtracted: all of the head, those
    present in the image, or none. dtype: what the network runs in (the image stays fp32, or fp64 in fp64 runs); mixed:
    forward in fp32, gradients in bf16.
    Raises UsageError for a value out of range. Source: Lee et al., CVPR 2021, eq. 3-7, and the released code; momentum:
    Dong et al., CVPR 2018, eq. 6.
    """

    steps: int = 27
    step_size: float = 0.08
    momentum: float = 0.0
    suppression: float = 7.0
    mask_threshold: float = 0.5
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    steps_at_scale: Mapping[float, int] = field(default_factory=lambda: {0.5: 13})
    base_side: int = 0
    flip: bool = True
    score: Literal["relu_mean", "mean"] = "relu_mean"
    other_classes: Literal["all", "present", "none"] = "all"
    dtype: Literal["fp32", "fp64", "bf16", "mixed"] = "fp32"

    def __post_init__(self) -> None:
        check_option(
            "scales",
            self.scales,
            1 <= len(self.scales) <= 8 and all(0 < s < math.inf for s in self.scales),
            "1 to 8 scales > 0",
        )
        check_option("scales", self.scales, len(set(self.scales)) == len(self.scales), "each scale once")
        counts = (self.steps, *self.steps_at_scale.values())
        check_option("steps", list(counts), all(whole(n) and n >= 1 for n in counts), "whole numbers >= 1")
        check_option("step_size", self.step_size, 0 < self.step_size < math.inf, "a number > 0")
        check_option("momentum", self.momentum, 0 <= self.momentum <= 1, "a number from 0 to 1")
        check_option("suppression", self.suppression, 0 <= self.suppression < math.inf, "a number >= 0")
        check_option("mask_threshold", self.mask_threshold, 0 <= self.mask_threshold <= 1, "a number from 0 to 1")
        check_option(
            "base_side",
            self.base_side,
            whole(self.base_side) and self.base_side >= 0,
            "a number of pixels, or 0 for the image's size",
        )
        check_option("score", self.score, self.score in ("relu_mean", "mean"), "relu_mean or mean")
        check_option(
            "other_classes",
            self.other_classes,
            self.other_classes in ("all", "present", "none"),
            "all, present or none",
        )
        check_option("dtype", self.dtype, self.dtype in DTYPES, " or ".join(DTYPES))

    @classmethod
    def preset(cls, name: str) -> ClimbConfig:
        """The settings of that name, see PRESETS. Raises UsageError naming the presets there are."""
        return preset_of(PRESETS, name)

    def factor(self, scale: float, height: int, width: int) -> float:
        """What the sides of an image are multiplied by at a scale."""
        return scale * self.base_side / math.sqrt(height * width) if self.base_side else scale

    def steps_for(self, scale: float) -> int:
        return self.steps_at_scale.get(scale, self.steps)

    def with_settings(self, settings: Iterable[str]) -> ClimbConfig:
        """Changed by texts such as "steps=10", "scales=1,1.5", "steps_at_scale=0.5:13" (as `label --set`)."""
        changes = changes_of(self, settings, _parse)
        config = dataclasses.replace(self, **changes)
        if unused := set(changes.get("steps_at_scale", ())) - set(config.scales):
            raise UsageError(f"steps_at_scale: {min(unused):g} came, wanted is one of the scales {config.scales}")
        return config

    def as_dict(self) -> dict[str, Any]:
        """Plain values for run.toml: tables have text keys there."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {
            "scales": list(self.scales),
            "steps_at_scale": {repr(scale): steps for scale, steps in self.steps_at_scale.items()},
        }


def _parse(key: str, text: str) -> Any:
    if key == "scales":
        return tuple(float(s) for s in text.split(","))
    if key == "steps_at_scale":
        return {float(s): int(n) for s, n in (pair.split(":") for pair in text.split(",") if pair)}
    if key in ("score", "other_classes", "dtype"):
        return text
    if key == "flip":
        return {"true": True, "false": False}[text.lower()]
    return int(text) if key in ("steps", "base_side") else float(text)


_GENERAL = ClimbConfig(
    steps=10,
    step_size=0.03,
    suppression=0.0,
    scales=(0.5, 1.5, 2.0),
    base_side=420,
    steps_at_scale={},
    score="mean",
    other_classes="none",
)

PRESETS: dict[str, ClimbConfig] = {
    "voc-cvpr2021": ClimbConfig(),  # the paper's
    "general": _GENERAL,  # ours
    "fast": dataclasses.replace(  # ours
        _GENERAL, steps=6, step_size=0.05, momentum=0.9, scales=(0.5, 1.0, 2.0), steps_at_scale={0.5: 4, 1.0: 2}
    ),
    "cam": ClimbConfig(steps=1, steps_at_scale={}),  # ours: the plain CAM at the paper's scales
}
