"""The tape: what it knows, what it leaves to autograd, what it refuses, and that it writes nobody else's memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import close
from torch import Tensor, nn

from advcam_fast.bench.networks import random_model
from advcam_fast.models import freeze, load_model
from advcam_fast.models.folding import folded
from advcam_fast.models.steps import Convolved
from advcam_fast.models.tape import Tape, UnknownNetwork


def slope_like(features: Tensor) -> Tensor:
    return torch.cos(torch.arange(features.numel(), dtype=features.dtype)).view(features.shape)


def check(network: nn.Module, size: tuple[int, int] = (33, 41)) -> Tape:
    """The tape of a network, compared with autograd in float64 on two images."""
    network = network.double().eval()
    tape = Tape(folded(network), torch.float64)
    images = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    leaf = images.clone().requires_grad_()
    wanted = network(leaf)
    slope = slope_like(wanted).contiguous(memory_format=torch.channels_last)  # as a tape could write it
    (gradient,) = torch.autograd.grad(wanted, leaf, slope)
    before = images.clone(), slope.clone()
    features, saved = tape.forward(images, save=True)
    kept = features.clone()
    close(features, wanted.detach())
    for _ in range(2):  # the labels of an image share a forward pass
        close(tape.gradient(saved, slope), gradient)
    close(tape.gradient(saved, slope * -2), gradient * -2)
    assert torch.equal(features, kept)
    assert torch.equal(tape.forward(images, save=False)[0], kept)
    assert torch.equal(images, before[0])
    assert torch.equal(slope, before[1])
    return tape


def convolution(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Layers a to c, for a forward written in the test."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = convolution(3), convolution(), convolution()


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.relu(self.b(x) + x) + self.c(x)


class ReadTwice(Net):
    """The shortcut is read again after the addition, so it must not be written."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = F.relu6(self.b(x) + x)
        return self.c(x) + y + x


class ReadLater(Net):
    """As above, where the convolution adds in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) + x) + x


class RectifiedFirst(Net):
    """The image is the caller's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(F.relu(x)))


class TwoConvolutions(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return (self.b(x) + self.c(x)).relu_()


class RectifiedInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + self.a(x)[:, :3]


class Concatenated(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return torch.cat([self.b(x), x, F.max_pool2d(x, 3, 1, 1), self.c(x)], 1)


class Viewed(Net):
    """A value and a view of it: writing one would write the other."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        view = x.flatten(2).unflatten(2, x.shape[2:])
        return F.relu(view) + self.b(F.relu(x)) + view


class Excited(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.a(x), 0, 2)
        return x * torch.sigmoid(self.b(x.mean((2, 3), keepdim=True))) + F.silu(self.c(x))


class Chunked(Net):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).chunk(2, 1)
        return torch.cat([second.relu(), first], 1) + self.b(torch.cat([first, second], 1))


class Broadcast(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) + x.amax((2, 3), keepdim=True) + 1


class Pooled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.alike = nn.MaxPool2d((3, 2), 2, (1, 0), ceil_mode=True), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.alike(self.b(self.pool(self.a(x)))))


class Averaged(Net):
    """Pooling of every kind that is known, by module, function and method; the gradient of a mean meets another one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.one = nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True, count_include_pad=False), convolution()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.a(x))
        x = F.avg_pool2d(F.max_pool2d(x, 3, stride=1, padding=1), 2, stride=1)
        means = self.one(F.adaptive_avg_pool2d(x, 1) + x.mean((-1, -2), keepdim=True)) + torch.mean(x, (2, 3), True)
        return torch.cat([self.b(x), self.c(x), means.expand(x.shape)], 1)


