"""label --plan: the time, memory and disk of a labelling, from the headers of its images and a probe of a few."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advcam_fast.climb import climb_cost, view_sizes
from advcam_fast.data import Dataset, Item
from advcam_fast.errors import UsageError
from advcam_fast.models.footprint import available_bytes
from advcam_fast.models.ragged import Size
from advcam_fast.pipelines.label import GPU_IMAGES, Labeller
from advcam_fast.pipelines.shards import image_sizes
from advcam_fast.store import Record, encoded_bytes

MOST_HEADERS = 2000  # images whose sizes are looked at, evenly spread over the data set
PROBED = (0.1, 0.5, 0.9)  # of the images, ordered by what they cost


class Probe(NamedTuple):
    """An image that was labelled: its size, the number of its classes, and the seconds it took."""

    id: str
    size: Size
    labels: int
    seconds: float
    cost: float


class _Known(NamedTuple):
    item: Item
    size: Size


def plan_label(dataset: Dataset, todo: Sequence[Item], labeller: Labeller, out: Path, machines: int) -> dict[str, Any]:
    """What labelling `todo` will take on `machines` like this one, each with a process a GPU, or one on its CPUs.

    Seconds are of the slowest machine, between those that the fastest and the slowest probe say; memory is of one
    process; bytes on disk are counted, not estimated. Nothing is written. Raises UsageError where no image can be read.
    """
    sample = todo[:: -(-len(todo) // MOST_HEADERS) or 1]
    known = [_Known(item, size) for item, size in zip(sample, image_sizes(sample), strict=True) if size]
    known = [each for each in known if not each.item.problem]
    if not known:
        raise UsageError(f"data {dataset.spec!r}: of {len(todo)} images to do none can be read: nothing to plan")
    probes = _probe(dataset, known, labeller)
    labels = [_labels(each.item, labeller, probes) for each in known]
    config, maker = labeller.maker.config, labeller.maker
    costs = [climb_cost(*each.size, count, config) for each, count in zip(known, labels, strict=True)]
    share = len(todo) / len(sample)  # of the whole for one of the sample; what cannot be read costs nothing
    processes = max(1, torch.cuda.device_count()) if maker.device.type == "cuda" else 1
    rates = [probe.seconds / probe.cost for probe in probes]
    mean = sum(probe.seconds for probe in probes) / sum(probe.cost for probe in probes)
    seconds = [max(sum(costs) * share / (machines * processes), max(costs)) * r for r in (mean, min(rates), max(rates))]
    needed = [_needed(each.size, labeller) for each in known]
    beyond = max(needed) - max(_needed(probe.size, labeller) for probe in probes)
    free = available_bytes(maker.device)
    disk = [_bytes_on_disk(each, count, labeller) for each, count in zip(known, labels, strict=True)]
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    return {
        "images": len(dataset.items),
        "to_do": len(todo),
        "unreadable": round((len(sample) - len(known)) * share),
        "labels_per_image": sum(labels) / len(labels),
        "machines": machines,
        "processes": machines * processes,
        "seconds": seconds[0],
        "seconds_from": seconds[1],
        "seconds_to": seconds[2],
        "memory": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + beyond),
        "memory_free": free,
        "too_large": 0 if free is None else round(sum(need > free for need in needed) * share),
        "disk": round(sum(disk) * share),
        "disk_free": shutil.disk_usage(there).free,
        "probes": [probe._asdict() for probe in probes],
    }


def _probe(dataset: Dataset, known: Sequence[_Known], labeller: Labeller) -> list[Probe]:
    """Labels a few images, each twice: kernels are made for a size when it comes for the first time.

    How often that will be is what share of the sizes is new.
    """
    config, on_gpu = labeller.maker.config, labeller.maker.device.type == "cuda"
    by_cost = sorted(known, key=lambda each: climb_cost(each.size[0], each.size[1], 1, config))
    chosen = dict.fromkeys(by_cost[round(part * (len(by_cost) - 1))] for part in PROBED)
    new = len({each.size for each in known}) / len(known)
    probes = []
    for number, (item, size) in enumerate(chosen):
        same = [item] * (GPU_IMAGES if on_gpu else 1)
        times = []
        for _ in range(3 if number == 0 else 2):  # the very first pays for much else
            begin = time.perf_counter()
            outcomes = [labeller.packed(*found) for found in labeller.results(dataset, same)]
            times.append((time.perf_counter() - begin) / len(same))
        cost = climb_cost(*size, len(outcomes[0].labels), config)
        if not outcomes[0].reason and cost:
            probes.append(Probe(item.id, size, len(outcomes[0].labels), new * times[-2] + (1 - new) * times[-1], cost))
    if not probes:
        raise UsageError(
            f"data {dataset.spec!r}: of {len(chosen)} images tried none could be labelled: nothing to plan"
        )
    return probes


def _labels(item: Item, labeller: Labeller, probes: Sequence[Probe]) -> float:
    if labeller.rule.predicted:
        return sum(probe.labels for probe in probes) / len(probes)
    return len(set(map(labeller.class_indices.__getitem__, item.labels or ())))


def _needed(size: Size, labeller: Labeller) -> float:
    maker = labeller.maker
    return max(maker.pair_bytes(*view) or 0.0 for view in view_sizes(*size, maker.config))


def _bytes_on_disk(known: _Known, labels: float, labeller: Labeller) -> float:
    none, one = (encoded_bytes(*known.size, count, labeller.full, labeller.store) for count in (0, 1))
    content = none + labels * (one - none)
    line = Record(known.item.id, "ok", time.time(), "", (), tuple(known.item.labels or ()), "0" * 64, round(content))
    return content + len(line.line())
