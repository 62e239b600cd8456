"""GradCamModel: which outputs are maps and how they lie, and one clear line for those that are none."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
from tolerances import close
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18

from advcam_fast.errors import UsageError
from advcam_fast.models import GradCamModel, available_layers
from advcam_fast.models.grad_cam_model import _is_channels_last, _token_grid

PIXELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


class Small(nn.Module):
    """[B, 3, H, W] -> [B, 5], with layers of every kind."""

    def __init__(self, relu_calls: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu_calls = relu_calls
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.never = nn.Identity()
        self.pairs = Pair()
        self.head = nn.Linear(6, 5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.stem(images))
        for _ in range(self.relu_calls):
            maps = self.relu(maps)
        return self.head(self.pairs(maps)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return maps, maps


def model(network: nn.Module | None = None, layer: str = "norm", **options: object) -> GradCamModel:
    return GradCamModel(network or Small(), layer, **({"num_classes": 5} | PIXELS | options))


def torchvision_vit() -> nn.Module:
    return VisionTransformer(32, 8, 2, 2, 12, 24, num_classes=5)


def timm_vit(**options: object) -> nn.Module:
    small = dict(img_size=64, depth=2, embed_dim=12, num_heads=2, num_classes=5, dynamic_img_size=True)
    return timm.create_model("vit_tiny_patch16_224", **(small | options))


def timm_cait() -> nn.Module:
    """Says that it has a class token, which joins the patches after the blocks."""
    small = dict(img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=5)
    return timm.create_model("cait_xxs24_224", **small)


def timm_swin() -> nn.Module:
    small = dict(embed_dim=12, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=5, img_size=(64, 32))
    return timm.create_model("swin_tiny_patch4_window7_224", **small)


def torchvision_swin() -> nn.Module:
    return SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=5)


def timm_convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), num_classes=5)


@pytest.mark.parametrize(
    ("make", "layer", "size", "shape"),
    [
        (lambda: resnet18(num_classes=5), "layer4.1.bn2", (40, 70), (512, 2, 3)),
        (torchvision_vit, "encoder.layers.encoder_layer_1.ln_1", (32, 32), (12, 4, 4)),
        (lambda: VisionTransformer(32, 32, 1, 2, 12, 24, num_classes=5), "encoder.ln", (32, 32), (12, 1, 1)),
        (timm_cait, "blocks.0", (32, 32), (12, 4, 4)),
        (timm_vit, "blocks.1.norm1", (32, 80), (12, 2, 5)),
        (timm_vit, "blocks.1.norm1", (16, 48), (12, 1, 3)),
        (lambda: timm_vit(reg_tokens=4), "blocks.1.norm1", (80, 48), (12, 5, 3)),
        (lambda: timm_vit(class_token=False, global_pool="avg"), "blocks.1", (64, 16), (12, 4, 1)),
        (timm_swin, "layers.1", (64, 32), (24, 8, 4)),
        (torchvision_swin, "features.3", (64, 32), (24, 8, 4)),
        (timm_convnext, "stages.3", (64, 96), (16, 2, 3)),
        (timm_convnext, "stages.3.blocks.0.norm", (64, 96), (16, 2, 3)),
    ],
)
def test_the_layers_of_both_libraries_become_maps(make, layer, size, shape) -> None:
    images = torch.randn(2, 3, *size)
    features = model(make().eval(), layer).features
    seen = features(images)
    maps = features.as_map(seen.raw, images)
    assert maps.shape == (2, *shape)
    assert seen.logits.shape == (2, 5)


@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("last", [True, False])
def test_a_map_lies_as_the_image_does(prefix: int, last: bool) -> None:
    """Every position of the map is its patch's mean, whatever the layout, prefix tokens apart."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            maps = nn.functional.avg_pool2d(images, 8)
            if last:
                return self.layer(maps.permute(0, 2, 3, 1)).mean((1, 2))
            tokens = maps.flatten(2).transpose(1, 2)
            return self.layer(torch.cat([tokens.new_full((len(maps), prefix, 3), 9.0), tokens], 1)).mean(1)

    images = torch.randn(2, 3, 24, 40)
    features = model(Patches(), "layer", num_classes=3, tokens=prefix, channels_last=last).features
    seen = features(images)
    assert torch.equal(features.as_map(seen.raw, images), nn.functional.avg_pool2d(images, 8))


