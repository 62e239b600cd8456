"""Duels as a chart of how many times faster, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from advcam_fast.bench.duel import compared
from advcam_fast.bench.table import duration, markdown


def table_of(found: Mapping[str, Any]) -> str:
    """A row a duel: both times and their ratio with its extremes, or why there are none."""
    rows = [
        [
            row["name"],
            f"{row['against']} {row['version']}".strip(),
            *(
                [row["reason"], "", ""]
                if row["reason"]
                else [
                    duration(row["ours"]),
                    duration(row["theirs"]),
                    f"{row['ratio']:.2f}× [{row['lowest']:.2f}, {row['highest']:.2f}]",
                ]
            ),
        ]
        for row in found["rows"]
    ]
    machine, scope = found["machine"], found["scope"]
    facts = (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; networks: {scope['network']}, "
        f"{scope['batch']} images of {scope['side']}x{scope['side']}; sizes in names divided by "
        f"{scope['shrink']}; medians of {scope['rounds']} rounds in turn"
    )
    return markdown(["what", "against", "ours", "theirs", "times ours"], rows) + f"\n\n{facts}"


def comparison_of(found: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Ratios then and now, of the rows that both have."""
    rows = [
        [name, against, f"{was:.2f}×", f"{now:.2f}×", f"{change:.2f}"]
        for name, against, was, now, change in compared(found, before)
    ]
    return markdown(["what", "against", "before", "now", "now / before"], rows)


def draw(found: Mapping[str, Any], file: BinaryIO) -> None:
    """A bar a duel that was measured, on a logarithmic axis: theirs / ours, with the extremes over the rounds."""
    from matplotlib.figure import Figure  # slow to import

    rows = [row for row in found["rows"] if row["ratio"]]
    names = [f"{row['name']}\nagainst {row['against']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    reach = [[row["ratio"] - row["lowest"] for row in rows], [row["highest"] - row["ratio"] for row in rows]]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#2a7f62" if ratio >= 1 else "#b5532a" for ratio in ratios]
    axes.barh(range(len(rows)), [ratio - 1 for ratio in ratios], left=1, color=colors, xerr=reach, ecolor="#555555")
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.01)
    axes.axvline(1, color="black", linewidth=0.8)
    for at, ratio in enumerate(ratios):
        axes.annotate(f" {ratio:.1f}×", (max(ratio, 1) * 1.02, at), va="bottom", fontsize=7)
    machine = found["machine"]
    axes.set_title(
        f"times as fast, {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}", fontsize=9
    )
    axes.set_xlabel("their median time / ours; right of 1 we are faster")
    figure.savefig(file, dpi=120, format="png")
