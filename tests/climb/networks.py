"""Small and not so small classifiers with weights that behave: activations of about unit size in every layer."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from advcam_fast import CamModel
from advcam_fast.bench.networks import calibrated, random_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height, width, seed=0):
    """A smooth random picture, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def resnet50_stride16():
    return random_model("resnet50_stride16")


def tiny(classes=5, seed=0):
    """Four convolutions, stride 4."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.ReLU(),
    )  # fmt: skip
    return CamModel(calibrated(network), torch.randn(classes, 24), torch.randn(classes), mean=MEAN, std=STD)
