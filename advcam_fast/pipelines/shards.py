"""Static shards of a data set: equally much work for every process, predicted before any is done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from advcam_fast.climb import ClimbConfig, climb_cost
from advcam_fast.data import ImageError, Item, image_header
from advcam_fast.models.ragged import Size

READING = 0.1  # what decoding and storing an image cost, in steps of one label at its own size
_READERS = 16  # of headers: on a network's drive they mostly wait


def image_sizes(items: Sequence[Item]) -> list[Size | None]:
    """(height, width) of every image from its header; None where it cannot be read."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_size, items))


def item_costs(items: Sequence[Item], config: ClimbConfig, predicted_labels: int | None = None) -> list[float]:
    """The predicted cost of every item, see climb_cost; predicted_labels: of an image whose tags do not count.

    Headers are read only where the size of an image matters to its climb.
    """
    side = config.base_side
    sizes = [(side, side)] * len(items) if side else image_sizes(items)
    costs = []
    for item, size in zip(items, sizes, strict=True):
        if size is None or item.problem:
            costs.append(0.0)
            continue
        labels = len(item.labels or ()) if predicted_labels is None else predicted_labels
        costs.append(READING * size[0] * size[1] + climb_cost(*size, labels, config))
    return costs


def balanced_shards(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of `costs` in `count` shards of nearly equal sums, each in order: the largest first, to the emptiest."""
    shards: list[list[int]] = [[] for _ in range(count)]
    loads = [(0.0, 0, number) for number in range(count)]  # of equal sums the one with fewer items
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, items, number = heapq.heappop(loads)
        shards[number].append(index)
        heapq.heappush(loads, (load + costs[index], items + 1, number))
    return [sorted(shard) for shard in shards]


def _size(item: Item) -> Size | None:
    try:
        header = image_header(item.path)
        return header.height, header.width
    except ImageError:
        return None
