"""Looks for a preset: one climb an image, judged after every number of steps and for every set of its scales.

python benchmarks/explore.py horses --items 1-100 --climb "general;steps=10;scales=0.5,1,1.5,2"
python benchmarks/explore.py coco --items 1-100:2 --climb "general;steps=10;scales=0.5,1,1.5,2;other_classes=present"

Results go to benchmarks/results/explore_SET.json; `--table` prints the best rows of it. Cost is in pixels climbed times
steps, over those of a square of 420 pixels: a pair's step at scale 1 is 1 in the preset `general`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import quality
import torch
from quality import THRESHOLDS, Case
from torch import Tensor

import advcam_fast as af
from advcam_fast import ops
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.climber import Climber, Head
from advcam_fast.data import read_image, read_mask, resize_image
from advcam_fast.metrics.foreground_iou import best_threshold, bootstrap_best, interval, iou_curve

COST_SIDE = 420  # pixels
Row = tuple[tuple[float, ...], int]  # scales, steps


class Recorder(Climber):
    """A climber that keeps the pair map of every step."""

    def __init__(self, model: af.CamModel, config: ClimbConfig) -> None:
        super().__init__(model, config)
        self.seen: list[Tensor] = []

    def _loss(self, logits: Tensor, head: Head, initial: Tensor | None) -> ops.ClimbLoss:
        loss = super()._loss(logits, head, initial)
        self.seen.append(loss.pair_map)
        return loss

    def sums(self, view: Tensor, labels: list[int], steps: int) -> Tensor:
        """uint8 [1, 3, H, W] -> the maps' sums after 1, 2, ... steps: [steps, labels, h, w]."""
        self.seen.clear()
        self.climb(view, torch.tensor([labels]), steps, 1)
        clean, later = torch.cat(self.seen[: len(labels)]), self.seen[len(labels) :]
        climbed = torch.cat(later).unflatten(0, (len(labels), steps - 1)).transpose(0, 1)
        return torch.cat([clean[None], climbed]).cumsum(0)


def rows_of(config: ClimbConfig) -> list[Row]:
    sets = [s for n in range(1, len(config.scales) + 1) for s in itertools.combinations(config.scales, n)]
    counts = [n for n in (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 27) if n <= config.steps]
    return [(scales, steps) for scales in sets for steps in counts]


def cost(config: ClimbConfig, row: Row, sizes: list[tuple[int, int]]) -> float:
    """Mean over the images of pixels times steps; a last step without a gradient counts as half a step."""
    pixels = [sum(h * w * config.factor(scale, h, w) ** 2 for scale in row[0]) for h, w in sizes]
    return sum(pixels) / len(pixels) / COST_SIDE**2 * (row[1] - 0.5)


def curves_of(recorder: Recorder, case: Case, rows: list[Row], foreground_only: bool) -> tuple[list[Tensor], Any]:
    """For every label of an image [rows, T], and the image's size."""
    config = recorder.config
    image, truth = read_image(case.item.path), read_mask(case.item.mask)
    height, width = int(image.shape[1]), int(image.shape[2])
    sums = {
        scale: recorder.sums(resize_image(image, config.factor(scale, height, width))[None], case.classes, config.steps)
        for scale in config.scales
    }
    padded = (-(-height // 16) * 16, -(-width // 16) * 16)
    found = []
    for index, label in enumerate(case.classes):
        curves = []
        for scales, steps in rows:
            maps = [sums[scale][steps - 1, index][None] for scale in scales]
            full = ops.cam_accumulate(maps, torch.zeros(1, height, width), padded, normalise=True)
            curves.append(iou_curve(full[0], truth, 1 if foreground_only else label + 1, THRESHOLDS))
        found.append(torch.stack(curves))
    return found, (height, width)


def explore(models: list[af.CamModel], cases: list[Case], config: ClimbConfig) -> dict[str, Any]:
    begin = time.monotonic()
    recorders = [Recorder(model, config) for model in models]
    rows = rows_of(config)
    found, sizes = [], []
    for number, case in enumerate(cases):
        curves, size = curves_of(recorders[case.model], case, rows, len(models) == 1)
        found += curves
        sizes.append(size)
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    curves = torch.stack(found)  # [N, rows, T]
    results = []
    for index, (scales, steps) in enumerate(rows):
        plain = rows.index((scales, 1))
        samples = bootstrap_best(curves[:, [plain, index]])
        best = best_threshold(curves[:, index], THRESHOLDS)
        gain = best.value - best_threshold(curves[:, plain], THRESHOLDS).value
        results.append(
            {
                "scales": scales,
                "steps": steps,
                "cost": cost(config, (scales, steps), sizes),
                "iou": best.value,
                "interval": interval(samples[:, 1]),
                "threshold": best.threshold,
                "gain": gain,
                "gain_interval": interval(samples[:, 1] - samples[:, 0]),
            }
        )
    return {
        "config": config.as_dict(),
        "items": len(curves),
        "seconds": time.monotonic() - begin,
        "rows": results,
    }


def table(results: dict[str, Any], most: int) -> None:
    """The best rows of every climb."""
    for name, climb in results.items():
        print(f"{name} ({climb['items']} maps)")
        for row in sorted(climb["rows"], key=lambda row: -row["iou"])[:most]:
            low, high = row["interval"]
            scales = ",".join(f"{scale:g}" for scale in row["scales"])
            gain = f"{row['gain']:+.3f} [{row['gain_interval'][0]:+.3f}, {row['gain_interval'][1]:+.3f}]"
            print(
                f"  {row['iou']:.3f} [{low:.3f}, {high:.3f}]  gain {gain}  scales {scales:13} "
                f"steps {row['steps']:2}  cost {row['cost']:.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("horses", "coco"))
    parser.add_argument("--items", default="1-100", help="FIRST-LAST[:STEP], counted from 1")
    parser.add_argument("--climb", action="append", default=[], help="PRESET or 'PRESET;KEY=VALUE;...'")
    parser.add_argument("--table", type=int, nargs="?", const=5, default=0, metavar="ROWS", help="print the best rows")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/explore_SET.json")
    options = parser.parse_args()
    out = options.out or quality.RESULTS / f"explore_{options.set}.json"
    if options.climb:
        models, cases = quality.load(options.set, options.items)
        for text in options.climb:
            name, *settings = text.split(";")
            found = explore(models, cases, ClimbConfig.preset(name).with_settings(settings))
            results = json.loads(out.read_text()) if out.exists() else {}  # read again: another run may have written
            results[f"{text} on {options.items}"] = found
            out.write_text(json.dumps(results, indent=1) + "\n")
    if options.table or not options.climb:
        table(json.loads(out.read_text()), options.table or 5)


if __name__ == "__main__":
    main()
