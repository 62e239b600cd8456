"""label --plan: what it will take, as a table."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from rich.table import Table

from advcam_fast.cli.console import console
from advcam_fast.data import Dataset
from advcam_fast.pipelines.label import Labeller, items_to_do
from advcam_fast.pipelines.plan import plan_label
from advcam_fast.store import RunFolder


def show_plan(dataset: Dataset, labeller: Labeller, out: Path, machines: int, as_json: bool) -> None:
    """Prints what labelling will take: all of a data set, or what a run in `out` has not done yet."""
    todo = items_to_do(dataset, RunFolder.read(out)) if (out / "run.toml").exists() else list(dataset.items)
    plan = plan_label(dataset, todo, labeller, out, machines)
    if as_json:
        print(json.dumps(plan), flush=True)
        return
    free = "" if plan["memory_free"] is None else f", {_size(plan['memory_free'])} more are free here"
    table = Table("what", "predicted", title=f"labelling {plan['to_do']} of {plan['images']} images")
    table.add_row("labels an image", f"{plan['labels_per_image']:.2f}")
    table.add_row("machines, processes", f"{machines}, {plan['processes']}")
    seconds, spread = _time(plan["seconds"]), f"{_time(plan['seconds_from'])} to {_time(plan['seconds_to'])}"
    table.add_row("time", f"{seconds} ({spread}), {plan['to_do'] / plan['seconds']:.2f} images/s")
    table.add_row("memory of a process", f"{_size(plan['memory'])}{free}")
    table.add_row("disk", f"{_size(plan['disk'])}, {_size(plan['disk_free'])} are free")
    table.add_row("too large for memory", f"{plan['too_large']} images")
    table.add_row("cannot be read", f"{plan['unreadable']} images")
    for probe in plan["probes"]:
        height, width = probe["size"]
        named = f"{width} x {height}, {probe['labels']} labels: {probe['seconds']:.2f} s"
        table.add_row(f"probe {probe['id']}", named)
    console.print(table)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _size(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