@pytest.mark.parametrize("patch", [4, 14, 16])
def test_token_grids_of_many_sizes(patch: int) -> None:
    for rows, columns in itertools.product(range(1, 20, 3), repeat=2):
        for cut in (0, patch // 2, -1):  # none, patches left out, patches filled up
            sides = (rows * patch + cut, columns * patch + cut)
            assert _token_grid(rows * columns, sides, (0,), "layer") == (0, rows, columns)
            assert _token_grid(rows * columns + 5, sides, (5, 0), "layer") == (5, rows, columns)
            if min(rows, columns) > 1:  # other numbers of tokens in one row are patches too
                assert _token_grid(rows * columns, sides, (5, 0), "layer") == (0, rows, columns)


@pytest.mark.parametrize("size", [(224, 224), (224, 336), (96, 64), (640, 480)])
def test_channels_last_is_told_by_the_sides(size: tuple[int, int]) -> None:
    for stride, channels in ((4, 96), (8, 192), (16, 384), (32, 768)):
        rows, columns = size[0] // stride, size[1] // stride
        assert _is_channels_last((rows, columns, channels), size, "layer")
        assert not _is_channels_last((channels, rows, columns), size, "layer")
    assert not _is_channels_last((2048, 8, 8), (299, 299), "layer")  # inception: convolutions without padding


def test_channels_last_that_cannot_be_told_must_be_said() -> None:
    images = torch.randn(1, 3, 16, 16)
    network = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match=r"'0': \[8, 8, 8\] could be \[K, h, w\] or \[h, w, K\] .* 16; say chan"):
        tap = model(network, "0", num_classes=8).features
        tap.as_map(tap(images).raw, images)
    for said in (True, False):
        tap = model(network, "0", num_classes=8, channels_last=said).features
        raw = tap(images).raw
        assert torch.equal(tap.as_map(raw, images), raw.permute(0, 3, 1, 2) if said else raw)
    with pytest.raises(RuntimeError, match=r"\[9, 9, 7\] could be"):  # 9 x 7 of convolutions without padding
        _is_channels_last((9, 9, 7), (299, 299), "layer")


def test_the_activation_is_that_before_what_writes_over_it() -> None:
    """In-place layers after the target layer neither change its output nor its gradient."""
    network, apart = Small(relu_calls=1), Small(relu_calls=1)
    apart.relu.inplace = False
    images = torch.randn(2, 3, 8, 9)
    seen, wanted = (model(each, "norm").features(images) for each in (network, apart))
    assert (seen.raw < 0).any()
    close(seen.raw, wanted.raw)
    slopes = [torch.autograd.grad(one.logits[:, 1].sum(), one.raw)[0] for one in (seen, wanted)]
    close(slopes[0], slopes[1])
    assert ((slopes[0] == 0) == (seen.raw <= 0)).all()


