"""In the place of pytorch_grad_cam's classes: change the import and the class, keep the rest of the script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advcam_fast.climb import ClimbConfig
from advcam_fast.compat.network_maps import NetworkMaps
from advcam_fast.errors import UsageError


class AdvCAM:
    """AdvCAM of a batch with the arguments of pytorch_grad_cam.GradCAM.

        cam = AdvCAM(model=model, target_layers=[model.layer4[-1]])
        grayscale_cam = cam(input_tensor=x, targets=[ClassifierOutputTarget(281)])  # float32 [B, H, W], 0 to 1

    `maps` gives the same as a tensor on the model's device. All images of the batch are climbed in one call.

    model: [B, 3, H, W] -> logits [B, C]; a frozen copy is made at the first call, so that later changes are not seen.
    target_layers: one. reshape_transform: not needed, and not used: tokens are told apart by the image's shape.
    config: ClimbConfig or the name of a preset.
    Raises UsageError for several layers, targets that name no class, or what NetworkMaps does not take.
    Source: https://github.com/jacobgil/pytorch-grad-cam for the arguments; Lee et al., CVPR 2021, for the maps.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        config: ClimbConfig | str = "general",
    ) -> None:
        if len(target_layers) != 1:
            raise UsageError(f"target_layers: {len(target_layers)} came, wanted is one")
        self._maps = NetworkMaps(model, target_layers[0], config)

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        """float32 [B, H, W], each map from 0 to 1. targets: ClassifierOutputTargets, or None for the likeliest."""
        if aug_smooth or eigen_smooth:
            raise UsageError(
                "aug_smooth and eigen_smooth came, wanted are maps as they are: a climb smooths by its steps"
            )
        return self.maps(input_tensor, targets).cpu().numpy()

    def maps(self, input_tensor: Tensor, targets: Sequence[Any] | None = None) -> Tensor:
        """As the call, on the model's device."""
        return self._maps.maps(input_tensor, None if targets is None else _classes(targets))

    def __enter__(self) -> AdvCAM:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is hooked into the model, so nothing is to be taken out."""


class GradCAM(AdvCAM):
    """pytorch_grad_cam.GradCAM for a whole batch, left on the device by `maps`: no climb, no flip."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, ClimbConfig(steps=1, scales=(1.0,), flip=False))


def _classes(targets: Sequence[Any]) -> Tensor:
    found = [getattr(target, "category", None) for target in targets]
    for target, category in zip(targets, found, strict=True):
        if category is None:
            raise UsageError(
                f"targets: a {type(target).__name__} came, wanted are ClassifierOutputTargets: a class each"
            )
    return torch.tensor([int(category) for category in found if category is not None], dtype=torch.int64)
