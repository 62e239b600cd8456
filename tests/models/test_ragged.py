"""Images of different sizes on one canvas: every value and every gradient is that of the image's own run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from advcam_fast.models import freeze, load_model
from advcam_fast.models.folding import folded
from advcam_fast.models.ragged import Region, Unplaceable, inside, within
from advcam_fast.models.tape import Tape

SIZES = ((97, 120), (75, 83), (110, 90), (96, 128), (99, 101), (98, 122))
EXACT = 1e-12  # float64, relative to the largest value: as the issue of ragged batches has it
NETWORKS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg11_bn",
)  # fmt: skip
HEADS = {"avgpool", "dropout", "fc", "classifier", "AuxLogits", "aux1", "aux2"}


def torchvision_features(name: str) -> nn.Module:
    """What comes before the head, with the statistics of BatchNorm drawn at random."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    network = tv.get_model(name, weights=None, **options)
    children = [child for key, child in network.named_children() if key not in HEADS]
    features = getattr(network, "features", None) or nn.Sequential(*children)
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if getattr(module, "inplace", False):
            module.inplace = False
    return features


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def worst_errors(features: nn.Module, sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[float, float]:
    """Of values and gradients, relative to the largest; images are noise, and so is the canvas around them."""
    tape = Tape(folded(features.double().eval()), torch.float64)
    generator = torch.Generator().manual_seed(1)
    frame = tape.frame(sizes, torch.device("cpu"))
    height, width = frame.canvas()
    shape = (len(sizes), 3, height + 3, width + 2)
    canvas = 7 * torch.randn(shape, dtype=torch.float64, generator=generator)
    places, maps = frame.of(0), frame.of(tape.output)
    assert places is not None
    assert maps is not None
    alone = []
    for item, place in enumerate(places):
        image = within(canvas[item], place)
        value, saved = tape.forward(channels_last(image[None]), save=True)
        slope = torch.randn(value.shape, dtype=torch.float64, generator=generator)
        alone.append((value[0], slope[0], tape.gradient(saved, slope)[0]))
    together, saved = tape.forward(channels_last(canvas), save=True, frame=frame)
    slopes = torch.zeros_like(together)
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    for item, (value, slope, _) in enumerate(alone):
        assert maps[item][:2] == (0, 0)
        assert maps[item][2:] == value.shape[1:]
        errors[0].append((within(together[item], maps[item]) - value).abs().max() / value.abs().max())
        within(slopes[item], maps[item]).copy_(slope)
    for _ in range(2):  # the labels of an image share a forward pass
        gradient = tape.gradient(saved, slopes)
        for item, (_, _, own) in enumerate(alone):
            errors[1].append((within(gradient[item], places[item]) - own).abs().max() / own.abs().max())
            within(gradient[item], places[item]).zero_()
        assert not gradient.any(), "a gradient outside the images would be a step there"
    value_error, gradient_error = (float(torch.stack(found).max()) for found in errors)  # a NaN stays one
    return value_error, gradient_error


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolutional_architecture_of_torchvision(name: str) -> None:
    value, gradient = worst_errors(torchvision_features(name))
    assert value <= EXACT
    assert gradient <= EXACT


def test_tensorflows_same_padding() -> None:
    """Its first zero is above the image or not, by the parity of the size."""
    pytest.importorskip("timm", reason="the network is timm's")
    features = load_model("efficientnet_lite0").features
    assert isinstance(features, nn.Module)
    assert max(worst_errors(features)) <= EXACT


class SameResidual(nn.Module):
    """Padded as in TensorFlow: a residual around stride 1, then stride 2."""

    def __init__(self) -> None:
        super().__init__()
        layers = pytest.importorskip("timm.layers", reason="the layer is timm's")
        self.first, self.inner = layers.Conv2dSame(3, 4, 5, 2), layers.Conv2dSame(4, 4, 3)
        self.last = layers.Conv2dSame(4, 4, 3, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(F.relu(self.inner(x) + x)).sin()


def test_tensorflows_same_padding_beside_a_residual() -> None:
    torch.manual_seed(0)
    assert max(worst_errors(SameResidual(), ((20, 23), (17, 30), (21, 22), (26, 18), (19, 25)))) <= EXACT


class Pooled(nn.Module):
    """One layer of a kind between two convolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Conv2d(3, 4, 3, 1, 1), layer, nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))


class Lambda(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x)
        return found


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((2, 3), (2, 1)),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(2, 3, ceil_mode=True),  # whose last window may begin outside
        nn.MaxPool2d(3, 1, 1, dilation=2),
        Lambda(lambda x: F.max_pool2d(x, 2) * torch.mean(F.max_pool2d(x, 2), (2, 3), True).sigmoid()),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2),
        Lambda(lambda x: x - x.mean((2, 3), keepdim=True)),
        Lambda(lambda x: x * torch.mean(x, dim=[-2, -1]).sigmoid()[:, :, None, None]),
        Lambda(lambda x: x * F.adaptive_avg_pool2d(x, 1)),
        Lambda(lambda x: F.avg_pool2d(F.max_pool2d(x, 3, stride=1, padding=1), 2, stride=1) + 1.5),
        Lambda(lambda x: F.relu6(x + 1) + x),
    ],
    ids=str,
)
def test_single_layers(layer: nn.Module) -> None:
    torch.manual_seed(0)
    value, gradient = worst_errors(Pooled(layer), ((20, 23), (17, 30), (21, 22), (26, 18)))
    assert value <= EXACT
    assert gradient <= EXACT


class Crossed(nn.Module):
    """Adds planes of two sizes by way of a broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 3, 1, 1), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.pool(x).amax((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Pooled(nn.GroupNorm(2, 4)), "value among other sizes differs by"),
        (Pooled(nn.Upsample(scale_factor=2)), "a layer|differs by|size"),
        (Pooled(nn.AvgPool2d(2, ceil_mode=True)), "average pooling with ceil_mode"),
        (Crossed(), "a layer reads planes of two sizes"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), "its features are no maps"),
    ],
    ids=["GroupNorm", "Upsample", "ceil_mode", "two sizes", "pooled"],
)
def test_what_cannot_be_mixed_is_run_one_size_at_a_time_and_says_so(network: nn.Module, reason: str) -> None:
    frozen = freeze(network.eval(), ragged=True)
    assert not frozen.ragged
    found = frozen.executor.partition("; one size at a time: ")[2]
    assert found
    assert any(part in found for part in reason.split("|"))
    assert "one size" not in freeze(network).executor


def test_an_image_smaller_than_a_window_has_no_place() -> None:
    tape = Tape(folded(nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU()).double()), torch.float64)
    with pytest.raises(Unplaceable, match="5 x 9 is smaller than a window"):
        tape.frame([(20, 20), (5, 9)], torch.device("cpu"))


def test_masks_follow_the_regions() -> None:
    found = inside([Region(1, 0, 2, 3), Region(0, 2, 1, 2)], (4, 5), torch.device("cpu"))
    wanted = torch.zeros(2, 4, 5, dtype=torch.bool)
    wanted[0, 1:3, 0:3] = True
    wanted[1, 0:1, 2:4] = True
    assert torch.equal(found, wanted)
