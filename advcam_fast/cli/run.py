"""run: a recipe, from its first step to a table of what every step gave."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from advcam_fast.cli.app import Json, app
from advcam_fast.cli.console import console, say
from advcam_fast.errors import UsageError
from advcam_fast.pipelines.recipe import SOME_FAILED, Chain, Done, Step, read_recipe
from advcam_fast.pipelines.recipe_table import figures_of_step, images_of_step

_OptionError: Any = typer.BadParameter.__base__  # click's, be it the installed one or typer's own copy


@app.command(
    epilog="Example: advcam-fast run recipes/voc.toml --set data=VOCdevkit/VOC2012 --set maps.preset=fast --out voc"
)
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of [[step]] tables: a verb and its options.")],
    out: Annotated[Path, typer.Option(help="The folder of the whole chain, {out} in the recipe.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=PATH", help="A path that it needs, or STEP.OPTION=VALUE of a step."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Give every step the chance to notice new data.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say the commands that it stands for.")] = False,
    as_json: Json = False,
) -> None:
    """Run a chain of verbs. Stopped at any moment, the same command goes on; steps that are done are left out."""
    verbs = sorted(set(typer.main.get_group(app).commands) - {"run"})
    chain = Chain(read_recipe(recipe, out, verbs, set_ or []), out)
    for number, step in enumerate(chain.steps, start=1):  # before hours are spent on the first of them
        check_options(f"{recipe}, step {number}, {step.name}", step)
    if check:
        for step in chain.steps:
            print(shlex.join(["advcam-fast", *step.arguments]))
        return
    ended: list[Done] = []
    for number, step in enumerate(chain.steps):
        done = None if again else chain.done(number)
        if done is None:
            say(f"step {number + 1} of {len(chain.steps)}: {' '.join(step.arguments)}")
            done = chain.run(number)
        ended.append(done)
    _report(chain, ended, as_json)
    if any(done.code == SOME_FAILED for done in ended):
        raise typer.Exit(SOME_FAILED)


def check_options(where: str, step: Step) -> None:
    """Raises UsageError for options that the step's verb does not have, lacks or cannot read."""
    verb, *options = step.arguments
    try:
        typer.main.get_group(app).commands[verb].make_context(verb, options)
    except _OptionError as error:
        raise UsageError(f"{where}: {error.format_message()}") from error


def _report(chain: Chain, ended: list[Done], as_json: bool) -> None:
    table = Table("step", "seconds", "images", "figures")
    rows = []
    for step, done in zip(chain.steps, ended, strict=True):
        images, figures = images_of_step(done.summary), figures_of_step(done.summary)
        table.add_row(step.name, f"{done.seconds:.1f}", images, "\n".join(map(str, figures)))
        own = {
            "step": step.name,
            "seconds": done.seconds,
            "images": images,
            "figures": [asdict(one) for one in figures],
        }
        rows.append({**own, "summary": done.summary})
    if as_json:
        print(json.dumps(rows), flush=True)
    else:
        console.print(table)
