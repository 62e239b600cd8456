"""label: images and tags in, maps out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import advcam_fast as af
from advcam_fast.cli.app import Json, Out, Retry, Set, app
from advcam_fast.cli.console import report, say, with_progress
from advcam_fast.cli.plan import show_plan
from advcam_fast.climb import PRESETS, ClimbConfig, MapMaker
from advcam_fast.data import AVAILABLE, Dataset, Item, match_labels, open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.models import Classifier
from advcam_fast.pipelines import label as labelling
from advcam_fast.pipelines.label import Labeller
from advcam_fast.pipelines.ranks import ALONE, Ranks
from advcam_fast.pipelines.ray_engine import label_on_ray
from advcam_fast.pipelines.shards import balanced_shards, item_costs
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
    verify: Annotated[bool, typer.Option("--verify", help="Read what is done and redo damaged maps.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only predict time, memory and disk from a short probe.")
    ] = False,
    machines: Annotated[int | None, typer.Option(help="With --plan: how many like this one.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster (the extra 'scale').")] = "local",
    workers: Annotated[int | None, typer.Option(help="With ray: how many; by default what the cluster has.")] = None,
    as_json: Json = False,
) -> None:
    """Compute the AdvCAM maps of every image of a data set. Stopped at any moment, the same command goes on.

    The GPUs of one machine: torchrun --nproc-per-node N -m advcam_fast label ...
    """
    _check_scale(engine, workers, plan, machines)
    if labels not in ("given", "predicted"):
        raise UsageError(f"--labels {labels}: wanted is given or predicted")
    rule = labelling.LabelRule(labels == "predicted", top_k, min_score)
    config = ClimbConfig.preset(preset).with_settings([*(set_ or []), *([f"dtype={dtype}"] if dtype else [])])
    dataset, ranks = open_dataset(data), Ranks.of_environment()
    on = labelling.device_of("cpu" if engine == "ray" else ranks.device(device))
    net = af.load_model(model, weights, device=on, target_layer=layer)
    matched = (
        {}
        if rule.predicted
        else labelling.tag_indices(dataset, net, lambda tags, names: match_labels(tags, names, class_map))
    )
    labeller = Labeller(MapMaker(net, config), rule, matched, full, store)
    if plan:
        show_plan(dataset, labeller, out, machines or 1, as_json)
        return
    settings = {
        "data": data,
        "model": _network(net, model, weights, layer),
        "labels": {"from": labels, "top_k": top_k or 0, "min_score": -1.0 if min_score is None else min_score},
        "class_map": {name: matched[name] for name in sorted(matched)},
        "climb": {"preset": preset, **config.as_dict()},
        "full": full,
    }
    with _opened(out, settings, dataset, labeller, ranks, retry_failed=retry_failed, verify=verify) as (run, items):
        ray = (device, workers) if engine == "ray" else None
        summary = label_with_progress(dataset, labeller, run, as_json, ranks, items, ray)
    report(summary, out, as_json, speak=ranks.first)


def _check_scale(engine: str, workers: int | None, plan: bool, machines: int | None) -> None:
    if machines is not None and (not plan or machines < 1):
        raise UsageError(f"--machines {machines}: wanted is a whole number >= 1, with --plan")
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine}: wanted is local or ray")
    if engine == "ray" and "RANK" in os.environ:
        raise UsageError("--engine ray under torchrun: wanted is one of them")
    if workers is not None and (engine != "ray" or workers < 1):
        raise UsageError(f"--workers {workers}: wanted is a whole number >= 1, with --engine ray")


def _network(net: Classifier, name: str, weights: str | None, layer: str | None) -> dict[str, Any]:
    digest = labelling.weights_digest(net.tensors())
    named = {"name": name, "weights": weights or "", "layer": layer or ""}
    return {**named, "classes": net.num_classes, "sha256": digest}


@contextmanager
def _opened(
    out: Path, settings: Mapping[str, Any], dataset: Dataset, labeller: Labeller, ranks: Ranks, **how: bool
) -> Iterator[tuple[RunFolder, list[Item] | None]]:
    """The run folder, and what of it this process is to do (None: all of it). The first process shares out."""
    maker = labeller.maker
    facts = {
        "advcam_fast": af.__version__,
        "device": str(maker.device),
        "executor": maker.executor,
        "argv": sys.argv[1:],
    }
    opened: list[RunFolder] = []

    def begin() -> list[list[int]]:
        opened.append(RunFolder.open(out, settings, store=labeller.store, info=facts, **how))
        redo_changed(dataset, labeller, opened[0])
        if ranks.count == 1:
            return [[]]
        done = opened[0].done_ids()
        todo = [number for number, item in enumerate(dataset.items) if item.id not in done]
        predicted = (labeller.rule.top_k or 1) if labeller.rule.predicted else None
        costs = item_costs([dataset.items[number] for number in todo], maker.config, predicted)
        return [[todo[at] for at in shard] for shard in balanced_shards(costs, ranks.count)]

    try:
        shards = ranks.decide(begin)
        if not ranks.first:
            opened.append(RunFolder.open(out, settings, store=labeller.store, part=f"rank{ranks.rank}"))
        yield opened[0], None if ranks.count == 1 else [dataset.items[number] for number in shards[ranks.rank]]
    finally:
        for run in opened:
            run.close()


def redo_changed(dataset: Dataset, labeller: Labeller, run: RunFolder) -> None:
    """Images whose tags were changed since they were done are to be done again, and that is said."""
    changes = labeller.changed_since(dataset, run)
    if changes:
        first = next(iter(changes))
        say(f"{len(changes)} images have other tags than when they were done and are done again ({first}: "
            f"{changes[first]}{', ...' if len(changes) > 1 else ''})")  # fmt: skip
        run.redo(changes)


def label_with_progress(
    dataset: Dataset,
    labeller: Labeller,
    run: RunFolder,
    as_json: bool,
    ranks: Ranks = ALONE,
    items: Sequence[Item] | None = None,
    ray: tuple[str, int | None] | None = None,
) -> dict[str, Any]:
    """Runs the labelling under a progress bar; what the run holds at its end, or at Ctrl-C.

    ray: device and number of workers.
    """

    def work(advance: Any) -> None:
        if ray is not None:
            label_on_ray(dataset, labeller, run, advance, *ray)
            return
        try:
            labelling.label_dataset(dataset, labeller, run, advance, items)
            ranks.wait()
        finally:
            if ranks.count > 1:
                run.reload()

    doing = "labelling" if ranks.count == 1 else f"labelling, rank {ranks.rank} of {ranks.count}"
    own = None if items is None else len(items)
    summary = with_progress(doing, run, len(dataset.items), work, as_json or not ranks.first, own)
    return summary | {"executor": labeller.maker.executor}
