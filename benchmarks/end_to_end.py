"""From JPEG files to stored maps: ours in every precision against the plain loop, in one process.

python benchmarks/end_to_end.py resnet50_stride16
python benchmarks/end_to_end.py efficientnet_lite0 --preset fast --dtype fp32
python benchmarks/end_to_end.py resnet50_stride16 --dtype fp32 bf16 --steps-only    # a minute

The plain loop is the method as released (advcam_fast/bench/plain_loop.py), always with the paper's preset: a ResNet-50
takes it minutes an image. The photos are scikit-image's, as JPEG of one size; a network other than efficientnet_lite0
has random weights, which cost as much. Also printed: what share of the rate of one convolution, probed in this process,
a step reaches. Results go to benchmarks/results/end_to_end.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import advcam_fast as af
from advcam_fast.bench.networks import best_class, plain_peer, random_model
from advcam_fast.bench.plain_loop import plain_maps
from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.climb.climber import Climber
from advcam_fast.climb.config import DTYPES
from advcam_fast.data import open_dataset, read_image
from advcam_fast.models.convolution import Convolution
from advcam_fast.models.folding import folded
from advcam_fast.pipelines.demo import write_photos
from advcam_fast.pipelines.label import Labeller, LabelRule, label_dataset
from advcam_fast.store import RunFolder

RESULTS = Path(__file__).resolve().parent / "results" / "end_to_end.json"
PAPER = ClimbConfig.preset("voc-cvpr2021")
PROBE = (256, 47, 63)  # channels, height, width of the 3x3 convolution whose rate is the measure
STEPS, ROUNDS = 3, 9


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def write_jpegs(folder: Path, size: tuple[int, int], count: int, model: af.CamModel) -> list[int]:
    """`count` JPEG photos of one size, and a labels.csv of the class that scores best in each; these classes."""
    write_photos(folder / "originals")
    classes = []
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels"])
        for number, original in enumerate(sorted((folder / "originals").glob("*.png"))[:count]):
            photo = Image.open(original).convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS)
            photo.save(folder / f"{number}.jpg", quality=92)
            classes.append(best_class(model, read_image(folder / f"{number}.jpg")[None]))
            table.writerow([f"{number}.jpg", str(classes[-1])])
    return classes


def ours(maker: MapMaker, folder: Path, run_folder: Path) -> None:
    """All photos through the pipeline of `label`, into a new run folder."""
    dataset = open_dataset(f"csv:{folder / 'labels.csv'}")
    indices = {str(index): index for index in range(maker.model.num_classes)}
    with RunFolder.open(run_folder, {"benchmark": True}) as run:
        label_dataset(dataset, Labeller(maker, LabelRule(), indices), run)
        assert run.counts()["failed"] == 0


def plain(model: af.CamModel, network: nn.Module, file: Path, label: int, out: Path) -> None:
    """One photo by the plain loop, stored as the released code stores it."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    maps = plain_maps(network, model.class_weights, pixels, [label], PAPER, model.mean, model.std)
    np.savez(out, strided=maps.strided.numpy(), full=maps.full.numpy(), initial=maps.initial.numpy())


