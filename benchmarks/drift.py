"""How far the maps of each dtype are from float64's, step by step.

python benchmarks/drift.py            # results/drift.json and docs/drift.png

Climbs of `general` at scale 1 on every 25th of the horses (efficientnet_lite0): relative L2 distance of the sums of the
maps. Needs the photos in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from quality import DATA, SORREL
from ways import Recorder

import advcam_fast as af
from advcam_fast.climb import ClimbConfig
from advcam_fast.data import open_dataset, read_image

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("fp32", "mixed", "bf16")


def distances(every: int, steps: int) -> dict[str, list[float]]:
    """dtype -> relative L2 distance from float64 after 1, 2, ... maps, the mean over the images."""
    config = replace(ClimbConfig.preset("general"), scales=(1.0,), steps=steps)
    model = af.load_model("efficientnet_lite0")
    climbers = {dtype: Recorder(model, replace(config, dtype=dtype)) for dtype in ("fp64", *DTYPES)}
    found: dict[str, list[torch.Tensor]] = {dtype: [] for dtype in DTYPES}
    for item in open_dataset(f"csv:{DATA / 'horses' / 'labels.csv'}").items[::every]:
        image = read_image(item.path)
        sums = {dtype: climber.sums(image, [SORREL])[1.0].double() for dtype, climber in climbers.items()}
        exact = sums["fp64"].flatten(1)
        for dtype in DTYPES:
            found[dtype].append((sums[dtype].flatten(1) - exact).norm(dim=1) / exact.norm(dim=1))
        print(item.id, file=sys.stderr, flush=True)
    return {dtype: torch.stack(rows).mean(0).tolist() for dtype, rows in found.items()}


def main() -> None:
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=25, help="of the horses")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "drift.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "drift.png")
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"the photos are not there: {DATA}")
    rows = distances(options.every, options.steps)
    found = {"torch": torch.__version__, "every": options.every, "distance": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    figure, axis = pyplot.subplots(figsize=(6, 3.4))
    for dtype, row in rows.items():
        axis.semilogy(range(1, len(row) + 1), row, marker="o", label=dtype)
    axis.set(xlabel="maps summed", ylabel="distance from float64, relative")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(options.picture, dpi=110)
    for dtype, row in rows.items():
        print(dtype, ", ".join(f"{value:.1e}" for value in row))


if __name__ == "__main__":
    main()
