"""The frozen executor equals the network it was made from, in value and in input gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advcam_fast.errors import UsageError
from advcam_fast.models import freeze, load_model
from advcam_fast.models.folding import folded

RELATIVE = 1e-10  # float64: a fold moves only roundings


def randomise_norms(network: nn.Module) -> nn.Module:
    """Fresh BatchNorms are almost the identity; these are not."""
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.2)
                nn.init.normal_(norm.bias, 0, 0.2)
    return network.eval()


def value_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    features = network(images)
    ascent = torch.cos(torch.arange(features.numel(), dtype=features.dtype)).view(features.shape)
    (gradient,) = torch.autograd.grad(features, images, ascent)
    return features.detach(), gradient


def relative_error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert wanted.abs().max() > 0
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def check_equal(network: nn.Module, frozen: nn.Module, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    for got, wanted in zip(value_and_gradient(frozen, images), value_and_gradient(network, images), strict=True):
        assert relative_error(got, wanted) <= RELATIVE


def norms_of(network: nn.Module) -> int:
    """How many BatchNorms folding leaves."""
    return sum(isinstance(module, _BatchNorm) for module in folded(network).modules())


@pytest.mark.parametrize(
    ("name", "norms_left"),
    [
        ("resnet50_stride16", 0),
        ("efficientnet_lite0", 0),
        ("mobilenet_v2", 0),
        ("densenet121", 62),  # before their convolution, with a ReLU between
        ("timm/densenet121", 62),
        ("inception_v3", 0),
    ],
)
def test_folded_networks_are_equal(name: str, norms_left: int) -> None:
    torch.manual_seed(0)
    features = load_model(name, weights="none").features
    assert isinstance(features, nn.Module)
    network = randomise_norms(features).double()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    frozen = freeze(network, torch.float64)
    assert frozen.executor.startswith("tape")
    assert norms_of(network) == norms_left
    check_equal(network, frozen, (90, 101))
    after = network.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_channels_last_goes_through_and_comes_out() -> None:
    frozen = freeze(load_model("resnet18", weights="none").features)
    assert frozen(torch.randn(2, 3, 64, 64)).is_contiguous(memory_format=torch.channels_last)
    assert freeze(lambda images: images)(torch.ones(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_in_the_dtype_asked_for(dtype: torch.dtype, name: str) -> None:
    """The layers that run through autograd too."""
    network = load_model(name, weights="none").features
    assert isinstance(network, nn.Module)
    frozen = freeze(network, dtype)
    assert frozen.executor.startswith("tape")
    images = torch.randn(1, 3, 64, 64)
    features, gradient = value_and_gradient(frozen, images.to(dtype))
    assert features.dtype == gradient.dtype == dtype
    if dtype == torch.float32:
        for got, wanted in zip((features, gradient), value_and_gradient(network, images), strict=True):
            assert relative_error(got, wanted) <= 1e-3


class Scaled(nn.Conv2d):
    """A convolution that divides its weight by its own size: a BatchNorm folded into it would vanish."""

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight / self.weight.norm(), self.bias, padding=self.padding)


class Shared(nn.Module):
    """A convolution called twice, one whose output is read twice, and a BatchNorm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.split = nn.Conv2d(4, 4, 1)
        self.last = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])

    def forward(self, images: Tensor) -> Tensor:
        a = self.norms[0](self.first(images)) + self.norms[1](self.first(images.flip(3)))
        b = self.split(a)
        c = self.norms[2](b).relu_() + b
        return self.norms[3](self.last[0](c)) + self.norms[3](self.last[1](c)).relu_()


@pytest.mark.parametrize("layer", [Scaled(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, bias=False)])
def test_only_what_is_a_plain_convolution_is_folded(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    network = randomise_norms(nn.Sequential(layer, nn.BatchNorm2d(5), nn.ReLU(inplace=True))).double()
    frozen = freeze(network, torch.float64)
    assert frozen.executor.startswith("tape")
    assert norms_of(network) == isinstance(layer, Scaled)
    check_equal(network, frozen, (9, 12))


def test_modules_used_twice_are_left_alone() -> None:
    torch.manual_seed(0)
    network = randomise_norms(Shared()).double()
    frozen = freeze(network, torch.float64)
    assert frozen.executor.startswith("tape")
    assert norms_of(network) == 4
    check_equal(network, frozen, (9, 12))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images) if images.sum() > 0 else self.layers(-images)


class Mistraced(Branching):
    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images) * (1 if isinstance(images, Tensor) else 2)


@pytest.mark.parametrize(("kind", "reason"), [(Branching, "TraceError"), (Mistraced, "differs by 1.0e+00")])
def test_what_cannot_be_traced_is_frozen_and_says_so(kind: type[Branching], reason: str) -> None:
    torch.manual_seed(0)
    network = randomise_norms(kind()).double()
    frozen = freeze(network, torch.float64)
    assert frozen.executor.startswith("frozen, not folded: ")
    assert reason in frozen.executor
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    check_equal(network, frozen, (9, 12))


def test_a_function_is_used_as_it_is() -> None:
    frozen = freeze(lambda images: images * 2)
    assert frozen.executor == "used as given: not an nn.Module"
    assert torch.equal(frozen(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))


def test_batch_statistics_are_refused_by_name() -> None:
    training = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    with pytest.raises(UsageError, match=r"BatchNorm '1\.0' is in training mode"):
        freeze(training)
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(UsageError, match=r"BatchNorm '0' keeps no running statistics"):
        freeze(untracked)


def test_dropout_is_off_in_the_frozen_copy_only() -> None:
    network = nn.Sequential(nn.Dropout(0.5)).train()
    assert torch.equal(freeze(network)(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))
    assert network.training
