"""run: a recipe, from its first step to a table of what every step gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from advcam_fast.cli.app import Json, app
from advcam_fast.cli.console import console, say
from advcam_fast.pipelines.recipe import SOME_FAILED, Chain, Done, read_recipe


@app.command(epilog="Example: advcam-fast run recipes/tiny.toml --out tiny")
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of [[step]] tables: a verb and its options.")],
    out: Annotated[Path, typer.Option(help="The folder of the whole chain, {out} in the recipe.")],
    again: Annotated[bool, typer.Option("--again", help="Give every step the chance to notice new data.")] = False,
    as_json: Json = False,
) -> None:
    """Run a chain of verbs. Stopped at any moment, the same command goes on; steps that are done are left out."""
    verbs = sorted(set(typer.main.get_group(app).commands) - {"run"})
    chain = Chain(read_recipe(recipe, out, verbs), out)
    ended: list[Done] = []
    for number, step in enumerate(chain.steps):
        done = None if again else chain.done(number)
        if done is None:
            say(f"step {number + 1} of {len(chain.steps)}: {' '.join(step.arguments)}")
            done = chain.run(number)
        ended.append(done)
    table = Table("step", "seconds", "what it gave")
    for step, done in zip(chain.steps, ended, strict=True):
        table.add_row(step.name, f"{done.seconds:.1f}", ", ".join(_figures(done.summary)))
    if as_json:
        rows = zip(chain.steps, ended, strict=True)
        print(json.dumps([{"step": s.name, "seconds": d.seconds, "summary": d.summary} for s, d in rows]), flush=True)
    else:
        console.print(table)
    if any(done.code == SOME_FAILED for done in ended):
        raise typer.Exit(SOME_FAILED)


def _figures(summary: Any) -> list[str]:
    """What a summary says in one number or word each."""
    shown = [(key, value) for key, value in summary.items() if isinstance(value, (int, float, str))]
    return [f"{key} {value}" for key, value in shown if not isinstance(value, bool) and key != "seconds"]