def test_a_frozen_copy_is_kept_and_the_callers_network_stays() -> None:
    network = Small()
    network.head.train()
    kept = model(network, "stem")
    assert network.head.training and network.stem.weight.requires_grad
    assert not kept.features.training and not any(p.requires_grad for p in kept.features.parameters())
    with torch.no_grad():
        network.head.weight.zero_()
    assert kept.features.network.head.weight.any()
    kept.predict(torch.zeros(1, 3, 8, 9, dtype=torch.uint8))
    assert len(network.stem._forward_hooks) == len(kept.features.network.stem._forward_hooks) == 0
    assert set(kept.tensors()) == {f"network.{key}" for key in network.state_dict()}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_predict_and_to(activation: str) -> None:
    network = Small().double()
    kept = model(network, "stem", activation=activation, class_names=list("abcde")).to(dtype=torch.float64)
    images = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    mean, std = (torch.tensor(PIXELS[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = network((images.double() / 255 - mean) / std)
    wanted = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    close(kept.predict(images), wanted)
    assert kept.num_classes == 5 and kept.class_names == tuple("abcde")
    assert kept.to(dtype=torch.float32).predict(images).dtype == torch.float32


def test_available_layers_are_those_of_the_network() -> None:
    assert available_layers(Small()) == ["stem", "norm", "relu", "never", "pairs", "head"]


def broken() -> nn.Module:
    network = Small()
    network.norm.running_var[2] = torch.nan
    return network


def training() -> nn.Module:
    network = Small()
    network.norm.train()
    return network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "norn"}, r"no layer 'norn'; did you mean norm\? there are.*: stem, norm, relu, never, pairs, head$"),
        ({"layer": "blocks.11"}, r"no layer 'blocks\.11'; there are, # for a number: stem, "),
        ({"layer": ""}, r"no layer ''"),
        ({"network": 3}, r"network is a int; wanted a torch\.nn\.Module"),
        ({"network": broken()}, r"norm\.running_var holds NaN or infinite values"),
        ({"network": training()}, r"BatchNorm 'norm' is in training mode"),
        ({"num_classes": 0}, r"num_classes is 0"),
        ({"tokens": -1}, r"tokens is -1"),
        ({"input_size": (32, 0)}, r"input_size is \(32, 0\); wanted is \(rows, columns\)"),
        ({"class_names": ["a"]}, r"1 class_names for a head of 5"),
        ({"activation": "tanh"}, r"activation is 'tanh'"),
        ({"std": (0.5, 0.0, 0.5)}, r"every value must be above 0"),
    ],
)
def test_refusals_name_what_came_and_what_is_wanted(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        model(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        ("head", {}, r"target layer 'head' gives torch\.float32 \[2, 5\] for 2 images of 8 x 9; wanted are maps"),
        ("pairs", {}, r"target layer 'pairs' gives a tuple; wanted are maps"),
        ("relu", {}, r"target layer 'relu' is run 2 times in a pass; wanted is once"),
        ("never", {}, r"target layer 'never' is run 0 times"),
        (
            "stem",
            {"num_classes": 6},
            r"the network gives torch\.float32 \[2, 5\] for 2 images; wanted are logits",
        ),
        ("stem", {"accumulate": lambda extra: extra}, r"accumulate gives a NoneType; wanted are maps \[2, 5, h, w\]"),
    ],
)
def test_an_output_that_does_not_fit_is_one_line(layer: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        model(layer=layer, **options).features(torch.randn(2, 3, 8, 9))
    assert "\n" not in str(caught.value)


def test_tokens_that_are_no_grid_are_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"'layer': 17 tokens after 2 others are no patch grid .* 64; is tokens="):
        _token_grid(17, (64, 64), (2,), "layer")
    with pytest.raises(RuntimeError, match=r"'layer': 19 tokens are no patch grid of .* 64 x 64; say tokens="):
        _token_grid(19, (64, 64), None, "layer")
    with pytest.raises(
        RuntimeError, match=r"'layer': 3 tokens could be more than one patch grid of .* 8 x 16; say tok"
    ):
        _token_grid(3, (8, 16), None, "layer")
    assert _token_grid(17, (64, 64), None, "layer") == (1, 4, 4)
    assert _token_grid(16, (64, 64), None, "layer") == (0, 4, 4)


def test_a_size_that_the_network_asserts_against_is_one_images_trouble() -> None:
    with pytest.raises(RuntimeError, match=r"Wrong image height.* \(images of 40 x 32\)"):
        model(torchvision_vit(), "encoder.layers.encoder_layer_1.ln_1").features(torch.randn(1, 3, 40, 32))
