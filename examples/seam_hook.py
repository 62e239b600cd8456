"""SEAM-style networks: climb one map, accumulate another. `python examples/seam_hook.py`

SEAM's class maps are refined by a pixel correlation module (PCM). The advice of AdvCAM's authors: climb on the average
of the cam head *before* PCM, accumulate the map *after* it, foreground only, 8 steps, lambda = 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advcam_fast as af

CLASSES = 3


class SmallSeam(nn.Module):
    """A network with SEAM's outputs: logits from the class maps, and with them the maps refined by PCM."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.cam_head = nn.Conv2d(32, CLASSES, 1, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        maps = self.cam_head(features)
        return maps.mean((2, 3)), self.pcm(maps.detach().relu(), features.detach())

    @staticmethod
    def pcm(maps: Tensor, features: Tensor) -> Tensor:
        """Every pixel's map becomes the mean of all, weighted by how alike their features are."""
        flat = F.normalize(features.flatten(2), dim=1)
        affinity = (flat.transpose(1, 2) @ flat).relu()
        affinity = affinity / (affinity.sum(1, keepdim=True) + 1e-5)
        return (maps.flatten(2) @ affinity).view_as(maps)


def seam_model(network: nn.Module) -> af.GradCamModel:
    """accumulate: what the network gives with its logits -> the maps to sum, [B, C, h, w]."""
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return af.GradCamModel(network, "features", num_classes=CLASSES, accumulate=lambda refined: refined, **imagenet)


CONFIG = af.ClimbConfig(steps=8, suppression=2.0, scales=(0.5, 1.0), steps_at_scale={}, other_classes="none")

if __name__ == "__main__":
    torch.manual_seed(0)
    photo = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    result = af.compute_maps(seam_model(SmallSeam().eval()), [photo], [[0, 2]], CONFIG)[0]
    print("classes", result.classes.tolist(), "maps", tuple(result.full.shape), "flags", result.flags)
