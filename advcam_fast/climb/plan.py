"""From images, labels and scales to batches of same-sized views, in an order that depends on nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from advcam_fast.climb.config import ClimbConfig


class View(NamedTuple):
    image: int  # index into the images
    scale: int  # index into config.scales


class Batch(NamedTuple):
    """Views of one size, with equally many labels and steps: one tensor holds them all."""

    views: tuple[View, ...]
    steps: int


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """round-half-to-even(side * scale), at least 1, as data.resize_image makes it."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The next multiples of 16: what full-size maps are resized to before they are cropped."""
    return -(-height // 16) * 16, -(-width // 16) * 16


def plan_batches(sizes: Sequence[tuple[int, int]], label_counts: Sequence[int], config: ClimbConfig) -> list[Batch]:
    """All views of images of `sizes` (height, width), those alike together; images without labels have none."""
    alike: dict[tuple[int, int, int, int], list[View]] = defaultdict(list)
    for image, (size, labels) in enumerate(zip(sizes, label_counts, strict=True)):
        for index, scale in enumerate(config.scales if labels else ()):
            height, width = scaled_size(*size, config.factor(scale, *size))
            alike[height, width, labels, config.steps_for(scale)].append(View(image, index))
    return [Batch(tuple(views), steps) for (*_, steps), views in sorted(alike.items())]
