"""From images, labels and scales to batches of views, in an order that depends on nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from advcam_fast.climb.config import ClimbConfig
from advcam_fast.models.ragged import Size


class View(NamedTuple):
    image: int  # index into the images
    scale: int  # index into config.scales


class Batch(NamedTuple):
    """Views with equally many labels and steps, and of sizes that one canvas holds with little waste."""

    views: tuple[View, ...]
    steps: int


MOST_WASTE = 0.1  # of a canvas's pixels that may belong to no view


def scaled_size(height: int, width: int, scale: float) -> Size:
    """round-half-to-even(side * scale), at least 1, as data.resize_image makes it."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(height: int, width: int) -> Size:
    """The next multiples of 16: what full-size maps are resized to before they are cropped."""
    return -(-height // 16) * 16, -(-width // 16) * 16


def view_sizes(height: int, width: int, config: ClimbConfig) -> list[Size]:
    """Of an image at each of the scales."""
    return [scaled_size(height, width, config.factor(scale, height, width)) for scale in config.scales]


def climb_cost(height: int, width: int, labels: float, config: ClimbConfig) -> float:
    """Pixels x labels x CAMs of all scales: what an image's climb costs, in units that only the network knows."""
    views = zip(view_sizes(height, width, config), map(config.steps_for, config.scales), strict=True)
    return float(labels * sum(size[0] * size[1] * steps for size, steps in views))


def plan_batches(
    sizes: Sequence[Size], label_counts: Sequence[int], config: ClimbConfig, ragged: bool = False
) -> list[Batch]:
    """All views of images of `sizes` (height, width), those alike together; images without labels have none.

    ragged: alike may be those whose sizes are near each other; else it is those of one size.
    """
    alike: dict[tuple[int, int], dict[Size, list[View]]] = defaultdict(lambda: defaultdict(list))
    for image, (size, labels) in enumerate(zip(sizes, label_counts, strict=True)):
        for index, scale in enumerate(config.scales if labels else ()):
            view_size = scaled_size(*size, config.factor(scale, *size))
            alike[labels, config.steps_for(scale)][view_size].append(View(image, index))
    batches = []
    for (_, steps), by_size in sorted(alike.items()):
        for group in _groups(by_size) if ragged else [[size] for size in sorted(by_size)]:
            batches.append(Batch(tuple(view for size in group for view in by_size[size]), steps))
    return batches


def _groups(by_size: Mapping[Size, Sequence[View]]) -> list[list[Size]]:
    """Sizes that share a canvas, each with the first group, from the smallest size on, that wastes little with it."""
    groups: list[tuple[list[Size], Size, int, int]] = []  # sizes, canvas, views, pixels of the views
    for size in sorted(by_size, key=lambda size: (size[0] * size[1], size)):
        count = len(by_size[size])
        for at, (sizes, canvas, views, pixels) in enumerate(groups):
            wider = max(canvas[0], size[0]), max(canvas[1], size[1])
            own, all_views = pixels + count * size[0] * size[1], views + count
            if own >= (1 - MOST_WASTE) * wider[0] * wider[1] * all_views:
                groups[at] = ([*sizes, size], wider, all_views, own)
                break
        else:
            groups.append(([size], size, count, count * size[0] * size[1]))
    return [sizes for sizes, *_ in groups]
