"""The Typer app that every verb joins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import advcam_fast as af

app = typer.Typer(
    help="Image-level tags in, AdvCAM pseudo masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines, and no progress bar.")]
Out = Annotated[Path, typer.Option(help="The run folder; an unfinished run in it goes on.")]
Run = Annotated[Path, typer.Option(help="The run folder of `label`.")]
Data = Annotated[str | None, typer.Option(help="Where the images are; by default where `label` found them.")]
Masks = Annotated[Path | None, typer.Option(help="The folder of masks; by default RUN/masks.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try images again that failed.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show:
        print(f"advcam_fast {af.__version__}")
        raise typer.Exit
