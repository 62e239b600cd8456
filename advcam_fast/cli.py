"""The command line: `advcam-fast VERB`. Exit codes: 0 done, 2 bad usage, 3 some images failed, 1 could not go on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import advcam_fast as af
from advcam_fast.climb import PRESETS, ClimbConfig, MapMaker
from advcam_fast.data import Dataset, match_labels, open_dataset
from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.pipelines import label as labelling
from advcam_fast.pipelines import refine as refining
from advcam_fast.pipelines.demo import draw_maps, write_photos
from advcam_fast.pipelines.doctor import advice, diagnose
from advcam_fast.refine import REFINE_PRESETS, RefineConfig
from advcam_fast.store import ItemFolder, MaskFolder, RunFolder, StoreError

app = typer.Typer(
    help="Image-level tags in, AdvCAM pseudo masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _console(stderr: bool) -> Console:
    """Prints text as it is: brackets and colons are part of class names and paths, not markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


console = _console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines, and no progress bar.")]
Out = Annotated[Path, typer.Option(help="The run folder; an unfinished run in it goes on.")]


def main() -> None:
    try:
        app()
    except (UsageError, StoppedError, StoreError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
        _say(f"error: {' '.join(reason.splitlines())}", style="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _say(line: str, style: str | None = None) -> None:
    console.print(line, style=style, soft_wrap=True)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show:
        print(f"advcam_fast {af.__version__}")
        raise typer.Exit


@app.command(epilog="Example: advcam-fast label --data csv:photos/labels.csv --model efficientnet_lite0 --out run")
def label(
    data: Annotated[str, typer.Option(help="folder:DIR, csv:FILE or voc:DIR#split.")],
    out: Out,
    model: Annotated[str, typer.Option(help="efficientnet_lite0, resnet50, squeezenet1_1, ..., or any timm name.")],
    weights: Annotated[str | None, typer.Option(help="A safetensors or torch weights file.")] = None,
    labels: Annotated[str, typer.Option(help="given: the data's tags. predicted: the model chooses.")] = "given",
    top_k: Annotated[int | None, typer.Option(help="Predicted: at most so many classes an image.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Predicted: classes of at least this probability.")] = None,
    class_map: Annotated[Path | None, typer.Option(help="CSV: tag, name or index of the model's class.")] = None,
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "general",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64: what the network runs in.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    store: Annotated[str, typer.Option(help="Maps are stored as fp16, fp32 or uint8.")] = "fp16",
    full: Annotated[bool, typer.Option("--full", help="Store the full-size maps too.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try images again that failed.")] = False,
    as_json: Json = False,
) -> None:
    """Compute the AdvCAM maps of every image of a data set. Stopped at any moment, the same command goes on."""
    if labels not in ("given", "predicted"):
        raise UsageError(f"--labels {labels}: wanted is given or predicted")
    rule = labelling.LabelRule(labels == "predicted", top_k, min_score)
    config = ClimbConfig.preset(preset).with_settings([*(set_ or []), *([f"dtype={dtype}"] if dtype else [])])
    dataset = open_dataset(data)
    net = af.load_model(model, weights, device=labelling.device_of(device))
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
            "classes": net.num_classes,
            "sha256": labelling.weights_digest(net),
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
        summary = _label_with_progress(dataset, maker, run, rule, matched, full, as_json)
    _report(summary, out, as_json)


@app.command(epilog="Example: advcam-fast refine --run run --preset color-walk")
def refine(
    run: Annotated[Path, typer.Option(help="The run folder of `label`.")],
    preset: Annotated[str, typer.Option(help=f"{', '.join(REFINE_PRESETS)}.")] = "color-walk",
    walk: Annotated[str | None, typer.Option(help="color: by the image's own colours. none.")] = None,
    crf: Annotated[bool | None, typer.Option("--crf/--no-crf", help="With a dense CRF at the end, or without.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")] = None,
    data: Annotated[str | None, typer.Option(help="Where the images are; by default where `label` found them.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of masks; by default RUN/masks.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try images again that failed.")] = False,
    as_json: Json = False,
) -> None:
    """Turn the maps of a run into palette masks. Stopped at any moment, the same command goes on."""
    chosen = [*([f"walk={walk}"] if walk else []), *(set_ or [])]
    config = RefineConfig.preset(preset).with_settings(chosen)
    if crf is not None and crf != (config.crf != "none"):
        config = replace(config, crf="hard" if crf else "none")
    source = RunFolder.read(run)
    spec = data or str(source.settings.get("data", ""))
    if not spec or spec == "demo":
        raise UsageError(
            f"{run}: it does not say where its images are: add --data csv:FILE, folder:DIR or voc:DIR#split"
        )
    dataset, where = open_dataset(spec), out or run / "masks"
    facts = {"preset": preset, "data": spec}
    with _masks(source, where, config, retry_failed=retry_failed, info=facts) as (masks, classes):

        def work(advance: Any) -> None:
            refining.refine_run(source, dataset, masks, classes, config, advance)

        summary = _with_progress("refining", masks, sum(source.counts().values()), work, as_json)
    _report(summary, where, as_json, "masks")


@app.command(epilog="Example: advcam-fast demo --out demo_run")
def demo(out: Out = Path("demo_run"), preset: str = "general", as_json: Json = False) -> None:
    """Label a few packaged photos with the packaged classifier; draw CAM, AdvCAM and the mask of each."""
    config = ClimbConfig.preset(preset)
    net = af.load_model("efficientnet_lite0", device=labelling.device_of("auto"))
    dataset = open_dataset(write_photos(out / "photos"))
    matched = labelling.tag_indices(dataset, net, match_labels)
    settings = {
        "data": "demo",
        "version": af.__version__,
        "weights": labelling.weights_digest(net),
        "climb": {"preset": preset, **config.as_dict()},
    }
    with RunFolder.open(out / "run", settings) as run:
        summary = _label_with_progress(
            dataset, MapMaker(net, config), run, labelling.LabelRule(), matched, False, as_json
        )
        if not summary["interrupted"]:
            refined = RefineConfig.preset("color-walk-crf")
            with _masks(run, out / "run" / "masks", refined) as (masks, classes):
                refining.refine_run(run, dataset, masks, classes, refined)
                summary["picture"] = str(draw_maps(run, masks, classes, out / "photos", out / "pictures"))
    _report(summary, out / "run", as_json)


@app.command(epilog="Example: advcam-fast doctor --json")
def doctor(as_json: Json = False) -> None:
    """Tell what is built, which devices and kernels are used, and how to get what is missing."""
    facts = diagnose()
    if as_json:
        print(json.dumps(facts | {"advice": advice(facts)}), flush=True)
        return
    table = Table(show_header=False, box=None)
    for group in ("versions", "extension", "devices"):
        table.add_row(group, ", ".join(f"{name} {value}" for name, value in facts[group].items() if value is not None))
    table.add_row("threads", str(facts["threads"]))
    for stem, backends in facts["kernels"].items():
        table.add_row(f"kernel {stem}", ", ".join(f"{device}: {name}" for device, name in backends.items()))
    for device, name in facts["convolutions"].items():
        table.add_row(f"convolutions, {device}", name)
    table.add_row("memory", facts["memory"])
    printer = _console(stderr=False)
    printer.print(table)
    for line in advice(facts) or ["nothing is missing"]:
        printer.print(f"- {line}", soft_wrap=True)


@contextmanager
def _masks(
    run: RunFolder, where: Path, config: RefineConfig, retry_failed: bool = False, info: Mapping[str, str] | None = None
) -> Iterator[tuple[MaskFolder, list[str]]]:
    """The folder of a run's masks, and the classes that their values stand for, which it names in a file."""
    classes = refining.run_classes(run)
    settings = {"refine": config.as_dict(), "classes": classes, "maps": refining.run_digest(run)}
    facts = {"advcam_fast": af.__version__, "argv": sys.argv[1:], **(info or {})}
    with MaskFolder.open(where, settings, retry_failed=retry_failed, info=facts) as masks:
        (where / refining.CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        yield masks, classes


def _label_with_progress(
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

    return _with_progress("labelling", run, len(dataset.items), work, as_json) | {"executor": maker.executor}


def _with_progress(
    doing: str, folder: ItemFolder, total: int, work: Callable[[Any], None], as_json: bool
) -> dict[str, Any]:
    """Does work on the items of a folder under a progress bar; what the folder holds at its end, or at Ctrl-C."""
    begin, before, interrupted = time.monotonic(), len(folder.done_ids()), False
    with _bar(doing, total, before, hidden=as_json) as advance:
        try:
            work(advance)
        except KeyboardInterrupt:
            interrupted = True
    failures = [record for record in folder.records() if record.status == "failed"] if folder.counts()["failed"] else []
    now = len(folder.done_ids()) - before
    seconds = time.monotonic() - begin
    return {
        **folder.counts(),
        "images": total,
        "done_before": before,
        "done_now": now,
        "seconds": round(seconds, 3),
        "images_per_second": round(now / seconds, 3) if seconds > 0 else 0.0,
        "failures": [{"id": record.id, "reason": record.reason} for record in failures],
        "interrupted": interrupted,
    }


@contextmanager
def _bar(doing: str, total: int, done: int, hidden: bool) -> Iterator[Any]:
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begin = time.monotonic()
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task(doing, total=total, completed=done, rate="")

        def advance(now: labelling.Progress) -> None:
            rate = (now.done - done) / max(time.monotonic() - begin, 1e-9)
            progress.update(task, completed=now.done, rate=f"{rate:.2f} images/s")

        yield advance


def _report(summary: dict[str, Any], out: Path, as_json: bool, made: str = "maps") -> None:
    """Says how the run ended and leaves with its exit code."""
    if as_json:
        print(json.dumps(summary), flush=True)  # a reader that went away is met here, not at exit
    else:
        for failure in summary["failures"][:20]:
            _say(f"failed: {failure['id']}: {failure['reason']}")
        if len(summary["failures"]) > 20:
            _say(f"and {len(summary['failures']) - 20} more, see {out / 'manifest'}")
        executor = f", executor: {summary['executor']}" if "executor" in summary else ""
        _say(
            f"{out}: {summary['ok']} of {summary['images']} images have {made}, {summary['failed']} failed; "
            f"{summary['done_now']} done now in {summary['seconds']:.1f} s "
            f"({summary['images_per_second']:.2f} images/s{executor})"
        )
        if "picture" in summary:
            _say(f"look at {summary['picture']}")
        if summary["interrupted"]:
            _say("stopped; the same command goes on from here")
    if summary["interrupted"]:
        raise typer.Exit(130)
    if summary["failed"]:
        raise typer.Exit(3)
