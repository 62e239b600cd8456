"""Maps in a Ray Data pipeline of your own, between your steps: `python examples/ray_job.py`, with the extra `scale`.

To label a data set alone, `advcam-fast label --engine ray` does it, resumes and survives lost workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from torch import nn

import advcam_fast as af
from advcam_fast.climb import MapMaker


def small_model() -> af.CamModel:
    """Yours: af.load_model("efficientnet_lite0", device=...) in every worker, say."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()).eval()
    return af.CamModel(features, nn.Linear(32, 2).weight, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Maps:
    """A worker: it freezes the network once, and keeps it for all of its batches."""

    def __init__(self) -> None:
        self.maker = MapMaker(small_model(), af.ClimbConfig.preset("fast"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in batch["image"]]  # uint8 [3, H, W]
        results = self.maker.compute(images, [list(map(int, row)) for row in batch["labels"]])
        return {"id": batch["id"], "maps": [result.strided.numpy() for result in results]}  # [n, h, w] each


def photos(count: int = 4) -> list[dict[str, Any]]:
    """Yours: ray.data.read_images(...), read_parquet(...)."""
    draw = np.random.default_rng(0)
    return [
        {"id": number, "image": draw.integers(0, 255, (48, 64, 3), dtype=np.uint8), "labels": np.array([number % 2])}
        for number in range(count)
    ]


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # yours: ray.init("auto")
    made = ray.data.from_items(photos()).map_batches(Maps, batch_size=2, compute=ray.data.ActorPoolStrategy(size=1))
    for row in made.take_all():
        print(row["id"], np.asarray(row["maps"]).shape)  # 0 (1, 12, 16)
    ray.shutdown()
