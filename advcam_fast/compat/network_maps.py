"""Maps of a whole network at one of its layers, from images that are normalised already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.grad_climber import GradClimber
from advcam_fast.climb.plan import scaled_size
from advcam_fast.errors import UsageError
from advcam_fast.models import GradCamModel


class NetworkMaps:
    """Climbs a batch of normalised images of any network; results stay on its device.

    network: [B, 3, H, W] -> logits [B, C]; a frozen copy of it is kept at the first images. layer: a module of it or
    its name, as target_layer of GradCamModel. config: a ClimbConfig or the name of a preset.
    Raises UsageError as GradCamModel does, and for a layer that is not the network's.
    """

    def __init__(self, network: nn.Module, layer: nn.Module | str, config: ClimbConfig | str = "general") -> None:
        self.network = network
        self.layer = layer if isinstance(layer, str) else _name_of(layer, network)
        self.config = ClimbConfig.preset(config) if isinstance(config, str) else config
        self._climber: GradClimber | None = None

    def maps(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """sum over scales of resize(sum over steps of R): [B, 3, H, W] -> float32 [B, H, W], from 0 to 1.

        images: normalised floats. classes: int64 [B], each image's; None: the likeliest. Each map's least value becomes
        0 and its largest 1; a map of one value becomes 0.
        """
        floats = isinstance(images, Tensor) and images.is_floating_point()
        if not floats or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            came = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(f"images: {came} came, wanted are normalised floats [B, 3, H, W], one or more")
        climber = self._made(images)
        images = images.detach().to(climber.model.reference)
        if classes is None:
            with torch.no_grad():
                classes = climber.features(images.to(climber.network_dtype)).logits.argmax(1)
        labels = _checked(classes, len(images), climber.model.num_classes).to(images.device)[:, None]
        height, width = images.shape[2:]
        merged = images.new_zeros(len(images), 1, height, width, dtype=climber.acc)
        for scale in self.config.scales:
            factor = self.config.factor(scale, height, width)
            size = scaled_size(height, width, factor)
            views = images
            if size != (height, width):
                views = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
            steps, at_once = self.config.steps_for(scale), 1 if images.device.type == "cpu" else len(images)
            found = [  # one by one on a CPU, as MapMaker does: the same bits in any batch
                climber.climb(part, own, steps, at_once).total
                for part, own in zip(views.split(at_once), labels.split(at_once), strict=True)
            ]
            merged += F.interpolate(torch.cat(found), (height, width), mode="bilinear", align_corners=False)
        return _stretched(merged[:, 0]).float()

    @torch.inference_mode(False)
    def _made(self, images: Tensor) -> GradClimber:
        """The climber; how many classes there are shows only when the network is run."""
        if self._climber is None:
            training = self.network.training
            try:
                self.network.eval()
                with torch.no_grad():
                    logits = self.network(images[:1].to(next(self.network.parameters(), images)))
                if not isinstance(logits, Tensor) or logits.ndim != 2:
                    raise UsageError(f"the network gives {type(logits).__name__}, wanted are logits [B, C]")
                own = {"num_classes": logits.shape[1], "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
                model = GradCamModel(self.network, self.layer, **own)  # type: ignore[arg-type]
            finally:
                self.network.train(training)
            self._climber = GradClimber(model, self.config)
        return self._climber


def _name_of(layer: nn.Module, network: nn.Module) -> str:
    for name, module in network.named_modules():
        if module is layer and name:
            return name
    raise UsageError(f"the target layer, a {type(layer).__name__}, is no module of the network")


def _checked(classes: Tensor, count: int, num_classes: int) -> Tensor:
    if classes.dtype != torch.int64 or classes.shape != (count,):
        raise UsageError(f"classes: {classes.dtype} {list(classes.shape)} came, wanted is torch.int64 [{count}]")
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise UsageError(f"class {int(wrong[0])} came, the network has classes 0 to {num_classes - 1}")
    return classes


def _stretched(maps: Tensor) -> Tensor:
    """[B, H, W], each from 0 to 1."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp(min=torch.finfo(maps.dtype).tiny), 0)