class Shortcut(Net):
    """A block of a ResNet between two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.short = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.down(F.relu(self.b(x)))) + self.short(x)


KNOWN = [Residual, ReadTwice, ReadLater, RectifiedFirst, TwoConvolutions, Concatenated, Pooled]
PARTLY = [RectifiedInput, Viewed, Excited, Chunked, Broadcast]


def test_means_and_pooling_are_known() -> None:
    torch.manual_seed(0)
    assert set(check(Averaged()).unknown) == {"expand", "getattr"}  # of what is tested here, nothing


@pytest.mark.parametrize("kind", KNOWN)
def test_residuals_and_pooling_of_every_kind(kind: type[Net]) -> None:
    torch.manual_seed(0)
    assert not check(kind()).unknown


def test_a_convolution_that_skips_positions_adds_its_gradient_last() -> None:
    """Otherwise it would fill a gradient with zeros, for the others to be added to."""
    torch.manual_seed(0)
    tape = check(Shortcut())
    assert not tape.unknown
    (skipping,) = (at for at, step in enumerate(tape.steps) if isinstance(step, Convolved) and step.sliding.skips())
    (first, *_, last) = (at for at, step in enumerate(tape.steps) if tape.steps[skipping].sources[0] in step.sources)
    assert first < skipping == last
    assert tape.backwards.index(skipping) == tape.backwards.index(first) + 1
    rest = [at for at in tape.backwards if at != skipping]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("kind", PARTLY)
def test_unknown_layers_run_through_autograd(kind: type[Net]) -> None:
    torch.manual_seed(0)
    assert check(kind()).unknown


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("resnet18", []),
        ("efficientnet_lite0", []),
        ("squeezenet1_1", []),
        ("mobilenet_v2", []),
        ("densenet121", ["BatchNorm2d"]),
        ("shufflenet_v2_x0_5", ["contiguous", "floordiv", "getitem", "size", "transpose", "view"]),
        ("regnet_y_400mf", ["Sigmoid", "mul"]),
        ("efficientnet_b0", ["SiLU", "Sigmoid", "mul", "stochastic_depth"]),
    ],
)
def test_networks(name: str, unknown: list[str]) -> None:
    model = random_model(name) if name != "shufflenet_v2_x0_5" else load_model(name, weights="none")
    assert isinstance(model.features, nn.Module)
    assert sorted(check(model.features, (64, 75)).unknown) == unknown


def test_what_is_kept_is_bits() -> None:
    """For a pair of 64 x 64: under a thirtieth of the activations that autograd would save."""
    model = random_model("resnet18")
    assert isinstance(model.features, nn.Module)
    tape = Tape(folded(model.features.double()), torch.float32)
    saved = tape.forward(torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last), save=True)[1]
    tensors = [t for kept in saved if kept is not None for t in kept if isinstance(t, Tensor)]
    bits = sum(t.nbytes for t in tensors if t.dtype == torch.uint8)
    pooled = 2 * 64 * 16 * 16  # the first rectifier comes after the maximum, which leaves a quarter of its elements
    rectified = 5 * pooled + 2 * (4 * 128 * 8 * 8 + 4 * 256 * 4 * 4 + 4 * 512 * 2 * 2)
    assert bits == rectified // 8 + pooled
    assert not any(t.is_floating_point() for t in tensors)


class Overwritten(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.relu_()
        return self.b(y) + x


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Overwritten(), "writes a value that is read again"), (nn.Identity(), "no layers")],
)
def test_what_a_tape_cannot_hold_is_named(network: nn.Module, reason: str) -> None:
    with pytest.raises(UnknownNetwork, match=reason):
        Tape(folded(network.double()), torch.float64)
    frozen = freeze(network)
    assert frozen.executor.startswith("folded, no tape: UnknownNetwork")
    assert reason in frozen.executor
    assert frozen(torch.ones(1, 3, 8, 8)).shape[0] == 1


def test_nan_is_not_hidden_by_a_rectifier() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        tape = Tape(folded(Residual().double()), dtype)
        images = torch.randn(1, 3, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
        images[0, 1, 4, 4] = torch.nan
        features, saved = tape.forward(images, save=True)
        assert features.isnan().any()
        assert tape.gradient(saved, torch.ones_like(features)).isfinite().all()  # as in torch: the slope of a ReLU is 1


def test_forward_in_single_and_gradient_in_half_precision() -> None:
    model = random_model("resnet18")
    assert isinstance(model.features, nn.Module)
    images = torch.randn(2, 3, 64, 64)
    found = {}
    for name, dtypes in (("fp32", [torch.float32]), ("mixed", [torch.float32, torch.bfloat16])):
        seen = images.clone().requires_grad_()
        features = freeze(model.features, *dtypes)(seen)
        (gradient,) = torch.autograd.grad(features, seen, slope_like(features))
        found[name] = features.detach(), gradient
        assert features.dtype == gradient.dtype == torch.float32
    assert torch.equal(found["mixed"][0], found["fp32"][0])
    difference = (found["mixed"][1] - found["fp32"][1]).norm() / found["fp32"][1].norm()
    assert 1e-4 < difference < 5e-2  # rounded, and no worse than some layers of bf16
