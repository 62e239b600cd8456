"""bench: this machine's figures, ours beside those of the packages that are there."""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import advcam_fast as af
from advcam_fast.bench.chart import comparison_of, draw, table_of
from advcam_fast.bench.duel import FULL, QUICK, Row, fight, results
from advcam_fast.bench.duels import DUELS
from advcam_fast.cli.app import Json, app
from advcam_fast.cli.console import say
from advcam_fast.errors import UsageError
from advcam_fast.store.files import write_whole


@app.command(epilog="Example: advcam-fast bench --quick --out bench_run")
def bench(
    out: Annotated[Path, typer.Option(help="Gets bench.json, bench.md and bench.png.")] = Path("bench_run"),
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: about a minute.")] = False,
    only: Annotated[str, typer.Option(help="Rows with this text in their name or package.")] = "",
    compare: Annotated[Path | None, typer.Option(help="An earlier bench.json: how the ratios changed.")] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: the kernels and the climb beside other packages, on the CPU, each row checked first."""
    duels = [duel for duel in DUELS if only.lower() in f"{duel.name} {duel.against} {duel.package}".lower()]
    if not duels:
        raise UsageError(f"--only {only}: no row has that; there are {', '.join(dict.fromkeys(d.name for d in DUELS))}")
    before = None if compare is None else _read(compare)
    scope, rows = QUICK if quick else FULL, list[Row]()
    for duel in duels:
        rows.append(fight(duel, scope))
        if not as_json:
            row = rows[-1]
            say(f"{row.name}, {row.against}: {row.reason or f'{row.ratio:.2f} times as fast'}")
    found = results(rows, scope, _machine())
    _write(found, out, "" if before is None else "\n" + comparison_of(found, before) + "\n")
    if as_json:
        print(json.dumps(found), flush=True)
    else:
        print((out / "bench.md").read_text(encoding="utf-8"), flush=True)
        say(f"look at {out / 'bench.png'}")
    if any(row.wrong for row in rows):
        raise typer.Exit(3)


def _write(found: dict[str, Any], out: Path, change: str) -> None:
    picture = io.BytesIO()
    draw(found, picture)
    files = {
        "bench.json": (json.dumps(found, indent=1) + "\n").encode(),
        "bench.md": (table_of(found) + "\n" + change).encode(),
        "bench.png": picture.getvalue(),
    }
    for name, content in files.items():
        write_whole(out / name, content, out / f".{name}.tmp")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert all({"name", "against", "ratio"} <= row.keys() for row in found["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no results of bench"
        raise UsageError(f"--compare {file}: {reason}; wanted is a bench.json") from None
    return found


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "advcam_fast": af.__version__,
    }


def _cpu() -> str:
    """Linux says it in a file, other systems by platform."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
