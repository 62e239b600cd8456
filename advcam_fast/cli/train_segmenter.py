"""train-segmenter: images and masks in, a segmenter and its masks out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import advcam_fast as af
from advcam_fast.cli.app import Json, Set, app
from advcam_fast.cli.console import report, report_training, training_bar, with_progress
from advcam_fast.data import Dataset, open_dataset
from advcam_fast.models import Segmenter, new_segmenter
from advcam_fast.pipelines import train_segmenter as teaching
from advcam_fast.pipelines.label import weights_digest
from advcam_fast.pipelines.refine import CLASSES_FILE
from advcam_fast.pipelines.train_classifier import locked, training_device
from advcam_fast.store import MaskFolder
from advcam_fast.store.files import write_whole
from advcam_fast.train import SEGMENTER_RECIPES, SegmenterConfig, joined_team, train_segmenter


@app.command(
    "train-segmenter",
    epilog="Example: advcam-fast train-segmenter --data csv:photos/labels.csv --masks run --out segmenter "
    "--predict csv:photos/labels.csv",
)
def train_segmenter_verb(
    data: Annotated[str, typer.Option(help="folder:DIR, csv:FILE or voc:DIR#split.")],
    out: Annotated[Path, typer.Option(help="The training's folder; an unfinished training in it goes on.")],
    masks: Annotated[Path | None, typer.Option(help="A run with masks, or a folder of them; else the data's.")] = None,
    true_masks: Annotated[Path | None, typer.Option(help="A list of ids whose mask is the data's own.")] = None,
    model: Annotated[str, typer.Option(help="Its backbone: a ResNet, efficientnet_lite0.")] = "resnet101",
    weights: Annotated[str | None, typer.Option(help="Of the backbone: a safetensors or torch file, or none.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(SEGMENTER_RECIPES)}.")] = "voc-cvpr2021",
    set_: Set = None,
    predict: Annotated[str | None, typer.Option(help="A data SPEC: its masks go to OUT/predictions.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Train a DeepLab on masks, 255 ignored. Stopped, the same command goes on.

    OUT/weights.safetensors; with --predict, palette masks by several scales, mirror images and a dense CRF.
    """
    config = SegmenterConfig.recipe(recipe).with_settings(set_ or [])
    dataset, wanted = open_dataset(data), None if predict is None else open_dataset(predict)
    images, failures, digest = teaching.masked_images(dataset, masks, true_masks).usable()
    run_on = training_device(device)
    torch.manual_seed(config.seed)  # the head is random
    net = new_segmenter(model, weights, images.class_names, config.head).to(run_on)
    summary: dict[str, Any] = {"trained_on": len(images), "classes": len(images.class_names), "score": {}}
    summary |= {"interrupted": False, "failed": len(failures), "failures": failures}
    with joined_team(run_on) as team, locked(out, team):
        began = time.monotonic()
        try:
            with training_bar(hidden=as_json or not team.first) as advance:
                how = dict(resume=True, data_digest=digest, report=advance, team=team)
                summary["weights"] = str(train_segmenter(net, images, out, config, **how))  # type: ignore[arg-type]
        except KeyboardInterrupt:
            summary["interrupted"] = True
        summary["seconds"] = round(time.monotonic() - began, 3)
        if not team.first:
            return
        if wanted is None or summary["interrupted"]:
            report_training(summary, out, as_json)
            return
        _predict(net, out, wanted, config, summary, as_json)


def _predict(
    net: Segmenter, out: Path, wanted: Dataset, config: SegmenterConfig, summary: dict[str, Any], as_json: bool
) -> None:
    settings = {"data": wanted.spec, "weights": weights_digest(net.state_dict()), **config.mask_settings()}
    facts = {"advcam_fast": af.__version__, "argv": sys.argv[1:]}
    folder = out / "predictions"
    with MaskFolder.open(folder, settings, info=facts) as masks:
        names = "".join(f"{name}\n" for name in net.classes)
        write_whole(folder / CLASSES_FILE, names.encode(), folder / f".{CLASSES_FILE}.tmp")

        def work(advance: Any) -> None:
            teaching.predict_masks(net, wanted, masks, config, advance)

        found = with_progress("masks", masks, len(wanted.items), work, as_json)
    found |= {"weights": summary["weights"], "trained_on": summary["trained_on"], "predictions": str(folder)}
    found |= {"failed": found["failed"] + summary["failed"], "failures": [*summary["failures"], *found["failures"]]}
    report(found, folder, as_json, "masks")
