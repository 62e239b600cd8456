"""Measurements as Markdown: `python -m advcam_fast.bench.table FILE.json` shows what pytest-benchmark wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up, all but the first to the right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *(line(row) for row in rows)])


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def seconds_of(benchmark: Mapping[str, Any]) -> float:
    """The median of a pytest-benchmark entry, less `less` seconds, divided by `per`, where its extra_info has them."""
    extra = benchmark["extra_info"]
    return float((benchmark["stats"]["median"] - extra.get("less", 0.0)) / extra.get("per", 1))


def benchmark_table(report: Mapping[str, Any]) -> str:
    """A row per group: our median, and for each other implementation its median and how many times ours it is."""
    groups: dict[str, dict[str, float]] = {}
    for benchmark in report["benchmarks"]:
        groups.setdefault(benchmark["group"], {})[benchmark["extra_info"]["implementation"]] = seconds_of(benchmark)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    names.sort(key=lambda name: name != "ours")
    rows = []
    for group, times in groups.items():
        row = [group]
        for name in names:
            if name not in times:
                row.append("")
            elif name == "ours" or "ours" not in times:
                row.append(duration(times[name]))
            else:
                row.append(f"{duration(times[name])} ({times[name] / times['ours']:.2f}×)")
        rows.append(row)
    return markdown(["median (× ours)", *names], rows)


def main() -> None:
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text())
        info = report["machine_info"]
        print(f"{info['cpu'].get('brand_raw', 'CPU')}, {info['threads']} threads, torch {info['torch']}\n")
        print(benchmark_table(report))


if __name__ == "__main__":
    main()
