"""In the place of torchcam's extractors: change the import and the class, keep the rest of the script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advcam_fast.climb import ClimbConfig
from advcam_fast.compat.network_maps import NetworkMaps
from advcam_fast.errors import UsageError


class AdvCAM:
    """AdvCAM with the calls of torchcam's extractors: the model's last input is climbed.

        with AdvCAM(model, "layer4") as extractor:
            out = model(x)                                  # [B, 3, H, W]
            maps = extractor(out.argmax(1).tolist(), out)   # [a tensor [B, H, W], 0 to 1, on the model's device]

    model: [B, 3, H, W] -> logits [B, C]; a frozen copy is made at the first call, so that later changes are not seen.
    target_layer: a module of it or its name. config: ClimbConfig or the name of a preset.
    Raises UsageError as NetworkMaps does, and for a call before the model has seen an input.
    Source: https://github.com/frgfm/torch-cam for the calls; Lee et al., CVPR 2021, for the maps.
    """

    def __init__(self, model: nn.Module, target_layer: nn.Module | str, config: ClimbConfig | str = "general") -> None:
        self._maps = NetworkMaps(model, target_layer, config)
        self._input: Tensor | None = None
        self._hook = model.register_forward_pre_hook(self._seen)

    def __call__(self, class_idx: int | Sequence[int], scores: Any = None) -> list[Tensor]:
        """class_idx: one for all images of the batch, or one for each. scores: torchcam's argument, not needed."""
        if self._input is None:
            raise UsageError("no input came, wanted is a forward pass of the model before its maps")
        count = len(self._input)
        classes = [class_idx] * count if isinstance(class_idx, int) else list(class_idx)
        return [self._maps.maps(self._input, torch.tensor(classes, dtype=torch.int64))]

    def remove_hooks(self) -> None:
        """Takes the hook out of the model and forgets the input."""
        self._hook.remove()
        self._input = None

    def _seen(self, _model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = inputs[0].detach()

    def __enter__(self) -> AdvCAM:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()
