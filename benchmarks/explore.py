"""Looks for a preset: one climb an image, judged after every number of steps and for every set of its scales.

python benchmarks/explore.py horses --items 1-100 --climb "general;steps=10;scales=0.5,1,1.5,2"
python benchmarks/explore.py coco --items 1-100:2 --climb "general;steps=10;scales=0.5,1,1.5,2;other_classes=present"
python benchmarks/explore.py horses --items 1-100 --rows mixed --climb "general;steps=10;scales=0.5,1,1.5,2"
python benchmarks/explore.py horses --items 1-100:4 --rows last --stop 0.1 --climb fast --climb "fast;schedule=cosine"

A climb may also go another way (benchmarks/ways.py). Where the first climb's own scales and steps are a row, every row
has its paired difference from that one. `--stop` ends a scale when its map has settled.

Results go to benchmarks/results/explore_SET.json; `--table` prints the best rows of it. Cost is in pixels climbed times
steps, over those of a square of 420 pixels: a pair's step at scale 1 is 1 in the preset `general`. With `--keep DIR` a
stopped run goes on, and other rows of the same climb cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import quality
import torch
from kept import Kept
from quality import THRESHOLDS, Case
from torch import Tensor
from ways import Recorder, Way, climb_of

import advcam_fast as af
from advcam_fast import ops
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.plan import padded_size
from advcam_fast.data import read_image, read_mask
from advcam_fast.metrics.foreground_iou import best_threshold, bootstrap_best, interval, iou_curve

COST_SIDE = 420  # pixels
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 27)  # steps
MIXED_COUNTS = (2, 4, 6, 10)
Row = dict[float, int]  # scale -> steps
Price = Callable[[Row, tuple[int, int]], float]


class Found(NamedTuple):
    """What a climb of all cases left."""

    config: ClimbConfig
    rows: list[Row]
    stops: list[float]
    curves: Tensor  # [N, rows + stops, T]
    costs: list[float]  # of rows and stops, mean of the maps


def rows_of(config: ClimbConfig, kind: str) -> list[Row]:
    """Sets of scales, each scale with its number of steps.

    equal: every set of scales with every number of steps. mixed: also sets of three and more, each scale with its own
    number. last: the config's scales and steps, of the last scale any number; and the plain CAM.
    """
    if kind == "last":
        own = {scale: config.steps_for(scale) for scale in config.scales}
        last = config.scales[-1]
        return [dict.fromkeys(own, 1)] + [own | {last: n} for n in range(2, own[last] + 1)]
    sizes = range(1 if kind == "equal" else 3, len(config.scales) + 1)
    sets = [scales for size in sizes for scales in itertools.combinations(config.scales, size)]
    plain = [dict.fromkeys(scales, n) for scales in sets for n in COUNTS if n <= config.steps]
    if kind == "equal":
        return plain
    counts = [n for n in MIXED_COUNTS if n <= config.steps]
    products = [
        dict(zip(scales, c, strict=True)) for scales in sets for c in itertools.product(counts, repeat=len(scales))
    ]
    return plain + [row for row in products if row not in plain]


def cost(config: ClimbConfig, row: Row, size: tuple[int, int], way: Way | None = None) -> float:
    """Pixels times steps of an image of that size; a last step, without a gradient, counts as half a step."""
    height, width = size
    work = {scale: (way or Way()).work(n, first=scale == config.scales[0]) for scale, n in row.items()}
    return sum(height * width * config.factor(scale, height, width) ** 2 * work[scale] for scale in row) / COST_SIDE**2


def settled(sums: Tensor, change: float) -> int:
    """The first number of steps whose map, over its maximum, differs from that before by less than a share `change`.

    sums: [steps, h, w]. All steps where none does.
    """
    maps = sums / sums.amax((1, 2), keepdim=True).clamp(min=1e-5)
    shares = (maps[1:] - maps[:-1]).abs().sum((1, 2)) / maps[:-1].sum((1, 2)).clamp(min=1e-5)
    calm = (shares < change).nonzero()
    return int(calm[0]) + 2 if len(calm) else len(sums)


def judged(
    sums: dict[float, Tensor], case: Case, foregrounds: list[int], rows: list[Row], stops: list[float], price: Price
) -> Tensor:
    """The curves and costs of an image's labels, by row and by what counts as settled: [L, rows + stops, T + 1]."""
    truth = read_mask(case.item.mask)
    height, width = int(truth.shape[0]), int(truth.shape[1])
    padded = padded_size(height, width)
    found = []
    for index, foreground in enumerate(foregrounds):
        own = {scale: maps[:, index] for scale, maps in sums.items()}
        for row in rows + [{scale: settled(maps, stop) for scale, maps in own.items()} for stop in stops]:
            maps = [own[scale][steps - 1][None] for scale, steps in row.items()]
            full = ops.cam_accumulate(maps, torch.zeros(1, height, width), padded, normalise=True)
            paid = torch.tensor([price(row, (height, width))], dtype=torch.float64)
            found.append(torch.cat([iou_curve(full[0], truth, foreground, THRESHOLDS), paid]))
    return torch.stack(found).unflatten(0, (len(foregrounds), -1))


