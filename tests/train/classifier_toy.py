"""A small classifier and images of coloured squares; run as a script it trains, and dies as it is told to."""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from advcam_fast.data import ImageError
from advcam_fast.models import TrainableClassifier
from advcam_fast.models.recipe import Recipe
from advcam_fast.train import ClassifierConfig, joined_team, train_classifier

CLASSES = ("red", "green", "blue")
CONFIG = ClassifierConfig(
    rate=0.01,
    head_rate=0.01,
    new_head="random",
    batch=4,
    epochs=3,
    crop=24,
    test_side=32,
    save_every=3,
    ema=0.5,
    batch_norm="trained",
)

# A batch cut in parts is learned as the whole one: no statistics of the parts, no rounding that is enlarged.
TOGETHER = replace(CONFIG, optimizer="sgd", rate=0.3, head_rate=0.3, batch_norm="frozen", color=False)
BROKEN = 3


def toy_net(seed: int = 0) -> TrainableClassifier:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU()]
    features = nn.Sequential(*layers)
    network = nn.Sequential(OrderedDict(body=features, fc=nn.Linear(12, len(CLASSES))))
    recipe = Recipe("fc", lambda _: network, lambda _: features, None)
    return TrainableClassifier("toy", network, features, recipe, False)


class Squares:
    """Grey images with up to two squares of the classes' colours, or with just one."""

    def __init__(self, count: int = 9, single: bool = False, broken: int | None = None, die_after: int = -1) -> None:
        self.count, self.single, self.broken, self.die_after, self.reads = count, single, broken, die_after, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> tuple[Tensor, list[int]]:
        self.reads += 1
        if self.reads - 1 == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.broken:
            raise ImageError(f"{index}.png: the file is empty")
        classes = [index % 3] if self.single else [c for c in range(3) if (index % 7) >> c & 1]
        image = torch.full((3, 32 + index % 3, 36), 90, dtype=torch.uint8)
        for place, c in enumerate(classes):
            image[:, 4:28, 2 + 12 * place : 12 + 12 * place] = 20
            image[c, 4:28, 2 + 12 * place : 12 + 12 * place] = 230
        return image, classes


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_team(torch.device("cpu")) as team:
        several = team.processes > 1
        data = Squares(die_after=int(sys.argv[2]), broken=BROKEN if several else None)
        how, config = {"judge": Squares(5), "resume": True, "team": team}, TOGETHER if several else CONFIG
        done = train_classifier(toy_net(), data, CLASSES, sys.argv[1], config, **how)  # type: ignore[arg-type]
        # In one write: print's pieces of two processes come mixed where Python's output has no buffer.
        sys.stdout.write(f"{team.rank} {done.problems} {done.score}\n")
