"""doctor: what is built, used and missing."""

from __future__ import annotations

import json

from rich.table import Table

from advcam_fast.cli.app import Json, app
from advcam_fast.cli.console import plain_console
from advcam_fast.pipelines.doctor import advice, diagnose


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
    printer = plain_console(stderr=False)
    printer.print(table)
    for line in advice(facts) or ["nothing is missing"]:
        printer.print(f"- {line}", soft_wrap=True)
