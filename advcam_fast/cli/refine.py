"""refine: the maps of a run in, masks out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import advcam_fast as af
from advcam_fast.cli.app import Json, Retry, Set, app
from advcam_fast.cli.console import report, with_progress
from advcam_fast.data import AVAILABLE, open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.pipelines import refine as refining
from advcam_fast.refine import REFINE_PRESETS, RefineConfig
from advcam_fast.store import MaskFolder, RunFolder


@app.command(epilog="Example: advcam-fast refine --run run --preset color-walk")
def refine(
    run: Annotated[Path, typer.Option(help="The run folder of `label`.")],
    preset: Annotated[str, typer.Option(help=f"{', '.join(REFINE_PRESETS)}.")] = "color-walk",
    walk: Annotated[str | None, typer.Option(help="color: by the image's own colours. none.")] = None,
    crf: Annotated[bool | None, typer.Option("--crf/--no-crf", help="With a dense CRF at the end, or without.")] = None,
    set_: Set = None,
    data: Annotated[str | None, typer.Option(help="Where the images are; by default where `label` found them.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of masks; by default RUN/masks.")] = None,
    retry_failed: Retry = False,
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
        raise UsageError(f"{run}: it does not say where its images are: add --data {AVAILABLE}")
    dataset, where = open_dataset(spec), out or run / "masks"
    facts = {"preset": preset, "data": spec}
    with open_masks(source, where, config, retry_failed=retry_failed, info=facts) as (masks, classes):

        def work(advance: Any) -> None:
            refining.refine_run(source, dataset, masks, classes, config, advance)

        summary = with_progress("refining", masks, sum(source.counts().values()), work, as_json)
    report(summary, where, as_json, "masks")


@contextmanager
def open_masks(
    run: RunFolder, where: Path, config: RefineConfig, retry_failed: bool = False, info: Mapping[str, str] | None = None
) -> Iterator[tuple[MaskFolder, list[str]]]:
    """The folder of a run's masks, and the classes that their values stand for, which it names in a file."""
    classes = refining.run_classes(run)
    settings = {"refine": config.as_dict(), "classes": classes, "maps": refining.run_digest(run)}
    facts = {"advcam_fast": af.__version__, "argv": sys.argv[1:], **(info or {})}
    with MaskFolder.open(where, settings, retry_failed=retry_failed, info=facts) as masks:
        (where / refining.CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        yield masks, classes
