"""Memory and time of a climb's step against the size of the image and the number of flip pairs in a call.

python benchmarks/memory.py            # results/memory.json and docs/memory.png

Peak memory is what the process's resident set grows by, above weights and libraries, in a process of its own for every
row; the plain loop (advcam_fast/bench/plain_loop.py) has rows of its own. Linux only: it reads /proc/self.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from advcam_fast.bench.networks import plain_peer, random_model
from advcam_fast.bench.plain_loop import plain_step
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.climber import Climber
from advcam_fast.models.heap import give_back_free_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
SIDES = ((188, 250), (281, 375), (375, 500), (562, 750), (750, 1000))
PAIRS = (1, 2, 4, 8)
STEPS = 3


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measured(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(MB above what is resident after a first call, seconds) of a call."""
    run()  # the weights are laid out, the code for this size generated
    give_back_free_memory()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return resident("VmHWM") - before, statistics.median(seconds)


def measure(kind: str, network: str, height: int, width: int, pairs: int, rounds: int) -> dict[str, Any]:
    """One row, in this process. kind: "plain", or a dtype of ours."""
    model = random_model(network)
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (pairs, 3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.zeros(pairs, 1, dtype=torch.int64)
    config = replace(ClimbConfig.preset("voc-cvpr2021"), dtype="fp32" if kind == "plain" else kind)
    if kind == "plain":
        peer, pair = plain_peer(model, views[:1])

        def run() -> None:
            plain_step(peer, model.class_weights, pair, [0], None, config)
            peer.zero_grad(set_to_none=True)

        memory, seconds = measured(run, rounds)
    else:
        climber = Climber(model, config)
        memory, seconds = measured(lambda: climber.climb(views, labels, STEPS, pairs), rounds)
        seconds /= STEPS - 0.5  # the last map needs no gradient
    return {"kind": kind, "height": height, "width": width, "pairs": pairs, "megabytes": memory, "seconds": seconds}


def draw(rows: list[dict[str, Any]], network: str, out: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6))
    views = (
        (
            axes[0:2],
            lambda row: row["pairs"] == 1,
            lambda row: row["height"] * row["width"] / 1e6,
            "megapixels, one pair",
        ),
        (axes[2:4], lambda row: row["height"] == 375, lambda row: row["pairs"], "pairs of 375 x 500"),
    )
    for pair, chosen, x, label in views:
        for kind in dict.fromkeys(row["kind"] for row in rows):
            points = sorted(
                (x(row), row["megabytes"], row["seconds"]) for row in rows if chosen(row) and row["kind"] == kind
            )
            for axis, column in zip(pair, (1, 2), strict=True):
                axis.plot([p[0] for p in points], [p[column] for p in points], marker="o", label=kind)
        for axis, quantity in zip(pair, ("peak memory above the weights, MB", "seconds a step"), strict=True):
            axis.set(xlabel=label, ylabel=quantity, ylim=(0, None))
            axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(network)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50_stride16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", nargs=4, metavar=("KIND", "HEIGHT", "WIDTH", "PAIRS"), help="measure this one, here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "memory.png")
    options = parser.parse_args()
    if options.row:
        kind, *numbers = options.row
        print(json.dumps(measure(kind, options.network, *map(int, numbers), options.rounds)))
        return
    cases = [(kind, *size, 1) for kind in ("plain", "fp32", "mixed", "bf16") for size in SIDES]
    cases += [(kind, 375, 500, pairs) for kind in ("fp32", "bf16") for pairs in PAIRS[1:]]
    rows = []
    for case in cases:
        command = [sys.executable, __file__, "--network", options.network, "--rounds", str(options.rounds), "--row"]
        done = subprocess.run([*command, *map(str, case)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in rows[-1].items()
            )
        )
    options.out.write_text(
        json.dumps({"network": options.network, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
    )
    draw(rows, options.network, options.picture)


if __name__ == "__main__":
    main()
