"""Quality of refined masks of a run of `label`: mean foreground IoU with 95 % intervals, at each background score.

advcam-fast label --data csv:../shared/data/horses/labels.csv --model efficientnet_lite0 --preset fast --out run
python benchmarks/masks.py run --items 1-100 --preset "color-walk;sigma=10" --preset crf
python benchmarks/masks.py run --items 101-200 --preset color-walk --fixed
python benchmarks/masks.py run --items 101-200 --preset irn --walk affinity/weights.safetensors
python benchmarks/masks.py coco --make-coco --preset color-walk --fixed

--make-coco makes the run first: the 100 COCO photos, each by a head of quality.py that never saw it, preset `fast`.
Without --fixed the best of all background scores is taken, for the maps alone too; with it each preset has its own, and
the maps alone still their best. Results go to benchmarks/results/masks_NAME.json, NAME being the run folder's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import quality
import torch
from torch import Tensor

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import open_dataset, read_image, read_mask
from advcam_fast.data.dataset import Item
from advcam_fast.metrics.foreground_iou import bootstrap_best, interval, iou_curve
from advcam_fast.models import AffinityNet, load_affinity_net
from advcam_fast.refine import RefineConfig, mask_of, refined_maps
from advcam_fast.store import RunFolder

RESULTS = Path(__file__).resolve().parent / "results"
BACKGROUNDS = torch.arange(0.05, 0.75, 0.05, dtype=torch.float64)
ALONE = RefineConfig()
PARTS = ("maps", "masks", "gain")


class Case(NamedTuple):
    """An image of the run, its labels, and the values that their pixels have in its true mask."""

    item: Item
    labels: tuple[str, ...]
    values: list[int]


def make_coco(folder: Path) -> None:
    """The maps of quality.py's COCO photos as a run folder."""
    models, cases = quality.load("coco", "1-100")
    config = ClimbConfig.preset("fast")
    makers = [MapMaker(model, config) for model in models]
    settings = {"data": f"csv:{quality.DATA / 'coco_train' / 'labels.csv'}", "climb": config.as_dict()}
    with RunFolder.open(folder, settings) as run:
        for case in cases:
            if case.item.id in run.done_ids():
                continue
            found = makers[case.model].compute([read_image(case.item.path)], [case.classes])[0]
            arrays = {"classes": found.classes, "strided": found.strided, "initial": found.initial}
            names = models[case.model].class_names or ()
            run.finish(case.item.id, arrays, labels=[names[index] for index in found.classes.tolist()])


def curves(
    run: RunFolder, case: Case, config: RefineConfig, backgrounds: Tensor, net: AffinityNet | None = None
) -> list[Tensor]:
    """IoU of every class of an image at every background score, [T] each."""
    image, truth = read_image(case.item.path), read_mask(case.item.mask)
    boundary = net.predict(image)[0] if net is not None and config.walk == "boundary" else None
    scores = refined_maps(run.read_maps(case.item.id)["strided"], image, config, boundary)
    if config.crf == "none" and len(scores) == 1:
        return [iou_curve(scores[0].double(), truth, case.values[0], backgrounds)]
    masks = [mask_of(scores, image, replace(config, background=score)) for score in backgrounds.tolist()]
    half = torch.tensor([0.5])
    return [
        torch.cat([iou_curve((mask == at + 1).double(), truth, value, half) for mask in masks])
        for at, value in enumerate(case.values)
    ]


def measure(
    run: RunFolder, cases: Sequence[Case], config: RefineConfig, fixed: bool, net: AffinityNet | None
) -> dict[str, Any]:
    """The refined masks beside the maps alone, on the same images."""
    backgrounds = torch.tensor([config.background], dtype=torch.float64) if fixed else BACKGROUNDS
    ours, alone, seconds = [], [], 0.0
    for number, case in enumerate(cases):
        begin = time.monotonic()
        ours += curves(run, case, config, backgrounds, net)
        seconds += time.monotonic() - begin
        alone += curves(run, case, ALONE, BACKGROUNDS)
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    refined, seeds = torch.stack(ours), torch.stack(alone)
    samples = [bootstrap_best(found) for found in (refined, seeds)]  # one seed: the same images are drawn
    best = refined.mean(0).argmax()
    return {
        "config": config.as_dict(),
        "items": len(refined),
        "background": float(backgrounds[best]),
        "seconds_per_image": seconds / len(cases) / len(backgrounds),
        "maps": {"iou": float(seeds.mean(0).max()), "interval": interval(samples[1])},
        "masks": {"iou": float(refined.mean(0)[best]), "interval": interval(samples[0])},
        "gain": {
            "iou": float(refined.mean(0)[best] - seeds.mean(0).max()),
            "interval": interval(samples[0] - samples[1]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", default="1-100000", help="FIRST-LAST[:STEP], counted from 1")
    parser.add_argument("--preset", action="append", required=True, help="NAME or 'NAME;KEY=VALUE;...'")
    parser.add_argument("--fixed", action="store_true", help="at the preset's own background score")
    parser.add_argument("--walk", type=Path, help="weights of an affinity net, for presets that walk by its boundary")
    parser.add_argument("--make-coco", action="store_true", help="make the run, of COCO photos, first")
    options = parser.parse_args()
    if options.make_coco:
        make_coco(options.run)
    net = load_affinity_net(options.walk) if options.walk else None
    run = RunFolder.read(options.run)
    dataset = open_dataset(str(run.settings["data"]))
    classes = dataset.class_names or ()
    span, _, step = options.items.partition(":")
    first, last = (int(number) for number in span.split("-"))
    there = {record.id: record.labels for record in run.records() if record.status == "ok"}
    items = [item for item in dataset.items[first - 1 : last : int(step or 1)] if there.get(item.id) and item.mask]
    cases = [Case(item, there[item.id], [1 + classes.index(name) for name in there[item.id]]) for item in items]
    if not cases:
        sys.exit(f"{options.run}: none of the images {options.items} has maps and a true mask")
    out = RESULTS / f"masks_{options.run.name}.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    for text in options.preset:
        name, *settings = text.split(";")
        row = measure(run, cases, RefineConfig.preset(name).with_settings(settings), options.fixed, net)
        results[f"{text} on {options.items}{', fixed' if options.fixed else ''}"] = row
        out.write_text(json.dumps(results, indent=1) + "\n")
        parts = [name + " {iou:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]".format(**row[name]) for name in PARTS]
        speed = f"at {row['background']:.2f}, {row['seconds_per_image']:.3f} s an image"
        print(f"{text} on {options.items}: {', '.join(parts)} {speed}", flush=True)


if __name__ == "__main__":
    main()
