"""A classifier fine-tuned by train-classifier's recipe against a linear probe, on the 77 tagged photos of COCO.

python benchmarks/train_classifier.py --fold 1    (and 2 to 5: one training each, the fold held out)
python benchmarks/train_classifier.py             (the table of the folds that are there)

Pooled micro-AP of the held-out images, each scored by a network that never saw it, with 95 % intervals over the images.
The probe is logistic regression on frozen efficientnet_lite0 features, as in quality.py. Needs the photos in
../shared/data; a fold's scores go to --work, the table to benchmarks/results/train_classifier.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from quality import DATA, FOLDS, RESULTS, _fit, _pooled
from torch import Tensor

import advcam_fast as af
from advcam_fast.data import open_dataset
from advcam_fast.data.dataset import Item
from advcam_fast.metrics.foreground_iou import interval
from advcam_fast.models import new_classifier
from advcam_fast.pipelines.train_classifier import TaggedItems
from advcam_fast.train import ClassifierConfig, class_logits, train_classifier
from advcam_fast.train.scores import multi_label_scores

MODEL = "efficientnet_lite0"


def tagged_photos() -> tuple[list[Item], tuple[str, ...]]:
    if not DATA.is_dir():
        sys.exit(f"the photos are not there: {DATA}")
    dataset = open_dataset(f"csv:{DATA / 'coco_train' / 'labels.csv'}")
    assert dataset.class_names is not None
    return [item for item in dataset.items if item.labels], dataset.class_names


def probe(learned: list[Item], held: list[Item], names: tuple[str, ...]) -> Tensor:
    """Logits [N, C] of the held-out items."""
    base = af.load_model(MODEL)
    tags = torch.tensor([[float(name in (item.labels or ())) for name in names] for item in learned])
    weight, bias = _fit(torch.stack([_pooled(base, item) for item in learned]), tags)
    return torch.stack([_pooled(base, item) for item in held]) @ weight.T + bias


def fold(number: int, work: Path, config: ClassifierConfig) -> dict[str, Any]:
    items, names = tagged_photos()
    held = items[number - 1 :: FOLDS]
    learned = [item for item in items if item not in held]
    class_of = {name: index for index, name in enumerate(names)}
    torch.manual_seed(config.seed)
    net = new_classifier(MODEL, None, names)
    folder, begin = work / f"fold{number}", time.monotonic()
    trained = train_classifier(net, TaggedItems(learned, class_of, False), names, folder, config, resume=True)
    seconds = time.monotonic() - begin
    torch.manual_seed(config.seed)
    tuned = new_classifier(MODEL, trained.weights, names)
    assert tuned.kept_head, "these are the weights that were trained"
    found = class_logits(tuned, TaggedItems(held, class_of, False), len(names), config)
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    per_epoch = len(losses) // config.epochs
    return {
        "ids": [item.id for item in held],
        "truth": found.classes.int().tolist(),
        "tuned": found.values.tolist(),
        "probe": probe(learned, held, names).tolist(),
        "loss": [sum(losses[:per_epoch]) / per_epoch, sum(losses[-per_epoch:]) / per_epoch],
        "seconds": seconds,
        "config": config.settings(),
    }


def micro(logits: Tensor, truth: Tensor) -> float:
    return multi_label_scores(logits, truth)["micro_AP"]


def table(found: list[dict[str, Any]], samples: int = 1000) -> dict[str, Any]:
    truth, tuned, linear = (
        torch.cat([torch.tensor(fold[key]).float() for fold in found]) for key in ("truth", "tuned", "probe")
    )
    truth = truth > 0
    draw = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(truth), (len(truth),), generator=draw) for _ in range(samples)]
    drawn = torch.tensor([[micro(scores[pick], truth[pick]) for scores in (tuned, linear)] for pick in picks])
    values = {"tuned": micro(tuned, truth), "probe": micro(linear, truth)}
    rows = {name: {"micro_AP": values[name], "interval": interval(drawn[:, i])} for i, name in enumerate(values)}
    gain = {"micro_AP": values["tuned"] - values["probe"], "interval": interval(drawn[:, 0] - drawn[:, 1])}
    more = {"loss": [fold["loss"] for fold in found], "seconds": [fold["seconds"] for fold in found]}
    return {"images": len(truth), **rows, "gain": gain, **more, "config": found[0]["config"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", type=int, choices=range(1, FOLDS + 1))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("train_classifier_folds"))
    options = parser.parse_args()
    if options.fold:
        row = fold(options.fold, options.work, ClassifierConfig.recipe("modern").with_settings(options.set))
        (options.work / f"fold{options.fold}.json").write_text(json.dumps(row))
        print(f"fold {options.fold}: loss {row['loss'][0]:.3f} -> {row['loss'][1]:.3f} in {row['seconds']:.0f} s")
        return
    found = [json.loads(file.read_text()) for file in sorted(options.work.glob("fold*.json"))]
    if not found:
        sys.exit(f"no fold is in {options.work}: begin with --fold 1")
    result = table(found)
    if len(found) == FOLDS:
        (RESULTS / "train_classifier.json").write_text(json.dumps(result, indent=1) + "\n")
    for name in ("tuned", "probe", "gain"):
        low, high = result[name]["interval"]
        print(f"{name}: micro-AP {result[name]['micro_AP']:.3f} [{low:.3f}, {high:.3f}]")
    print(f"{len(found)} folds, {result['images']} images, loss {result['loss']}, seconds {result['seconds']}")


if __name__ == "__main__":
    main()
