"""Images a second of train-classifier, of its judging and of reading for `label`, beside plain DataLoader loops.

python benchmarks/throughput.py

Both sides read the same JPEGs of 375 x 500, as a folder and as WebDataset shards (theirs through the package of that
name), and do the same sums with the same network, in turns in one run; medians and extremes of the ratios. Ours are the
whole calls, the listing of the data, checks, log and checkpoints included; plain loops have none of these. On a small
network, so that the images weigh something. Results go to results/throughput.json.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from advcam_fast.bench.duel import Duel, Scope, fight
from advcam_fast.data import open_dataset, read_image
from advcam_fast.models import TrainableClassifier, new_classifier
from advcam_fast.pipelines.train_classifier import tagged
from advcam_fast.train import ClassifierConfig, class_logits, train_classifier

RESULTS = Path(__file__).resolve().parent / "results" / "throughput.json"
NAMES = ("cat", "dog", "owl")
SHARDS = 2


def write_photos(folder: Path, count: int) -> None:
    """Smooth random photos in list.csv and, the same bytes, in shards/*.tar."""
    draw, rows = np.random.default_rng(0), ["image,labels"]
    (folder / "shards").mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / "shards" / f"{shard}.tar", "w") as tar:
            for number in range(shard, count, SHARDS):
                coarse = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                content, tags = io.BytesIO(), [NAMES[number % 3]]
                Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(content, "JPEG", quality=92)
                (folder / f"{number:04d}.jpg").write_bytes(content.getvalue())
                rows.append(f"{number:04d}.jpg,{tags[0]}")
                for ending, member in (("jpg", content.getvalue()), ("json", json.dumps(tags).encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{ending}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    (folder / "list.csv").write_text("\n".join(rows))
    (folder / "shards" / "classes.txt").write_text("\n".join(NAMES))


class PlainFolder(Dataset[Any]):
    def __init__(self, rows: list[tuple[Path, str]], view: Callable[[Image.Image], Tensor]) -> None:
        self.rows, self.view = rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file, tag = self.rows[index]
        with Image.open(file) as image:
            return self.view(image.convert("RGB")), one_hot([tag])


def one_hot(tags: list[str]) -> Tensor:
    return torch.tensor([float(name in tags) for name in NAMES])


def plain_loader(
    folder: Path, source: str, view: Callable[[Image.Image], Tensor], batch: int | None, shuffle: bool = False
) -> DataLoader[Any]:
    if source == "folder":
        lines = (folder / "list.csv").read_text().splitlines()[1:]
        rows = [(folder / line.split(",")[0], line.split(",")[1]) for line in lines]
        return DataLoader(PlainFolder(rows, view), batch_size=batch, shuffle=shuffle)
    shards = webdataset.WebDataset(sorted(map(str, (folder / "shards").glob("*.tar"))), shardshuffle=False)
    samples = (shards.shuffle(1000) if shuffle else shards).decode("pil").to_tuple("jpg", "json")
    return DataLoader(samples.map_tuple(view, one_hot), batch_size=batch)


def spec_of(folder: Path, source: str) -> str:
    return f"csv:{folder / 'list.csv'}" if source == "folder" else f"webdataset:{folder / 'shards'}/*.tar"


def resized(image: Image.Image, side: int) -> Image.Image:
    factor = side / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def normalised(image: Image.Image | Tensor, net: TrainableClassifier) -> Tensor:
    pixels = image if isinstance(image, Tensor) else tvf.pil_to_tensor(image)
    return tvf.normalize(pixels.float() / 255, list(net.recipe.mean), list(net.recipe.std))


def reading(folder: Path, source: str, _: Scope) -> tuple[Any, Any, Any]:
    def ours() -> list[Tensor]:
        return [read_image(item.path) for item in open_dataset(spec_of(folder, source)).items]

    def plain() -> list[Tensor]:
        return [image for image, _ in plain_loader(folder, source, tvf.pil_to_tensor, None)]

    def check() -> None:
        assert all(torch.equal(one, other) for one, other in zip(ours(), plain(), strict=True)), "other pixels"

    return ours, plain, check


def judging(folder: Path, source: str, config: ClassifierConfig, model: str, _: Scope) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    net = new_classifier(model, "none", NAMES)

    def ours() -> Tensor:
        dataset = open_dataset(spec_of(folder, source))
        return class_logits(net, tagged(dataset, NAMES, False), len(NAMES), config).values

    @torch.no_grad()
    def plain() -> Tensor:
        net.eval()
        loader = plain_loader(folder, source, lambda image: normalised(resized(image, config.test_side), net), 16)
        return torch.cat([net(images) for images, _ in loader])

    def check() -> None:
        one, other = ours(), plain()
        assert one.shape == other.shape and float((one - other).abs().max() / other.abs().max()) < 1e-4, "other logits"

    return ours, plain, check


def training(folder: Path, source: str, config: ClassifierConfig, model: str, _: Scope) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    net, calls = new_classifier(model, "none", NAMES), iter(range(10**6))
    seen: dict[str, int] = {}

    def ours() -> None:
        dataset = open_dataset(spec_of(folder, source))
        out, steps = folder / f"{source}{next(calls)}", []
        train_classifier(net, tagged(dataset, NAMES, False), NAMES, out, config, report=steps.append)
        seen["ours"] = len(steps)

    def plain() -> None:
        net.train()
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        area = v2.RandomResizedCrop(config.crop, config.sizes, interpolation=v2.InterpolationMode.BICUBIC)
        draw = v2.Compose([v2.RandomHorizontalFlip(), area, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
        optimizer = torch.optim.SGD(net.parameters(), config.rate, config.momentum, weight_decay=config.weight_decay)
        seen["plain"] = 0
        for images, classes in plain_loader(
            folder, source, lambda image: normalised(draw(tvf.pil_to_tensor(image)), net), config.batch, shuffle=True
        ):
            loss = F.multilabel_soft_margin_loss(net(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen["plain"] += 1

    def check() -> None:
        ours()
        plain()
        assert seen["ours"] == seen["plain"], f"{seen} steps"

    return ours, plain, check


def duels(folder: Path, side: int, batch: int, model: str) -> Iterator[Duel]:
    config = ClassifierConfig(
        optimizer="sgd", new_head="random", schedule="poly", warm_up=0.0, rate=1e-4, head_rate=1e-4, ema=0.0
    )
    config = config.with_settings([f"crop={side}", f"test_side={side}", f"batch={batch}", "epochs=1"])
    for source in ("folder", "shards"):
        how = dict(folder=folder, source=source)
        more = dict(config=config, model=model)
        against = "DataLoader" if source == "folder" else "webdataset and DataLoader"
        for name, make, given in (
            ("reading", reading, how),
            ("judging", judging, how | more),
            ("training", training, how | more),
        ):
            yield Duel(f"{name}, {source}", against, "", lambda scope, make=make, given=given: make(_=scope, **given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {key: value for key, value in vars(options).items() if key != "out"}
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), options.images)
        rows = [
            fight(duel, Scope(rounds=options.rounds))
            for duel in duels(Path(name), options.side, options.batch, options.model)
        ]
    for row in rows:
        if row.reason:
            raise SystemExit(f"{row.name}: {row.reason}")
        rates = {"ours": options.images / row.ours, "plain": options.images / row.theirs}
        report[row.name] = {
            "against": row.against,
            **{f"{key}, images/s": round(rate, 2) for key, rate in rates.items()},
            "ratio": [round(value, 3) for value in (row.ratio, row.lowest, row.highest)],
        }
        print(f"{row.name}: {rates['ours']:.1f} images/s, {row.against} {rates['plain']:.1f}, {row.ratio:.2f}")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
