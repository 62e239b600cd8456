"""How far the maps of each dtype are from float64's, step by step: python benchmarks/drift.py

Climbs of `general` at scale 1 on every 25th of the horses (efficientnet_lite0): relative L2 distance of the sums of the
maps. Needs the photos in ../shared/data; writes benchmarks/results/drift.json and docs/drift.png.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from explore import Recorder
from quality import DATA, SORREL

import advcam_fast as af
from advcam_fast.climb import ClimbConfig
from advcam_fast.data import open_dataset, read_image, resize_image

ROOT = Path(__file__).resolve().parents[1]
EVERY, STEPS = 25, 16
DTYPES = ("fp32", "mixed", "bf16")


def distances() -> dict[str, list[float]]:
    """dtype -> relative L2 distance from float64 after 1, 2, ... maps, the mean over the images."""
    config = replace(ClimbConfig.preset("general"), scales=(1.0,), steps=STEPS)
    model = af.load_model("efficientnet_lite0")
    climbers = {dtype: Recorder(model, replace(config, dtype=dtype)) for dtype in ("fp64", *DTYPES)}
    found: dict[str, list[torch.Tensor]] = {dtype: [] for dtype in DTYPES}
    for item in open_dataset(f"csv:{DATA / 'horses' / 'labels.csv'}").items[::EVERY]:
        image = read_image(item.path)
        view = resize_image(image, config.factor(1.0, *image.shape[1:]))[None]
        sums = {dtype: climber.sums(view, [SORREL], STEPS).double() for dtype, climber in climbers.items()}
        exact = sums["fp64"].flatten(1)
        for dtype in DTYPES:
            found[dtype].append((sums[dtype].flatten(1) - exact).norm(dim=1) / exact.norm(dim=1))
        print(item.id, file=sys.stderr, flush=True)
    return {dtype: torch.stack(rows).mean(0).tolist() for dtype, rows in found.items()}


def main() -> None:
    from matplotlib import pyplot

    if not DATA.is_dir():
        sys.exit(f"the photos are not there: {DATA}")
    rows = distances()
    out = ROOT / "benchmarks" / "results" / "drift.json"
    out.write_text(json.dumps({"torch": torch.__version__, "every": EVERY, "distance": rows}, indent=1) + "\n")
    figure, axis = pyplot.subplots(figsize=(6, 3.4))
    for dtype, row in rows.items():
        axis.semilogy(range(1, len(row) + 1), row, marker="o", label=dtype)
    axis.set(xlabel="maps summed", ylabel="distance from float64, relative")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "drift.png", dpi=110)
    for dtype, row in rows.items():
        print(dtype, ", ".join(f"{value:.1e}" for value in row))


if __name__ == "__main__":
    main()
