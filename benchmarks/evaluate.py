"""Time and memory of `evaluate` on synthetic maps of 375 x 500 in the classes of VOC, from files on the disk.

python benchmarks/evaluate.py --images 1500 --threads 2

Writes a run of so many images (1.5 labels each on average, fp16) and their masks into a temporary folder, evaluates it
at the paper's 20 thresholds and at the default 100, and scales the time to the 10,582 images of train_aug: it grows
with the images and nothing else does but the ids. Beside it the sweep as the released code makes it, one pass over all
files for each threshold, on --naive of the images, on one thread. Results go to results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_fast.data import open_dataset
from advcam_fast.data.voc import VOC_CLASSES
from advcam_fast.models.heap import give_back_free_memory
from advcam_fast.pipelines.evaluate import DEFAULT_THRESHOLDS, PAPER_THRESHOLDS, Wanted, evaluate, figures_of
from advcam_fast.pipelines.judged_run import JudgedRun
from advcam_fast.store import RunFolder

RESULTS = Path(__file__).resolve().parent / "results" / "evaluation.json"
TRAIN_AUG = 10_582
HEIGHT, WIDTH = 375, 500
LABELS = (1, 1, 2, 1, 3, 1)


def write_run(folder: Path, images: int) -> str:
    """Smooth random maps, and as truth those of other ones above a half; returns the SPEC."""
    generator = torch.Generator().manual_seed(0)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("\n".join(VOC_CLASSES))
    rows = ["image,labels,mask"]
    settings = {"labels": {"from": "given"}, "class_map": {name: c for c, name in enumerate(VOC_CLASSES)}}
    with RunFolder.open(folder / "run", settings) as run:
        for number in range(images):
            classes = torch.tensor([(number * 7 + k) % 20 for k in range(LABELS[number % len(LABELS)])])
            labels = [VOC_CLASSES[c] for c in classes]
            coarse = torch.rand(2 * len(classes), 1, 7, 9, generator=generator)
            smooth = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)[:, 0]
            maps, others = smooth[: len(classes)], smooth[len(classes) :]
            strided = F.interpolate(maps[None], scale_factor=0.25, mode="bilinear", recompute_scale_factor=True)[0]
            strided = F.interpolate(strided[None], ((HEIGHT - 1) // 4 + 1, (WIDTH - 1) // 4 + 1))[0]
            run.finish(f"{number}", {"classes": classes, "strided": strided, "initial": maps}, labels=labels)
            best = (others + 0.2 * maps).max(0)
            mask = torch.where(best.values > 0.75, classes[best.indices] + 1, 0)
            mask[(best.values - 0.75).abs() < 0.01] = 255
            Image.fromarray(mask.to(torch.uint8).numpy()).save(folder / "masks" / f"{number}.png")
            rows.append(f"{number}.jpg,{';'.join(labels)},masks/{number}.png")
    (folder / "list.csv").write_text("\n".join(rows))
    return f"csv:{folder / 'list.csv'}"


def released_sweep(folder: Path, images: int, thresholds: Sequence[float]) -> float:
    """Seconds of one pass a threshold over the plain CAM alone: read, argmax, confusion; mIoU of all of them."""
    began = time.perf_counter()
    for threshold in thresholds:
        confusion = np.zeros((21, 21), np.int64)
        for number in range(images):
            with np.load(folder / "run" / "maps" / f"{number}.npz") as stored:
                maps, keys = stored["initial"].astype(np.float32), np.pad(stored["classes"] + 1, (1, 0))
            labels = keys[np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold).argmax(0)]
            truth = np.array(Image.open(folder / "masks" / f"{number}.png"))
            known = truth != 255
            pairs = 21 * truth[known].astype(np.int64) + labels[known]
            confusion += np.bincount(pairs, minlength=441).reshape(21, 21)
        hits = confusion.diagonal()
        np.nanmean(hits / np.maximum(confusion.sum(0) + confusion.sum(1) - hits, 1))
    return time.perf_counter() - began


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(folder: Path, spec: str, images: int, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Seconds from the list to all figures, and MB above what was there before."""
    give_back_free_memory()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began, busy = time.perf_counter(), time.process_time()
    dataset = open_dataset(spec)
    dataset = type(dataset)(dataset.items[:images], dataset.class_names, spec)
    result = evaluate([JudgedRun(folder / "run", dataset)], dataset, Wanted(True, thresholds=thresholds))
    read = time.perf_counter() - began
    figures_of(result, dataset)
    seconds = time.perf_counter() - began
    return {
        "images": images,
        "thresholds": len(thresholds),
        "seconds": seconds,
        "of which intervals": seconds - read,
        "scaled to train_aug": read / images * TRAIN_AUG + seconds - read,
        "processor ms an image, all threads": (time.process_time() - busy) / images * 1e3,
        "peak MB above the start": resident("VmHWM") - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--naive", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where the files go; by default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {"threads": options.threads}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        spec = write_run(folder, options.images)
        measure(folder, spec, 10, PAPER_THRESHOLDS)
        for images, thresholds in (
            (options.images // 3, PAPER_THRESHOLDS),
            (options.images, PAPER_THRESHOLDS),
            (options.images, DEFAULT_THRESHOLDS),
        ):
            rows[f"{images} images, {len(thresholds)} thresholds"] = measure(folder, spec, images, thresholds)
        naive = released_sweep(folder, options.naive, PAPER_THRESHOLDS)
        rows["released, 20 passes, CAM alone, scaled to train_aug"] = naive / options.naive * TRAIN_AUG
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
