"""Quality of presets on real photos: mean foreground IoU at the one best threshold of the set, with 95 % intervals.

python benchmarks/quality.py horses --items 101-200 --preset general --preset voc-cvpr2021
python benchmarks/quality.py coco --preset general
python benchmarks/quality.py horses --items 101-200 --preset fast --preset "fast;dtype=mixed" --preset "fast;dtype=bf16"

horses: efficientnet_lite0, ImageNet class 339. coco: 100 photos, a 20-class linear head on frozen efficientnet_lite0
features in 5 folds, every image mapped by a head that never saw it. The plain CAM is step 0 of the same run. A preset
after the first also has its difference from the first, paired: over the same maps. Both need the photos in
../shared/data; results go to benchmarks/results/quality_SET.json. With `--keep DIR` a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kept import Kept
from torch import Tensor

import advcam_fast as af
from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import open_dataset, read_image, read_mask, resize_image
from advcam_fast.data.dataset import Item
from advcam_fast.metrics.foreground_iou import best_threshold, bootstrap_best, interval, iou_curve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"
THRESHOLDS = torch.arange(0.05, 0.85, 0.01)
SORREL = 339
FOLDS = 5


class Case(NamedTuple):
    item: Item
    model: int  # index into the models
    classes: list[int]


def horses(items: slice) -> tuple[list[af.CamModel], list[Case]]:
    dataset = open_dataset(f"csv:{DATA / 'horses' / 'labels.csv'}")
    return [af.load_model("efficientnet_lite0")], [Case(item, 0, [SORREL]) for item in dataset.items[items]]


def coco(items: slice) -> tuple[list[af.CamModel], list[Case]]:
    """Five models that differ in their heads, and the cases of each fold's unseen images."""
    dataset = open_dataset(f"csv:{DATA / 'coco_train' / 'labels.csv'}")
    names = dataset.class_names
    assert names is not None
    base = af.load_model("efficientnet_lite0")
    pooled = torch.stack([_pooled(base, item) for item in dataset.items])
    tags = torch.tensor([[float(name in (item.labels or ())) for name in names] for item in dataset.items])
    fold = torch.arange(len(dataset.items)) % FOLDS
    models, cases = [], []
    for held_out in range(FOLDS):
        weight, bias = _fit(pooled[fold != held_out], tags[fold != held_out])
        models.append(af.CamModel(base.features, weight, bias, mean=base.mean, std=base.std, class_names=names))
    for index, item in list(enumerate(dataset.items))[items]:
        if item.labels:
            cases.append(Case(item, int(fold[index]), [names.index(label) for label in item.labels]))
    return models, cases


@torch.no_grad()
def _pooled(model: af.CamModel, item: Item) -> Tensor:
    image = read_image(item.path)
    view = resize_image(image, 288 / min(image.shape[1:]))
    return model.features(model.normalise(view[None])).mean((0, 2, 3))


def _fit(features: Tensor, tags: Tensor, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Logistic regression for every class."""
    weight = torch.zeros(tags.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(tags.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.binary_cross_entropy_with_logits(features @ weight.T + bias, tags)
        total = fit + decay * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def curves(models: list[af.CamModel], cases: list[Case], config: ClimbConfig, kept: Kept[Tensor]) -> Tensor:
    """The curves of the plain CAM and of the climbed map, for every image and class: [N, 2, T]."""
    makers = [MapMaker(model, config) for model in models]
    found = []
    for number, case in enumerate(cases):
        found.append(kept.get(case.item.id, partial(_both, makers[case.model], case, foregrounds(models, case))))
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return torch.cat(found)


def _both(maker: MapMaker[af.CamModel], case: Case, foregrounds: list[int]) -> Tensor:
    """[L, 2, T] of an image's labels."""
    image, truth = read_image(case.item.path), read_mask(case.item.mask)
    result = maker.compute([image], [case.classes])[0]
    found = [
        torch.stack(
            [iou_curve(maps[index].float(), truth, foreground, THRESHOLDS) for maps in (result.initial, result.full)]
        )
        for index, foreground in enumerate(foregrounds)
    ]
    return torch.stack(found)


def foregrounds(models: list[af.CamModel], case: Case) -> list[int]:
    """What the mask's pixels are of each of an image's classes; the horses' masks know one class only."""
    return [1 if len(models) == 1 else label + 1 for label in case.classes]


def measure(both: Tensor, config: ClimbConfig) -> dict[str, Any]:
    """both: [N, 2, T], see `curves`."""
    samples = bootstrap_best(both)
    cam, climbed = (best_threshold(both[:, index], THRESHOLDS) for index in range(2))
    return {
        "config": config.as_dict(),
        "items": len(both),
        "cam": {"iou": cam.value, "threshold": cam.threshold, "interval": interval(samples[:, 0])},
        "advcam": {"iou": climbed.value, "threshold": climbed.threshold, "interval": interval(samples[:, 1])},
        "gain": difference(both[:, 1], both[:, 0]),
    }


def difference(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Of the best mean of curves [N, T] of the same maps, each at its own threshold, with its paired interval."""
    samples = bootstrap_best(torch.stack([ours, theirs], 1))
    value = best_threshold(ours, THRESHOLDS).value - best_threshold(theirs, THRESHOLDS).value
    return {"iou": value, "interval": interval(samples[:, 0] - samples[:, 1])}


def _line(row: dict[str, Any]) -> str:
    texts = []
    for name in ("cam", "advcam", "gain"):
        low, high = row[name]["interval"]
        texts.append(f"{name} {row[name]['iou']:.3f} [{low:.3f}, {high:.3f}]")
    if "difference" in row:
        low, high = row["difference"]["interval"]
        texts.append(f"{row['difference']['iou']:+.4f} [{low:+.4f}, {high:+.4f}] from {row['difference']['from']}")
    return ", ".join(texts)


def load(name: str, items: str) -> tuple[list[af.CamModel], list[Case]]:
    """name: "horses" or "coco". items: FIRST-LAST[:STEP], counted from 1."""
    if not DATA.is_dir():
        sys.exit(f"the photos are not there: {DATA}")
    span, _, step = items.partition(":")
    first, last = (int(number) for number in span.split("-"))
    return {"horses": horses, "coco": coco}[name](slice(first - 1, last, int(step or 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("horses", "coco"))
    parser.add_argument("--items", default="1-100000", help="FIRST-LAST[:STEP], counted from 1")
    parser.add_argument("--preset", action="append", required=True, help="NAME or 'NAME;KEY=VALUE;...'")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quality_SET.json")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="go on from what this code left there")
    options = parser.parse_args()
    models, cases = load(options.set, options.items)
    out = options.out or RESULTS / f"quality_{options.set}.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    first: Tensor | None = None
    for text in options.preset:
        name, *settings = text.split(";")
        config = ClimbConfig.preset(name).with_settings(settings)
        both = curves(models, cases, config, Kept(options.keep, ["quality", options.set, config.as_dict()]))
        row = measure(both, config)
        if first is None:
            first = both
        else:
            row["difference"] = {"from": options.preset[0], **difference(both[:, 1], first[:, 1])}
        results[f"{text} on {options.items}"] = row
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{text} on {options.set} {options.items}: {_line(row)}", flush=True)


if __name__ == "__main__":
    main()
