"""evaluate: a run and the truth in, metrics.json and plots out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from advcam_fast.cli.app import Json, app
from advcam_fast.cli.console import bar, console, say
from advcam_fast.data import AVAILABLE, open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.pipelines import evaluate as evaluating
from advcam_fast.pipelines.evaluate_instances import instance_figures
from advcam_fast.pipelines.evaluation_files import write_comparison, write_evaluation
from advcam_fast.pipelines.judged_run import JudgedMasks, JudgedRun
from advcam_fast.pipelines.refine import images_of
from advcam_fast.store import MaskFolder, RunFolder


@app.command(epilog="Example: advcam-fast evaluate --run run --boxes")
def evaluate(
    run: Annotated[
        list[Path] | None, typer.Option(help="A run folder of `label`; two or more are compared with the first.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{AVAILABLE}; by default where `label` found the images.")] = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="MaxBoxAcc, V2, Top-1/5 and GT-known Loc by boxes.")] = False,
    pixels: Annotated[bool, typer.Option("--pixels", help="PxAP, by masks.")] = False,
    masks: Annotated[Path | None, typer.Option(help="By default RUN/masks. Without --run: these alone.")] = None,
    thresholds: Annotated[str | None, typer.Option(help="Of maps, by commas; by default 0, .01 ... .99.")] = None,
    as_json: Json = False,
) -> None:
    """Measure maps and masks of a run: mIoU at every threshold, by class, by object size, and boxes.

    Masks alone, what train-segmenter predicts say: --masks FOLDER without --run.
    """
    run, limits = run or [], _parsed(thresholds)
    if len({path.resolve() for path in run}) != len(run) or (masks is not None and len(run) > 1):
        raise UsageError("--run: wanted are different runs, and --masks with one run only")
    judged: list[JudgedRun] | list[JudgedMasks]
    if run:
        dataset = open_dataset(images_of(RunFolder.read(run[0]), data))
        wanted = evaluating.choose(dataset, boxes, pixels, limits)
        judged = [JudgedRun(path, dataset, masks) for path in run]
    elif masks is None or boxes or pixels:
        raise UsageError("wanted is --run RUN, or for masks alone --masks FOLDER without --boxes and --pixels")
    else:
        dataset = open_dataset(images_of(MaskFolder.read(masks), data))
        wanted = evaluating.choose_masks(dataset)
        judged = [JudgedMasks(masks, dataset)]
    try:
        with bar("evaluating", len(dataset.items), 0, hidden=as_json) as advance:
            result = evaluating.evaluate(judged, dataset, wanted, advance)
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    precision: dict[str, float] = {}
    if len(judged) == 1 and isinstance(judged[0], JudgedRun):
        precision, without = instance_figures(judged[0], dataset, masks)
        result.failures += [pair for pair in without if pair not in result.failures]
    figures = evaluating.figures_of(result, dataset)
    if precision:
        figures["runs"][0]["instances"] = precision
    file = write_evaluation(result, figures, dataset) if len(judged) == 1 else write_comparison(result, figures)
    if as_json:
        print(json.dumps(figures), flush=True)
    else:
        _say(figures, file)
    if result.failures:
        raise typer.Exit(3)


def _parsed(thresholds: str | None) -> tuple[float, ...]:
    if thresholds is None:
        return evaluating.DEFAULT_THRESHOLDS
    try:
        values = sorted({float(text) for text in thresholds.split(",")})
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise UsageError(f"--thresholds {thresholds}: wanted are numbers from 0 to 1, by commas")
    return tuple(values)


def _say(figures: dict[str, Any], file: Path) -> None:
    for failure in figures["failures"][:20]:
        say(f"failed: {failure['id']}: {failure['reason']}")
    if len(figures["failures"]) > 20:
        say(f"and {len(figures['failures']) - 20} more, see {file}")
    for run in figures["runs"]:
        made = f" ({run['preset'] or 'no preset'}, maps {run['maps']})" if run["maps"] else ""
        say(f"{run['run']}{made}, 95 % intervals:")
        console.print(_table(run))
    for entry in figures.get("differences", []):
        parts = {**entry.get("segmentation", {}), **entry.get("boxes", {}), **entry.get("pixels", {})}
        for what, measured in (("AdvCAM", parts), ("masks", entry.get("masks", {}))):
            shown = [f"{name} {_signed(part)}" for name, part in measured.items() if name != "by_size"]
            if shown:
                say(f"{entry['of']} over {entry['to']}, {what}: {', '.join(shown)}")
    images = figures["images"]
    say(
        f"{file}: {images['evaluated']} images evaluated, {images['failed']} failed, "
        f"{images['without_truth']} without ground truth"
    )


def _table(run: dict[str, Any]) -> Table:
    table = Table("", "measure", "value", "at", box=None, pad_edge=False)
    for name, part in run.get("segmentation", {}).items():
        if name == "gain":
            for preset in ("voc-cvpr2021", "ours"):
                if preset in part:
                    table.add_row("AdvCAM over CAM", f"mIoU, {preset}", _signed(part[preset]), "")
            continue
        for preset, best in part["best"].items():
            at = f"{best['threshold']:.2f}" if name != "masks" else ""
            table.add_row(name, f"mIoU, {preset}" if at else "mIoU", _ranged(best["miou"], best["interval"]), at)
        for size, own in part["by_size"].items():
            if own["objects"]:
                value = _ranged(own["iou"], own["interval"])
                table.add_row(name, f"IoU, {own['objects']} {size} objects", value, "")
        if part["boundary_miou"] is not None:
            value = _ranged(part["boundary_miou"], part["boundary_interval"])
            table.add_row(name, "boundary mIoU", value, "")
    for kind in ("boxes", "pixels"):
        for name, part in run.get(kind, {}).items():
            for measure, own in part.items():
                if isinstance(own, dict):
                    value = _signed(own) if name == "gain" else _ranged(own["value"], own["interval"])
                    at = f"{own['threshold']:.3f}" if "threshold" in own else ""
                    table.add_row("AdvCAM over CAM" if name == "gain" else name, measure, value, at)
    for measure, precision in run.get("instances", {}).items():
        table.add_row("instances", measure, f"{precision:.3f}" if precision >= 0 else "none of that size", "")
    return table


def _ranged(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _signed(part: dict[str, Any]) -> str:
    value, interval = part.get("miou", part.get("value")), part["interval"]
    return f"{value:+.3f}" + (f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "")
