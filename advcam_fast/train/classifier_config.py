"""How a classifier is trained, and the recipes for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from advcam_fast.options import changes_of, check_option, parsed_like, preset_of

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("poly", "cosine", "stairs"),
    "view": ("long-side", "random-area", "square"),
    "autocast": ("none", "bf16"),
    "batch_norm": ("frozen", "trained"),
    "new_head": ("probe", "zero", "random"),
}


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained; every rate is multiplied by the schedule's share, 1 at the beginning.

    rate, head_rate: of the features and of the head. new_head: one that is not of the weights begins as a linear probe
    of the features (Kumar et al., ICLR 2022), at 0, or as the library draws it. schedule: poly,
    (1 - step / steps)^power; cosine; stairs, a tenth every `stair` epochs. warm_up: share of all steps in which the
    rates rise from 0. weight_decay: adamw leaves out biases and norms, sgd does not.
    batch: images a step, over all processes. view: long-side, the long side drawn from `sizes` in pixels; random-area,
    a rectangle of a share of the image drawn from `sizes`; square, the whole image squeezed to a side of sizes[1].
    Then a crop, mirrored or not; 0 (the mean colour) where no image is. color: brightness, contrast, saturation and hue
    are changed. test_side: of a whole image when it is judged: its short side, or for square both.
    smoothing: of single labels. ema: decay of the averaged weights, which then are what comes out, lower in the first
    steps; 0 is none. batch_norm: frozen keeps the statistics, scale and shift learn. frozen_stages: so many of the
    backbone's five stages do not learn; 5 is all features, of any backbone. save_every: steps between checkpoints.
    Raises UsageError for a number out of its range.
    """

    optimizer: str = "adamw"
    rate: float = 3e-5
    head_rate: float = 3e-4
    new_head: str = "probe"
    schedule: str = "cosine"
    power: float = 0.9
    stair: int = 15
    warm_up: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.05
    batch: int = 16
    epochs: int = 20
    view: str = "random-area"
    sizes: tuple[float, float] = (0.35, 1.0)
    crop: int = 288
    mirror: bool = True
    color: bool = True
    test_side: int = 288
    smoothing: float = 0.0
    ema: float = 0.99
    autocast: str = "none"
    batch_norm: str = "frozen"
    frozen_stages: int = 0
    seed: int = 0
    workers: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            check_option(name, value, value in choices, " or ".join(choices))
        least = dict(batch=1, epochs=1, crop=8, test_side=8, stair=1, seed=0, workers=0, save_every=1)
        for name, limit in {**least, "power": 0, "weight_decay": 0}.items():
            value = getattr(self, name)
            check_option(name, value, limit <= value < math.inf, f"{limit} or more")
        for name in ("rate", "head_rate"):
            check_option(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("momentum", "ema", "smoothing", "warm_up"):
            check_option(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 to below 1")
        check_option("frozen_stages", self.frozen_stages, self.frozen_stages in range(6), "0 to 5")
        most = 1.0 if self.view == "random-area" else 100_000
        right = len(self.sizes) == 2 and 0 < self.sizes[0] <= self.sizes[1] <= most
        check_option(
            "sizes", self.sizes, right, f"two numbers above 0 to {most:g}, the smaller one first, for {self.view}"
        )

    @classmethod
    def recipe(cls, name: str) -> ClassifierConfig:
        """One of RECIPES; raises UsageError naming those there are."""
        return preset_of(RECIPES, name)

    def with_settings(self, settings: Iterable[str]) -> ClassifierConfig:
        """Changed by texts such as "epochs=5", "sizes=320,640" (as `train-classifier --set`)."""
        defaults = asdict(ClassifierConfig())
        return replace(self, **changes_of(self, settings, lambda key, text: parsed_like(defaults[key], text)))

    def share(self, step: int, steps: int, per_epoch: int) -> float:
        """What a rate is multiplied by at a step."""
        warm = self.warm_up * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.schedule == "poly":
            return float((1 - step / steps) ** self.power)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        return float(0.1 ** (step // per_epoch // self.stair))

    def settings(self) -> dict[str, Any]:
        """What a resumed training must have the same: all but what changes no bit of the result."""
        chosen = {key: value for key, value in asdict(self).items() if key not in ("workers", "save_every")}
        return {**chosen, "sizes": list(self.sizes)}


# The method's: METHOD's settings, and two facts of the released code: the stem and the first two layers do not learn,
# and its momentum is its weight decay, handed over at the wrong place.
_VOC = ClassifierConfig(
    optimizer="sgd",
    rate=0.1,
    head_rate=1.0,
    new_head="random",
    schedule="poly",
    warm_up=0.0,
    momentum=1e-4,
    weight_decay=1e-4,
    batch=16,
    epochs=5,
    view="long-side",
    sizes=(320, 640),
    crop=512,
    color=False,
    test_side=448,
    ema=0.0,
    frozen_stages=3,
)

# Ours, in the manner of Choe et al., CVPR 2020: whole images squeezed to 256 x 256, crops of 224, a tenth of the rate
# every 15 of 50 epochs on CUB and every 3 of 10 on ImageNet; there the rates were searched for each network.
_CUB = replace(
    _VOC,
    rate=0.001,
    head_rate=0.01,
    schedule="stairs",
    momentum=0.9,
    batch=32,
    epochs=50,
    stair=15,
    view="square",
    sizes=(256, 256),
    crop=224,
    test_side=224,
    batch_norm="trained",
    frozen_stages=0,
)

RECIPES = {
    "modern": ClassifierConfig(),
    "voc-cvpr2021": _VOC,
    "cub-wsol": _CUB,
    "imagenet-wsol": replace(_CUB, epochs=10, stair=3),
}
