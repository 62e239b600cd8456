"""The affinity net of IRN: where objects end, and where each pixel's instance has its centre."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models.checkpoint import Checkpoint, read_checkpoint
from advcam_fast.models.load import load_model
from advcam_fast.models.recipe import IMAGENET_MEAN, IMAGENET_STD, fill
from advcam_fast.models.stages import five_stages, stage_sizes

_BACKBONE = "resnet50_stride16"
_STRIDE = 4  # of what comes out
_CANVAS = 512  # the side that the released code pads images to: GroupNorm's averages depend on it

# Released files hold every tensor again in other groupings, and the pairs of the training crop.
_COPIES = re.compile(r"(backbone|edge_layers|dp_layers)\..*|path_indices\d+|ind_from|ind_to|disp_target")


class AffinityNet(nn.Module):
    """Frozen stages with two heads on them: boundary (fc_edge1-6) and displacement (fc_dp1-7, mean_shift).

    e_k = relu(up(GroupNorm_4(W_k x_k))), 32 channels each, of the stages x_1 to x_5; boundary = W_6 [e_1 .. e_5] + b
    d_k likewise with 64, 128, 256, 256, 256 channels in GroupNorms of 8 groups, then 16; d_6 = block([d_3 d_4 d_5]);
    displacement = W block([d_1 d_2 d_6]) - running_mean, which is not subtracted while training.

    Args:
        stages: five modules, each on the output of the one before, the first on normalised images [B, 3, H, W].
        channels: of each stage. strides: of each, from the image: 4, 4, then multiples of 4 that never fall.
        mean, std: of the images, red, green and blue in [0, 1].
        backbone: the model's name that the stages are of, for the file of its weights; empty for others.

    The stages stay frozen and in eval mode, whatever `train` or `requires_grad_` say of the net.
    Raises UsageError where the stages are not five of such strides.
    Source: Ahn et al., CVPR 2019 (IRN), and the layers of its released weights.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int] = (64, 256, 512, 1024, 2048),
        strides: Sequence[int] = (4, 4, 8, 16, 16),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        backbone: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        ups = _ups(stages, channels, strides)
        self.mean, self.std = tuple(mean), tuple(std)
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = stages
        for stage in self.stages:
            stage.requires_grad_(False).eval()
        one, two, three, four, five = channels
        self.fc_edge1 = _block(one, 32, 4)
        self.fc_edge2 = _block(two, 32, 4)
        self.fc_edge3 = _block(three, 32, 4, ups[2])
        self.fc_edge4 = _block(four, 32, 4, ups[3])
        self.fc_edge5 = _block(five, 32, 4, ups[4])
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.fc_dp1 = _block(one, 64, 8)
        self.fc_dp2 = _block(two, 128, 16)
        self.fc_dp3 = _block(three, 256, 16)
        self.fc_dp4 = _block(four, 256, 16, ups[3] // ups[2])
        self.fc_dp5 = _block(five, 256, 16, ups[4] // ups[2])
        self.fc_dp6 = _block(768, 256, 16, ups[2])
        self.fc_dp7 = nn.Sequential(*_block(448, 256, 16), nn.Conv2d(256, 2, 1, bias=False))
        self.mean_shift = _MeanShift()

    @property
    def stages(self) -> list[nn.Module]:
        return [self.stage1, self.stage2, self.stage3, self.stage4, self.stage5]

    def boundary_parameters(self) -> list[nn.Parameter]:
        return [tensor for name, tensor in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        return [tensor for name, tensor in self.named_parameters() if name.startswith("fc_dp")]

    def train(self, mode: bool = True) -> AffinityNet:
        super().train(mode)
        for stage in self.stages:
            stage.eval()  # the averages of a frozen BatchNorm are its own
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(boundary logits, displacement): normalised [B, 3, H, W] -> [B, h, w] and [B, 2, h, w], h = ceil(H / 4).

        Displacement is dy, dx from a pixel to the centre of its instance, in pixels of the map.
        """
        features = self.features(images)
        size = features[1].shape[-2:]
        first, second, third, fourth, fifth = features
        edges = [self.fc_edge1(first), self.fc_edge2(second)]
        edges += [self.fc_edge3(third), self.fc_edge4(fourth), self.fc_edge5(fifth)]
        boundary = self.fc_edge6(torch.cat([_cropped(edge, size) for edge in edges], 1))
        coarse = third.shape[-2:]
        deep = [_cropped(each, coarse) for each in (self.fc_dp3(third), self.fc_dp4(fourth), self.fc_dp5(fifth))]
        fused = self.fc_dp6(torch.cat(deep, 1))
        wide = [_cropped(each, size) for each in (self.fc_dp1(first), self.fc_dp2(second), fused)]
        return boundary[:, 0], self.mean_shift(self.fc_dp7(torch.cat(wide, 1)))

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The outputs of the five stages, without a gradient."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
            raise UsageError(f"images are {images.dtype} {list(images.shape)}; wanted normalised floats [B, 3, H, W]")
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std: uint8 [..., 3, H, W] -> float of the net's dtype, on its device."""
        if images.dtype != torch.uint8 or images.ndim < 3 or images.shape[-3] != 3 or 0 in images.shape:
            raise UsageError(f"images are {images.dtype} {list(images.shape)}; wanted torch.uint8 [..., 3, H, W]")
        weight = self.fc_edge6.weight
        return normalised(images.to(weight.device), self.mean, self.std, weight.dtype)

    @torch.no_grad()
    def predict(self, image: Tensor, canvas: int | None = _CANVAS) -> tuple[Tensor, Tensor]:
        """(boundary, displacement) of one image: uint8 [3, H, W] -> [h, w], a probability, and [2, h, w].

        boundary = sigmoid((z(image) + mirrored z(mirrored image)) / 2); displacement is the image's own: a mirrored
        one would point elsewhere. Running mean subtracted, in training mode too.
        canvas: shorter sides are filled up with the mean colour, as in training, on the right and below; None: never.
        Source: Ahn et al., CVPR 2019 (IRN); the released code crops what is over its canvas, here nothing is cropped.
        """
        if image.ndim != 3:
            raise UsageError(f"image is {image.dtype} {list(image.shape)}; wanted torch.uint8 [3, H, W]")
        both = self.normalise(torch.stack([image, image.flip(-1)]))
        height, width = (-(-side // _STRIDE) for side in image.shape[-2:])
        if canvas is not None:
            missing = [max(0, canvas - side) for side in image.shape[-2:]]
            both = F.pad(both, (0, missing[1], 0, missing[0]))
        training = self.training
        try:
            logits, displacement = self.eval()(both)
        finally:
            self.train(training)
        logits = logits[:, :height, :width]
        return ((logits[0] + logits[1].flip(-1)) / 2).sigmoid(), displacement[0, :, :height, :width].contiguous()


class _MeanShift(nn.Module):
    """Differences of displacement are trained alone: what all pixels have in common is subtracted afterwards."""

    running_mean: Tensor  # [2]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Tensor) -> Tensor:
        return displacement if self.training else displacement - self.running_mean.view(2, 1, 1)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 [..., 3, H, W], where the images are: workers have no net to ask."""
    shift, scale = (torch.tensor(values, dtype=dtype, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.to(dtype) / 255 - shift) / scale


def new_affinity_net(weights: str | Path | None = None, backbone: str = _BACKBONE) -> AffinityNet:
    """Random heads on the stages of a backbone; IRN trains them on a ResNet-50 whose layer4 has stride 1.

    backbone: a ResNet of torchvision or efficientnet_lite0. weights: of the backbone, as for load_model: None for the
    library's, "none" for random ones, or a classifier's file. Raises UsageError as load_model does, and for a backbone
    whose stages are not known.
    """
    fresh_head = weights is None or weights == "none"  # a file says itself how many classes its head has
    model = load_model(backbone, weights, num_classes=1 if fresh_head else None)
    assert isinstance(model.features, nn.Module)
    stages = five_stages(model.features, backbone)
    return AffinityNet(stages, *stage_sizes(stages), model.mean, model.std, backbone)


def load_affinity_net(path: str | Path, device: torch.device | str = "cpu") -> AffinityNet:
    """The affinity net of a file, in eval mode: our own .safetensors, or the released IRN's torch file.

    The file holds stages and heads: `stage1.0.weight` (conv1) to `stage5.*`, or `resnet50.*` in their place,
    `fc_edge1.0.weight` to `fc_dp7.*`, and `mean_shift.running_mean` or, in older files, `fc_dp7.4.running_mean`.
    Our own name their backbone; without a name it is IRN's.
    Raises UsageError for a file that cannot be read or a key that is missing, left over or of another shape.
    """
    found = read_checkpoint(path)
    backbone = found.metadata.get("backbone")
    net = new_affinity_net("none", backbone or _BACKBONE)
    tensors = dict(found.tensors) if backbone else _adapted(dict(found.tensors))
    fill(net, "", Checkpoint(found.source, tensors), with_head=False)  # no head of classes, so nothing is forgiven
    return net.eval().to(device)


def _adapted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    staged = any(key.startswith("stage") for key in tensors)
    adapted = {}
    for key, tensor in tensors.items():
        if _COPIES.fullmatch(key) or (staged and key.startswith("resnet50.")) or key.startswith("resnet50.fc."):
            continue
        key = re.sub(r"^resnet50\.conv1\.", "stage1.0.", key)
        key = re.sub(r"^resnet50\.bn1\.", "stage1.1.", key)
        key = re.sub(r"^resnet50\.layer(\d)\.", lambda match: f"stage{int(match[1]) + 1}.", key)
        key = re.sub(r"^(stage[2-5])\.0\.(\d+\.)", r"\1.\2", key)  # a Sequential of the one layer
        adapted[key] = tensor
    older = {key: adapted.pop(key) for key in list(adapted) if key.startswith("fc_dp7.4.")}  # the same mean again
    if "mean_shift.running_mean" not in adapted and "fc_dp7.4.running_mean" in older:
        adapted["mean_shift.running_mean"] = older["fc_dp7.4.running_mean"]
    return adapted


def _block(channels: int, width: int, groups: int, up: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)]
    scaled = [nn.Upsample(scale_factor=up, mode="bilinear", align_corners=False)] if up > 1 else []
    return nn.Sequential(*layers, *scaled, nn.ReLU(inplace=True))


def _cropped(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """What upsampling made too large; a stage that made too few pixels is refused."""
    if tensor.shape[-2] < size[0] or tensor.shape[-1] < size[1]:
        raise UsageError(f"a stage gives {list(tensor.shape[-2:])} pixels at its stride; wanted {list(size)} or more")
    return tensor[..., : size[0], : size[1]]


def _ups(stages: Sequence[nn.Module], channels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """How far each stage is from stride 4."""
    if (len(stages), len(channels), len(strides)) != (5, 5, 5):
        came = f"{len(stages)} stages, {len(channels)} channels and {len(strides)} strides"
        raise UsageError(f"{came} came; wanted five of each")
    rising = all(later % earlier == 0 for earlier, later in pairwise(strides))
    if tuple(strides[:2]) != (_STRIDE, _STRIDE) or strides[2] % _STRIDE or not rising:
        raise UsageError(f"strides are {tuple(strides)}; wanted 4, 4, and three multiples of 4, each of the one before")
    return [stride // _STRIDE for stride in strides]
