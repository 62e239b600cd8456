"""Looks for a preset: one climb an image, judged after every number of steps and for every set of its scales.

python benchmarks/explore.py horses --items 1-100 --climb "general;steps=10;scales=0.5,1,1.5,2"
python benchmarks/explore.py coco --items 1-100:2 --climb "general;steps=10;scales=0.5,1,1.5,2;other_classes=present"
python benchmarks/explore.py horses --items 1-100 --mixed --climb "general;steps=10;scales=0.5,1,1.5,2"

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
from advcam_fast.climb.plan import padded_size
from advcam_fast.data import read_image, read_mask, resize_image
from advcam_fast.metrics.foreground_iou import best_threshold, bootstrap_best, interval, iou_curve

COST_SIDE = 420  # pixels
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 27)  # steps
MIXED_COUNTS = (2, 4, 6, 10)
Row = dict[float, int]  # scale -> steps


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


def rows_of(config: ClimbConfig, mixed: bool) -> list[Row]:
    """Every set of scales with every number of steps; mixed: sets of three and more, each scale with its own number."""
    sizes = range(3 if mixed else 1, len(config.scales) + 1)
    sets = [scales for size in sizes for scales in itertools.combinations(config.scales, size)]
    plain = [dict.fromkeys(scales, n) for scales in sets for n in COUNTS if n <= config.steps]
    if not mixed:
        return plain
    counts = [n for n in MIXED_COUNTS if n <= config.steps]
    products = [
        dict(zip(scales, c, strict=True)) for scales in sets for c in itertools.product(counts, repeat=len(scales))
    ]
    return plain + [row for row in products if row not in plain]


def cost(config: ClimbConfig, row: Row, sizes: list[tuple[int, int]]) -> float:
    """Mean over the images of pixels times steps; a last step, without a gradient, counts as half a step."""
    pixels = [h * w * config.factor(scale, h, w) ** 2 * (n - 0.5) for h, w in sizes for scale, n in row.items()]
    return sum(pixels) / len(sizes) / COST_SIDE**2


def curves_of(recorder: Recorder, case: Case, rows: list[Row], foreground_only: bool) -> tuple[list[Tensor], Any]:
    """For every label of an image [rows, T], and the image's size."""
    config = recorder.config
    image, truth = read_image(case.item.path), read_mask(case.item.mask)
    height, width = int(image.shape[1]), int(image.shape[2])
    sums = {
        scale: recorder.sums(resize_image(image, config.factor(scale, height, width))[None], case.classes, config.steps)
        for scale in config.scales
    }
    padded = padded_size(height, width)
    found = []
    for index, label in enumerate(case.classes):
        curves = []
        for row in rows:
            maps = [sums[scale][steps - 1, index][None] for scale, steps in row.items()]
            full = ops.cam_accumulate(maps, torch.zeros(1, height, width), padded, normalise=True)
            curves.append(iou_curve(full[0], truth, 1 if foreground_only else label + 1, THRESHOLDS))
        found.append(torch.stack(curves))
    return found, (height, width)


def explore(models: list[af.CamModel], cases: list[Case], config: ClimbConfig, mixed: bool) -> dict[str, Any]:
    begin = time.monotonic()
    recorders = [Recorder(model, config) for model in models]
    rows = rows_of(config, mixed)
    found, sizes = [], []
    for number, case in enumerate(cases):
        curves, size = curves_of(recorders[case.model], case, rows, len(models) == 1)
        found += curves
        sizes.append(size)
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    curves = torch.stack(found)  # [N, rows, T]
    results = []
    for index, row in enumerate(rows):
        plain = rows.index(dict.fromkeys(row, 1))
        samples = bootstrap_best(curves[:, [plain, index]])
        best = best_threshold(curves[:, index], THRESHOLDS)
        gain = best.value - best_threshold(curves[:, plain], THRESHOLDS).value
        results.append(
            {
                "scales": list(row),
                "steps": list(row.values()),
                "cost": cost(config, row, sizes),
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


def text_of(results: dict[str, Any]) -> str:
    """JSON with a row a line."""
    climbs = []
    for name, climb in results.items():
        rows = ",\n  ".join(json.dumps(row) for row in climb["rows"])
        rest = json.dumps({key: value for key, value in climb.items() if key != "rows"})
        climbs.append(f'{json.dumps(name)}: {rest[:-1]}, "rows": [\n  {rows}\n ]}}')
    return "{\n " + ",\n ".join(climbs) + "\n}\n"


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no cheaper one equals, the best first."""
    found: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["cost"], -row["iou"])):
        if not found or row["iou"] > found[-1]["iou"]:
            found.append(row)
    return found[::-1]


def table(results: dict[str, Any], most: int) -> None:
    """The best rows of every climb that are worth their cost: scale x steps."""
    for name, climb in results.items():
        print(f"{name} ({climb['items']} maps)")
        for row in frontier(climb["rows"])[:most]:
            low, high = row["interval"]
            scales = ", ".join(f"{scale:g}x{n}" for scale, n in zip(row["scales"], row["steps"], strict=True))
            gain = f"{row['gain']:+.3f} [{row['gain_interval'][0]:+.3f}, {row['gain_interval'][1]:+.3f}]"
            print(f"  {row['iou']:.3f} [{low:.3f}, {high:.3f}]  gain {gain}  cost {row['cost']:4.1f}  {scales}")


def draw(results: dict[str, Any], out: Path) -> None:
    """Quality against cost: the rows of every climb that are worth their cost, with their intervals."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for name, climb in results.items():
        rows = [row for row in frontier(climb["rows"])[::-1] if row["cost"] >= 1]
        costs, values = [row["cost"] for row in rows], [row["iou"] for row in rows]
        (line,) = axis.plot(costs, values, marker="o", markersize=3, label=name)
        lows, highs = zip(*(row["interval"] for row in rows), strict=True)
        axis.fill_between(costs, lows, highs, alpha=0.08, color=line.get_color())
    axis.set(xscale="log", xlabel="cost: pixels x steps", ylabel="mean foreground IoU, best threshold")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("horses", "coco"))
    parser.add_argument("--items", default="1-100", help="FIRST-LAST[:STEP], counted from 1")
    parser.add_argument("--climb", action="append", default=[], help="PRESET or 'PRESET;KEY=VALUE;...'")
    parser.add_argument("--mixed", action="store_true", help="each scale with its own number of steps")
    parser.add_argument("--table", type=int, nargs="?", const=5, default=0, metavar="ROWS", help="print the best rows")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="quality against cost, of all climbs in the file")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/explore_SET.json")
    options = parser.parse_args()
    out = options.out or quality.RESULTS / f"explore_{options.set}.json"
    if options.climb:
        models, cases = quality.load(options.set, options.items)
        for text in options.climb:
            name, *settings = text.split(";")
            found = explore(models, cases, ClimbConfig.preset(name).with_settings(settings), options.mixed)
            results = json.loads(out.read_text()) if out.exists() else {}  # read again: another run may have written
            results[f"{text} on {options.items}{', mixed' if options.mixed else ''}"] = found
            out.write_text(text_of(results))
    if options.draw:
        draw(json.loads(out.read_text()), options.draw)
    if options.table or not (options.climb or options.draw):
        table(json.loads(out.read_text()), options.table or 5)


if __name__ == "__main__":
    main()
