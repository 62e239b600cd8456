"""AdvCAM of your classifier, features with a linear head over their average: `python examples/own_classifier.py`."""

from __future__ import annotations

import torch
from torch import nn

import advcam_fast as af

features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()).eval()
head = nn.Linear(32, 2)
imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
model = af.CamModel(features, head.weight, head.bias, class_names=["cat", "dog"], **imagenet)

photos = [torch.randint(0, 256, (3, height, 96), dtype=torch.uint8) for height in (64, 72)]  # yours: data.read_image
results = af.compute_maps(model, photos, [[0], [0, 1]], af.ClimbConfig.preset("fast"))
for result in results:
    print([model.class_names[index] for index in result.classes], tuple(result.full.shape))  # ['cat'] (1, 64, 96)
