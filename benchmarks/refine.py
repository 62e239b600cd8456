"""Images a second of `refine` on a CPU, from a run's maps to its masks on disk: against a loop over pydensecrf2 that
does as much, and with all threads against one.

python benchmarks/refine.py

The photos are scikit-image's, as JPEG of 375 x 500, each several times; maps of two classes an image are smooth noise.
Both sides read the same files, do the sums of the preset and write palette PNGs; the masks agree at 99.9 % of the
pixels, or there is no figure. Medians and extremes of the ratios of both in turn. Results go to
results/refine_run.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from advcam_fast.bench.duel import Duel, Scope, fight
from advcam_fast.data import open_dataset
from advcam_fast.pipelines.demo import write_photos
from advcam_fast.pipelines.refine import refine_run, run_classes
from advcam_fast.refine import RefineConfig, refined_maps
from advcam_fast.store import MaskFolder, RunFolder

RESULTS = Path(__file__).resolve().parent / "results" / "refine_run.json"
NAMES = ("cat", "dog", "owl")


def write_run(folder: Path, count: int, size: tuple[int, int]) -> None:
    """`count` photos and their list in folder, and the maps of two classes each in folder/run."""
    write_photos(folder / "originals")
    originals = sorted((folder / "originals").glob("*.png"))
    random = torch.Generator().manual_seed(0)
    rows = ["image,labels"]
    with RunFolder.open(folder / "run", {"full": False}) as run:
        for number in range(count):
            photo = Image.open(originals[number % len(originals)]).convert("RGB")
            photo.resize(size[::-1], Image.Resampling.LANCZOS).save(folder / f"{number:04d}.jpg", quality=92)
            classes = [number % len(NAMES), (number + 1) % len(NAMES)]
            labels = [NAMES[which] for which in classes]
            rows.append(f"{number:04d}.jpg,{';'.join(labels)}")
            small = tuple((side - 1) // 4 + 1 for side in size)
            coarse = torch.rand(1, 2, 7, 9, generator=random)
            maps = F.interpolate(coarse, small, mode="bilinear", align_corners=True)[0]
            arrays = {"classes": torch.tensor(classes), "strided": maps, "initial": maps}
            run.finish(f"{number:04d}", arrays, labels=labels)
    (folder / "list.csv").write_text("\n".join(rows))


class Refine:
    """`refine` with a preset, into a new folder each time."""

    def __init__(self, folder: Path, config: RefineConfig, threads: int) -> None:
        self.folder, self.config, self.threads, self.calls = folder, config, threads, 0

    def __call__(self) -> Path:
        torch.set_num_threads(self.threads)
        run, self.calls = RunFolder.read(self.folder / "run"), self.calls + 1
        out = self.folder / f"masks_{self.config.crf}_{self.config.walk}_{self.threads}_{self.calls}"
        dataset = open_dataset(f"csv:{self.folder / 'list.csv'}")
        with MaskFolder.open(out, {}) as masks:
            refine_run(run, dataset, masks, run_classes(run), self.config)
            assert masks.counts()["failed"] == 0
        return out


class Plain:
    """The same by pydensecrf2, which has one thread, an image after the other."""

    def __init__(self, folder: Path, config: RefineConfig) -> None:
        self.folder, self.config = folder, config
        (folder / "plain").mkdir()

    def __call__(self) -> Path:
        from pydensecrf.densecrf import DenseCRF2D

        run = RunFolder.read(self.folder / "run")
        value = {name: 1 + number for number, name in enumerate(run_classes(run))}
        for record in run.records():
            pixels = np.array(Image.open(self.folder / f"{record.id}.jpg").convert("RGB"))
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            scores = refined_maps(run.read_maps(record.id)["strided"], image, self.config)
            scores = torch.cat([torch.full_like(scores[:1], self.config.background), scores])
            unary = -(scores / scores.sum(0)).clamp(min=1e-5).log()
            field = DenseCRF2D(pixels.shape[1], pixels.shape[0], len(unary))
            field.setUnaryEnergy(unary.flatten(1).numpy())
            (sxy, weight), bilateral = self.config.crf_gaussian, self.config.crf_bilateral
            field.addPairwiseGaussian(sxy=sxy, compat=weight)
            field.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=pixels, compat=bilateral[2])
            found = np.array(field.inference(self.config.crf_steps)).argmax(0).reshape(pixels.shape[:2])
            values = np.array([0, *(value[label] for label in record.labels)], np.uint8)
            Image.fromarray(values[found]).save(self.folder / "plain" / f"{record.id}.png")
        return self.folder / "plain"


def same_masks(ours: Path, theirs: Path) -> None:
    files = sorted(ours.glob("*.png"))
    assert files, "no masks came"
    for file in files:
        one, other = (np.asarray(Image.open(folder / file.name)) for folder in (ours, theirs))
        assert len(np.unique(one)) > 1, f"{file.name}: a mask of one value proves nothing"
        assert (one == other).mean() >= 0.999, f"{file.name}: masks agree at {(one == other).mean():.2%} of the pixels"


def duels(folder: Path, threads: int) -> Iterator[Duel]:
    crf, walk = RefineConfig.preset("crf"), RefineConfig.preset("color-walk")

    def against_plain(_: Scope) -> tuple[Any, Any, Any]:
        ours, plain = Refine(folder, crf, threads), Plain(folder, crf)
        return ours, plain, lambda: same_masks(ours(), plain())

    yield Duel(f"crf, {threads} threads", "a loop over pydensecrf2", "pydensecrf2", against_plain)
    for name, config in (("crf", crf), ("color-walk", walk)):

        def against_one(_: Scope, config: RefineConfig = config) -> tuple[Any, Any, Any]:
            ours, alone = Refine(folder, config, threads), Refine(folder, config, 1)
            return ours, alone, lambda: same_masks(ours(), alone())

        yield Duel(f"{name}, {threads} threads", "one thread", "", against_one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", nargs=2, type=int, default=[375, 500], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    report: dict[str, Any] = {"images": options.images, "size": options.size, "threads": threads}
    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name), options.images, tuple(options.size))
        rows = [fight(duel, Scope(rounds=options.rounds)) for duel in duels(Path(name), threads)]
    for row in rows:
        if row.reason:
            raise SystemExit(f"{row.name}: {row.reason}")
        rates = {key: options.images / taken for key, taken in (("ours", row.ours), ("theirs", row.theirs))}
        report[f"{row.name} against {row.against}"] = {
            **{f"{key}, images/s": round(rate, 2) for key, rate in rates.items()},
            "ratio": [round(value, 3) for value in (row.ratio, row.lowest, row.highest)],
        }
        print(f"{row.name}: {rates['ours']:.1f} images/s, {row.against} {rates['theirs']:.1f}, {row.ratio:.2f}")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
