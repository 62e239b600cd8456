"""train-classifier: images and tags in, a classifier for `label` out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from advcam_fast.cli.app import Json, Set, app
from advcam_fast.cli.console import report_training, say, training_bar
from advcam_fast.data import open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.models import new_classifier
from advcam_fast.pipelines import train_classifier as teaching
from advcam_fast.train import RECIPES, ClassifierConfig, joined_team


@app.command(
    "train-classifier",
    epilog="Example: advcam-fast train-classifier --data csv:photos/labels.csv --model efficientnet_lite0 "
    "--val-fold 1/5 --out classifier (in two processes: torchrun --nproc-per-node 2 -m advcam_fast ...)",
)
def train_classifier_verb(
    data: Annotated[str, typer.Option(help="folder:DIR, csv:FILE or voc:DIR#split, with tags.")],
    out: Annotated[Path, typer.Option(help="The training's folder; an unfinished training in it goes on.")],
    model: Annotated[str, typer.Option(help="efficientnet_lite0, resnet50_stride16, ..., or any timm name.")],
    weights: Annotated[str | None, typer.Option(help="To begin with: a safetensors or torch file, or none.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(RECIPES)}.")] = "modern",
    set_: Set = None,
    task: Annotated[str, typer.Option(help=f"{', '.join(teaching.TASKS)}; auto looks at the tags.")] = "auto",
    val: Annotated[str | None, typer.Option(help="A data SPEC to judge by: mAP or top-1 after every epoch.")] = None,
    val_fold: Annotated[str | None, typer.Option(metavar="K/N", help="Judge by the K-th of N parts of --data.")] = None,
    freeze: Annotated[str, typer.Option(help="none; features: only the head learns, for tiny sets.")] = "none",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write OUT/tensorboard too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Train a classifier on tags. Stopped, the same command goes on; OUT/log.jsonl says how it went.

    OUT/weights.safetensors, and with --val or --val-fold OUT/best.safetensors, are what `label --weights` takes.
    """
    config = ClassifierConfig.recipe(recipe).with_settings(set_ or [])
    if freeze not in ("none", "features"):
        raise UsageError(f"--freeze {freeze}: wanted is none or features")
    if val is not None and val_fold is not None:
        raise UsageError("--val and --val-fold both came: one of them is wanted")
    config = replace(config, frozen_stages=5) if freeze == "features" else config
    dataset, judged = open_dataset(data), None
    names = teaching.class_names_of(dataset)
    single = teaching.is_single_label(dataset, names, task)
    if val is not None:
        judged = open_dataset(val)
    elif val_fold is not None:
        dataset, judged = teaching.without_fold(dataset, val_fold)
    run_on = teaching.training_device(device)
    torch.manual_seed(config.seed)  # the head is random
    net = new_classifier(model, weights, names).to(run_on)
    summary: dict[str, Any] = {
        "task": "single-label" if single else "multi-label",
        "classes": len(names),
        "head": "of the weights" if net.kept_head else "new",
        "trained_on": len(dataset.items),
    }
    with joined_team(run_on) as team, teaching.locked(out, team):
        watch = _watch(out, tensorboard and team.first, summary)
        with training_bar(hidden=as_json or not team.first) as advance:
            how = dict(single_label=single, report=advance, watch=watch, team=team)
            summary |= _trained(lambda: teaching.train(net, dataset, judged, names, out, config, **how))
        if team.first:
            report_training(summary, out, as_json)


def _trained(train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a training gives, how long it took, and whether somebody stopped it."""
    began, ended = time.monotonic(), {"interrupted": False, "failed": 0, "failures": []}
    try:
        ended |= train()
    except KeyboardInterrupt:
        ended["interrupted"] = True
    return {**ended, "seconds": round(time.monotonic() - began, 3)}


def _watch(out: Path, wanted: bool, summary: dict[str, Any]) -> Any:
    """What is told each line of the log."""
    found = teaching.tensorboard(out / "tensorboard") if wanted else None
    if wanted:
        summary["tensorboard"] = "not installed" if found is None else str(out / "tensorboard")
    if wanted and found is None:
        say("TensorBoard is not installed (pip install tensorboard): only log.jsonl is written")
    return found or (lambda _: None)
