"""train-affinity: the maps of a run in, an affinity net out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import advcam_fast as af
from advcam_fast.cli.app import Json, Set, app
from advcam_fast.cli.console import report, training_bar, with_progress
from advcam_fast.data import open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.models import new_affinity_net
from advcam_fast.pipelines import label as labelling
from advcam_fast.pipelines import refine as refining
from advcam_fast.pipelines import train_affinity as teaching
from advcam_fast.pipelines.refine import images_of
from advcam_fast.store import MaskFolder, RunFolder
from advcam_fast.train import AffinityConfig, train_affinity


@app.command("train-affinity", epilog="Example: advcam-fast train-affinity --run run --out affinity --set epochs=3")
def train_affinity_verb(
    run: Annotated[Path, typer.Option(help="The run folder of `label`.")],
    out: Annotated[Path, typer.Option(help="The training's folder; an unfinished training in it goes on.")],
    model: Annotated[str, typer.Option(help="Its backbone: a ResNet, efficientnet_lite0.")] = "resnet50_stride16",
    weights: Annotated[str | None, typer.Option(help="Of the backbone: a safetensors or torch file.")] = None,
    foreground: Annotated[float, typer.Option(help="A map above it, and its CRF, is sure foreground.")] = 0.35,
    background: Annotated[float, typer.Option(help="No map above it, nor in its CRF, is sure background.")] = 0.15,
    set_: Set = None,
    data: Annotated[str | None, typer.Option(help="Where the images are; by default where `label` found them.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Train boundary and displacement on what the maps are sure of. Stopped, the same command goes on.

    OUT/labels holds the training labels as palette PNGs, OUT/weights.safetensors what `refine --walk` takes.
    """
    config = AffinityConfig().with_settings(set_ or [])
    if not 0 <= background <= foreground <= 1:
        raise UsageError(
            f"--foreground {foreground} --background {background}: wanted is 0 <= background <= foreground <= 1"
        )
    source, run_on = RunFolder.read(run), labelling.device_of(device)
    dataset = open_dataset(images_of(source, data))
    classes = refining.run_classes(source)
    torch.manual_seed(config.seed)  # the heads are random
    net = new_affinity_net(weights, model).to(run_on)
    settings = {
        "thresholds": {"foreground": foreground, "background": background},
        "classes": classes,
        "maps": refining.run_digest(source),
    }
    facts = {"advcam_fast": af.__version__, "argv": sys.argv[1:], "data": dataset.spec}
    with MaskFolder.open(out / "labels", settings, info=facts) as labels:  # its lock is the training's too

        def work(advance: Any) -> None:
            teaching.sure_labels(source, dataset, labels, classes, foreground, background, advance)

        summary = with_progress("labels", labels, sum(source.counts().values()), work, as_json)
        if not summary["interrupted"]:
            images = teaching.SureImages(labels, dataset)
            summary["trained_on"] = len(images)
            try:
                with training_bar(hidden=as_json) as advance:
                    path = train_affinity(net, images, out, config, resume=True, report=advance)
                summary["weights"] = str(path)
            except KeyboardInterrupt:
                summary["interrupted"] = True
    report(summary, out, as_json, "training labels")