def probe_of(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Ten 3x3 convolutions of a pair of activations as they are in the middle of a ResNet-50, and their FLOP."""
    channels, height, width = PROBE
    x = torch.randn(2, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    layer = Convolution(nn.Conv2d(channels, channels, 3, padding=1), dtype, dtype)

    def ten() -> None:
        for _ in range(10):
            layer.forward(x)

    return ten, 10 * 2 * 2 * channels * channels * 9 * height * width


def step_flops(model: af.CamModel, size: tuple[int, int]) -> int:
    """Of the convolutions of a forward pass and a gradient of the image, for a flip pair."""
    assert isinstance(model.features, nn.Module)
    network = folded(model.features.double()).float().requires_grad_(False)
    model.features.float()
    images = torch.randn(2, 3, *size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops()


def step_figures(model: af.CamModel, view: Tensor, label: int, dtype: str, flops: int) -> dict[str, float]:
    """Medians over rounds of a step of a flip pair, of the probe's rate just before and after, and of their ratio.

    A step: of a climb of STEPS + 1 maps less the forward pass of the last. In turns, since a machine's rate drifts by
    more than what is measured.
    """
    climber, labels = Climber(model, replace(PAPER, dtype=dtype)), torch.tensor([[label]])
    probe, probe_flops = probe_of(DTYPES[dtype][0])
    runs = (probe, lambda: climber.climb(view, labels, 1, 1), lambda: climber.climb(view, labels, STEPS + 1, 1), probe)
    steps, rates, shares = [], [], []
    for turn in range(ROUNDS + 1):
        before, forward, climb, after = (seconds(run) for run in runs)
        if turn == 0:  # warm-up
            continue
        steps.append((climb - forward) / STEPS)
        rates.append(2 * probe_flops / (before + after))
        shares.append(flops / steps[-1] / rates[-1])
    return {
        "step_seconds": statistics.median(steps),
        "probe_gigaflops": statistics.median(rates) / 1e9,
        "share_of_probe": statistics.median(shares),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures; the whole runs' are stored before the steps are measured, for they take minutes."""
    lite0 = options.network == "efficientnet_lite0"
    model = af.load_model("efficientnet_lite0") if lite0 else random_model(options.network)
    size = tuple(options.size)
    classes = write_jpegs(folder, size, options.images, model)
    view = read_image(folder / "0.jpg")[None]
    network, _ = plain_peer(model, view)
    flops = step_flops(model, size)
    preset = ClimbConfig.preset(options.preset)
    makers = {dtype: MapMaker(model, replace(preset, dtype=dtype)) for dtype in options.dtype}
    found = {"size": list(size), "threads": torch.get_num_threads(), "torch": torch.__version__}
    found["executor"] = next(iter(makers.values())).executor
    if not options.steps_only:
        found |= whole_runs(options, folder, model, makers, network, view, classes)
        store(found, options)
    figures = {dtype: step_figures(model, view, classes[0], dtype, flops) for dtype in makers}
    for name, figure in figures.items():
        found.setdefault("step_seconds", {})[name] = figure["step_seconds"]
        if name != "mixed":  # of two rates
            found.setdefault("probe_gigaflops", {})[name] = figure["probe_gigaflops"]
            found.setdefault("share_of_probe", {})[name] = figure["share_of_probe"]
    found["step_gigaflop"] = flops / 1e9
    store(found, options)
    return found


def store(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Into the results file; whole runs replace what stood there, steps alone leave those of other precisions."""
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    name = f"{options.network}, {options.preset}"
    stored = results.get(name, {}) if options.steps_only else {}
    for key, value in found.items():
        stored[key] = stored.get(key, {}) | value if isinstance(value, dict) else value
    results[name] = stored
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def whole_runs(
    options: argparse.Namespace,
    folder: Path,
    model: af.CamModel,
    makers: dict[str, MapMaker],
    network: nn.Module,
    view: Tensor,
    classes: list[int],
) -> dict[str, Any]:
    """Medians of all photos' seconds, and how many times as fast as the plain loop they are."""
    times: dict[str, list[float]] = {name: [] for name in (*makers, "plain")}
    labels = torch.tensor([classes[:1]])
    for maker in makers.values():  # warm-up; minutes of the plain loop need none
        maker.climber.climb(view, labels, 2, 1)
    for number in range(options.rounds):
        for dtype, maker in makers.items():
            run_folder = folder / f"run_{dtype}_{number}"
            times[dtype].append(seconds(lambda m=maker, r=run_folder: ours(m, folder, r)) / options.images)
        photo = number % options.images
        run = lambda p=photo: plain(model, network, folder / f"{p}.jpg", classes[p], folder / "plain.npz")  # noqa: E731
        times["plain"].append(seconds(run))
        print(", ".join(f"{name} {found[-1]:.2f} s" for name, found in times.items()), flush=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "images": options.images,
        "rounds": options.rounds,
        "seconds_per_image": medians,
        "ratio": {name: medians["plain"] / value for name, value in medians.items() if name != "plain"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a name of advcam_fast.load_model")
    parser.add_argument("--preset", default="voc-cvpr2021", help="ours; the plain loop always takes the paper's")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "mixed", "bf16"], choices=DTYPES)
    parser.add_argument("--size", nargs=2, type=int, default=[375, 500], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=2, choices=range(1, 5))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps-only", action="store_true", help="a step and its share of the probed rate alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    for name, step in found["step_seconds"].items():
        ratio, share = found.get("ratio", {}).get(name), found["share_of_probe"].get(name)
        of_plain = f"{ratio:.2f} x the plain loop; " if ratio else ""
        of_probe = f", {share:.0%} of the probed rate" if share else ""
        print(f"{name}: {of_plain}a step {step:.3f} s{of_probe}")


if __name__ == "__main__":
    main()
