"""report: a run in, one static page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from advcam_fast.cli.app import Data, Json, Masks, Run, app
from advcam_fast.cli.console import report as tell
from advcam_fast.cli.console import with_bar
from advcam_fast.data import open_dataset
from advcam_fast.pipelines import report as reporting
from advcam_fast.pipelines.refine import images_of
from advcam_fast.store import MaskFolder, RunFolder


@app.command(epilog="Example: advcam-fast report --run run")
def report(
    run: Run,
    masks: Masks = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="The page's folder; by default RUN/report.")] = None,
    as_json: Json = False,
) -> None:
    """Make one page of a run, to look at in a browser from disk or from a server: maps, curves, configuration."""
    folder = RunFolder.read(run)
    place = masks or run / "masks"
    there = MaskFolder.read(place) if masks or (place / "run.toml").is_file() else None
    dataset = open_dataset(images_of(folder, data))
    where = out or run / "report"

    def work(advance: Any) -> None:
        reporting.report_run(folder, there, dataset, where, advance)

    summary = with_bar("drawing", sum(folder.counts().values()), work, as_json)
    if not summary["interrupted"]:
        summary["page"] = str(where / "index.html")
    tell(summary, where, as_json, "been drawn", resumes=False)
