"""Quality of presets on real photos: mean foreground IoU at the one best threshold of the set, with 95 % intervals.

python benchmarks/quality.py horses --items 101-200 --preset general --preset voc-cvpr2021
python benchmarks/quality.py coco --preset general

horses: efficientnet_lite0, ImageNet class 339. coco: 100 photos, a 20-class linear head on frozen efficientnet_lite0
features in 5 folds, every image mapped by a head that never saw it. The plain CAM is step 0 of the same run. Both need
the photos in ../shared/data; results go to benchmarks/results/quality_SET.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
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


def curves(models: list[af.CamModel], cases: list[Case], config: ClimbConfig) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(image and class, curve of the plain CAM, curve of the climbed map)."""
    makers = [MapMaker(model, config) for model in models]
    for number, case in enumerate(cases):
        image, truth = read_image(case.item.path), read_mask(case.item.mask)
        result = makers[case.model].compute([image], [case.classes])[0]
        for index, label in enumerate(case.classes):
            foreground = 1 if len(models) == 1 else label + 1  # the horses' masks know one class only
            cam = iou_curve(result.initial[index].float(), truth, foreground, THRESHOLDS)
            climbed = iou_curve(result.full[index].float(), truth, foreground, THRESHOLDS)
            yield f"{case.item.id}:{label}", cam, climbed
        print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def measure(models: list[af.CamModel], cases: list[Case], config: ClimbConfig) -> dict[str, Any]:
    begin = time.monotonic()
    found = list(curves(models, cases, config))
    seconds = time.monotonic() - begin
    both = torch.stack([torch.stack([cam, climbed]) for _, cam, climbed in found])  # [N, 2, T]
    samples = bootstrap_best(both)
    cam, climbed = (best_threshold(both[:, index], THRESHOLDS) for index in range(2))
    return {
        "config": config.as_dict(),
        "items": len(found),
        "seconds_per_image": seconds / len(cases),
        "cam": {"iou": cam.value, "threshold": cam.threshold, "interval": interval(samples[:, 0])},
        "advcam": {"iou": climbed.value, "threshold": climbed.threshold, "interval": interval(samples[:, 1])},
        "gain": {"iou": climbed.value - cam.value, "interval": interval(samples[:, 1] - samples[:, 0])},
    }


def _line(row: dict[str, Any]) -> str:
    texts = []
    for name in ("cam", "advcam", "gain"):
        low, high = row[name]["interval"]
        texts.append(f"{name} {row[name]['iou']:.3f} [{low:.3f}, {high:.3f}]")
    return ", ".join(texts) + f", {row['seconds_per_image']:.1f} s an image"


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
    options = parser.parse_args()
    models, cases = load(options.set, options.items)
    out = options.out or RESULTS / f"quality_{options.set}.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    for text in options.preset:
        name, *settings = text.split(";")
        row = measure(models, cases, ClimbConfig.preset(name).with_settings(settings))
        results[f"{text} on {options.items}"] = row
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{text} on {options.set} {options.items}: {_line(row)}", flush=True)


if __name__ == "__main__":
    main()
