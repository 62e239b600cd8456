"""label: images and tags in, maps out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import advcam_fast as af
from advcam_fast.cli.app import Json, Out, Retry, Set, app
from advcam_fast.cli.console import report, with_progress
from advcam_fast.climb import PRESETS, ClimbConfig, MapMaker
from advcam_fast.data import AVAILABLE, Dataset, match_labels, open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.pipelines import label as labelling
from advcam_fast.store import RunFolder


@app.command(epilog="Example: advcam-fast label --data csv:photos/labels.csv --model efficientnet_lite0 --out run")
def label(
    data: Annotated[str, typer.Option(help=f"{AVAILABLE}.")],
    out: Out,
    model: Annotated[str, typer.Option(help="efficientnet_lite0, resnet50, squeezenet1_1, ..., or any timm name.")],
    weights: Annotated[str | None, typer.Option(help="A safetensors or torch weights file.")] = None,
    layer: Annotated[str | None, typer.Option(help="Look at this layer by Grad-CAM, for any head or a ViT.")] = None,
    labels: Annotated[str, typer.Option(help="given: the data's tags. predicted: the model chooses.")] = "given",
    top_k: Annotated[int | None, typer.Option(help="Predicted: at most so many classes an image.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Predicted: classes of at least this probability.")] = None,
    class_map: Annotated[Path | None, typer.Option(help="CSV: tag, name or index of the model's class.")] = None,
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "general",
    set_: Set = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64: what the network runs in.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    store: Annotated[str, typer.Option(help="Maps are stored as fp16, fp32 or uint8.")] = "fp16",
    full: Annotated[bool, typer.Option("--full", help="Store the full-size maps too.")] = False,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Compute the AdvCAM maps of every image of a data set. Stopped at any moment, the same command goes on."""
    if labels not in ("given", "predicted"):
        raise UsageError(f"--labels {labels}: wanted is given or predicted")
    rule = labelling.LabelRule(labels == "predicted", top_k, min_score)
    config = ClimbConfig.preset(preset).with_settings([*(set_ or []), *([f"dtype={dtype}"] if dtype else [])])
    dataset = open_dataset(data)
    net = af.load_model(model, weights, device=labelling.device_of(device), target_layer=layer)
    matched = (
        {}
        if rule.predicted
        else labelling.tag_indices(dataset, net, lambda tags, names: match_labels(tags, names, class_map))
    )
    settings = {
        "data": data,
        "model": {
            "name": model,
            "weights": weights or "",
            "layer": layer or "",
            "classes": net.num_classes,
            "sha256": labelling.weights_digest(net.tensors()),
        },
        "labels": {"from": labels, "top_k": top_k or 0, "min_score": -1.0 if min_score is None else min_score},
        "class_map": {name: matched[name] for name in sorted(matched)},
        "climb": {"preset": preset, **config.as_dict()},
        "full": full,
    }
    maker = MapMaker(net, config)
    facts = {
        "advcam_fast": af.__version__,
        "device": str(maker.device),
        "executor": maker.executor,
        "argv": sys.argv[1:],
    }
    with RunFolder.open(out, settings, store=store, retry_failed=retry_failed, info=facts) as run:
        summary = label_with_progress(dataset, maker, run, rule, matched, full, as_json)
    report(summary, out, as_json)


def label_with_progress(
    dataset: Dataset,
    maker: MapMaker,
    run: RunFolder,
    rule: labelling.LabelRule,
    matched: dict[str, int],
    full: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Runs the labelling under a progress bar; what the run holds at its end, or at Ctrl-C."""

    def work(advance: Any) -> None:
        labelling.label_dataset(dataset, maker, run, rule, matched, full=full, report=advance)

    return with_progress("labelling", run, len(dataset.items), work, as_json) | {"executor": maker.executor}
