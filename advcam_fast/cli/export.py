"""export: a run in, the folders of other tools out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from advcam_fast.cli.app import Data, Json, Masks, Run, app
from advcam_fast.cli.console import report, say, with_bar
from advcam_fast.data import open_dataset
from advcam_fast.export import FORMATS
from advcam_fast.pipelines import export as exporting
from advcam_fast.pipelines.refine import images_of
from advcam_fast.store import RunFolder


@app.command(epilog="Example: advcam-fast export --run run --to voc,coco --out exported")
def export(
    run: Run,
    to: Annotated[str, typer.Option(help=f"One or several of {','.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="Gets one folder a format.")],
    masks: Masks = None,
    data: Data = None,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy images where links would do.")] = False,
    as_json: Json = False,
) -> None:
    """Write the masks, objects and maps of a run in the formats of other tools."""
    formats = exporting.parse_formats(to)
    folder = RunFolder.read(run)
    source = exporting.ExportSource.read(folder, masks or run / "masks", formats)
    dataset = open_dataset(images_of(folder, data))

    def work(advance: Any) -> None:
        exporting.export_run(source, dataset, formats, out, copy_images=copy_images, report=advance)

    summary = with_bar("exporting", sum(folder.counts().values()), work, as_json)
    if "released" in formats and not folder.settings.get("full") and not as_json:
        say("released: this run has no maps of full size (label --full): high_res is the stride-4 map, enlarged")
    report(summary | {"formats": formats}, out, as_json, f"been exported as {', '.join(formats)}", resumes=False)