def explore(models: list[af.CamModel], cases: list[Case], text: str, options: argparse.Namespace) -> Found:
    """Climbs all cases as the text says, keeping the maps of every row, and of every stop."""
    config, way = climb_of(text)
    rows = rows_of(config, options.rows)
    recorders = [Recorder(model, config, way) for model in models]
    kept: Kept[dict[float, Tensor]] = Kept(options.keep, ["explore", options.set, text, config.as_dict()])
    found = []
    for number, case in enumerate(cases):
        image = read_image(case.item.path)
        sums = kept.get(case.item.id, partial(recorders[case.model].sums, image, case.classes))
        price = partial(cost, config, way=way)
        found.append(judged(sums, case, quality.foregrounds(models, case), rows, options.stop, price))
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    both = torch.cat(found)
    return Found(config, rows, options.stop, both[..., :-1], both[..., -1].mean(0).tolist())


def results_of(found: Found, reference: Tensor | None) -> dict[str, Any]:
    """Every row's quality, cost and gain over the plain CAM of its scales; reference [N, T]: and its difference."""
    results = []
    for index, curves in enumerate(found.curves.unbind(1)):
        stop = None if index < len(found.rows) else found.stops[index - len(found.rows)]
        most = {scale: found.config.steps_for(scale) for scale in found.config.scales}
        row = found.rows[index] if stop is None else most
        plain = found.curves[:, found.rows.index(dict.fromkeys(row, 1))]
        samples = bootstrap_best(curves)
        best, gain = best_threshold(curves, THRESHOLDS), quality.difference(curves, plain)
        result = {
            "scales": list(row),
            "steps": list(row.values()),
            "cost": found.costs[index],
            "iou": best.value,
            "interval": interval(samples),
            "threshold": best.threshold,
            "gain": gain["iou"],
            "gain_interval": gain["interval"],
        }
        if stop is not None:
            result["stop"] = stop
        if reference is not None:
            result["difference"] = quality.difference(curves, reference)
        results.append(result)
    return {"config": found.config.as_dict(), "items": len(found.curves), "rows": results}


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
            scales = ", ".join(f"{scale:g}x{n}" for scale, n in zip(row["scales"], row["steps"], strict=True))
            stop = f" until below {row['stop']:g}" if "stop" in row else ""
            low, high = row["interval"]
            texts = [f"{row['iou']:.3f} [{low:.3f}, {high:.3f}]", f"gain {_signed(row['gain'], row['gain_interval'])}"]
            if "difference" in row:
                texts.append(f"difference {_signed(row['difference']['iou'], row['difference']['interval'])}")
            print(f"  {'  '.join(texts)}  cost {row['cost']:4.1f}  {scales}{stop}")


def _signed(value: float, bounds: Sequence[float]) -> str:
    return f"{value:+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def draw(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Quality against cost, a set a panel: the rows of every climb that are worth their cost, with their intervals."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(6.5 * len(results), 5), squeeze=False)
    for axis, (title, climbs) in zip(axes[0], results.items(), strict=True):
        for name, climb in climbs.items():
            rows = [row for row in frontier(climb["rows"])[::-1] if row["cost"] >= 1]
            costs, values = [row["cost"] for row in rows], [row["iou"] for row in rows]
            (line,) = axis.plot(costs, values, marker="o", markersize=3, label=name)
            lows, highs = zip(*(row["interval"] for row in rows), strict=True)
            axis.fill_between(costs, lows, highs, alpha=0.08, color=line.get_color())
        axis.set(title=title, xscale="log", xlabel="cost: pixels x steps", ylabel="mean foreground IoU, best threshold")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, loc="upper left")
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("horses", "coco"))
    parser.add_argument("--items", default="1-100", help="FIRST-LAST[:STEP], counted from 1")
    parser.add_argument("--climb", action="append", default=[], help="PRESET or 'PRESET;KEY=VALUE;...'")
    parser.add_argument("--rows", choices=("equal", "mixed", "last"), default="equal", help="numbers of steps tried")
    parser.add_argument("--stop", type=float, action="append", default=[], help="stop when a map changes by less")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="go on from what this code left there")
    parser.add_argument("--table", type=int, nargs="?", const=5, default=0, metavar="ROWS", help="print the best rows")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="quality against cost, of all climbs in the files")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/explore_SET.json")
    options = parser.parse_args()
    out = options.out or quality.RESULTS / f"explore_{options.set}.json"
    if options.climb:
        models, cases = quality.load(options.set, options.items)
        reference: Tensor | None = None
        for text in options.climb:
            found = explore(models, cases, text, options)
            own = {scale: found.config.steps_for(scale) for scale in found.config.scales}
            if reference is None and own in found.rows:
                reference = found.curves[:, found.rows.index(own)]
            results = json.loads(out.read_text()) if out.exists() else {}  # read again: another run may have written
            kind = "" if options.rows == "equal" else f", {options.rows}"
            results[f"{text} on {options.items}{kind}"] = results_of(found, reference)
            out.write_text(text_of(results))
    if options.draw:
        files = {name: quality.RESULTS / f"explore_{name}.json" for name in ("horses", "coco")}
        draw({name: json.loads(file.read_text()) for name, file in files.items()}, options.draw)
    if options.table or not (options.climb or options.draw):
        table(json.loads(out.read_text()), options.table or 5)


if __name__ == "__main__":
    main()
