"""Bits that are applied by who completes a value's gradient: right for every way in which values are read, and used."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tolerances import close
from torch import Tensor, nn

from advcam_fast import ops
from advcam_fast.models.convolution import Convolution
from advcam_fast.models.folding import folded
from advcam_fast.models.pointwise import Pointwise
from advcam_fast.models.steps import Convolved
from advcam_fast.models.tape import Tape


def one(stride: int = 1, outputs: int = 64) -> nn.Conv2d:
    return nn.Conv2d(64, outputs, 1, stride)


class Net(nn.Module):
    """Layers for a forward written below; every value has channels that the own kernel serves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.a, self.b, self.c, self.d = one(), one(), one(2), one(2)
        self.around, self.strided = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, 2, 1)


class Chain(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(self.b(F.relu(self.around(F.relu(self.a(x))))))


class Bottlenecks(Net):
    """As in a ResNet: at the second one a strided convolution comes last, after one that sees everything."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.around(F.relu(self.a(x))))) + x)
        return F.relu(self.strided(F.relu(self.a(x))) + self.c(x))


class OnlyStrided(Net):
    """Two that see some positions, and nobody who sees all of them."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.c(x) + F.relu(self.d(x))


class StridedAndAdded(Net):
    """The last to add sees some positions, and the one before it is no convolution."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.c(x).mean((2, 3), keepdim=True) * 3 + x.mean((2, 3), keepdim=True)


class ReadAsResidual(Net):
    """Of its two readers the convolution that adds it to its own value is the last."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.a(x))
        return self.b(y) + y


class Given(Net):
    """The output is read inside, too: its gradient begins with what is given."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        self.a(x)
        return x


class DeadEnd(Net):
    """Who was to apply the bits never runs: its value goes nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        self.a(x)
        mean = x.mean((2, 3), keepdim=True)
        return self.c(x).mean((2, 3), keepdim=True) * 3 + mean


class Bounded(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x) * 9)
        return F.relu6(self.b(F.relu6(self.a(x) * 9)) * 9)


class Pooled(Net):
    """A rectifier that is a step of its own, after the maximum."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.a(x) + self.around(x)


NETS = [Chain, Bottlenecks, OnlyStrided, StridedAndAdded, ReadAsResidual, Given, DeadEnd, Bounded, Pooled]


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_autograd(kind: type[Net], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = kind().double().eval()
    tape = Tape(folded(network), dtype)
    images = torch.randn(2, 3, 13, 18, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    leaf = images.clone().requires_grad_()
    wanted = network(leaf)
    slope = torch.cos(torch.arange(wanted.numel(), dtype=torch.float64)).view(wanted.shape)
    (gradient,) = torch.autograd.grad(wanted, leaf, slope)
    features, saved = tape.forward(images.to(dtype), save=True)
    close(features, wanted.detach())
    for _ in range(2):  # the bits are as they were
        close(tape.gradient(saved, slope.to(dtype)), gradient)


def applied(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> int:
    """In how many passes of their own bits are applied in a gradient."""
    features, saved = tape.forward(torch.randn(1, 3, 16, 16, dtype=tape.dtype), save=True)
    calls: Counter[str] = Counter()
    real = ops.masked_relu_backward

    def counted(gradient: Tensor, bits: Tensor) -> Tensor:
        calls["bits"] += 1
        return real(gradient, bits)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "masked_relu_backward", counted)
        tape.gradient(saved, torch.ones_like(features))
    return calls["bits"]


def test_a_pass_for_each_rectifier_and_none_where_a_convolution_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = folded(Bottlenecks().double().eval())
    assert applied(Tape(graph, torch.float64), monkeypatch) == 6
    if not Pointwise.serves(torch.zeros(64, 64, 1, 1)):
        pytest.skip("the own kernel of 1x1 convolutions is not for this machine")
    # left are: the output, which nobody completes, and the two inputs of a kernel of 3x3
    assert applied(Tape(graph, torch.float32), monkeypatch) == 3


def test_who_applies_the_bits() -> None:
    if not Pointwise.serves(torch.zeros(64, 64, 1, 1)):
        pytest.skip("the own kernel of 1x1 convolutions is not for this machine")
    tape = Tape(folded(Bottlenecks().double().eval()), torch.float32)
    layers = [step for step in tape.steps if isinstance(step, Convolved)]
    strided = [step for step in layers if step.sliding.skips()]
    assert len(strided) == 1
    first = next(step for step in layers if step.source == strided[0].source and step is not strided[0])
    assert first.rectifies == strided[0].rectifies is not None
    assert first.everywhere
    assert not strided[0].everywhere


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_convolution_applies_bits_everywhere_or_at_least_where_it_sees(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout = dict(memory_format=torch.channels_last)
    strided, size = Convolution(one(2).to(dtype), dtype, dtype), torch.Size((1, 64, 6, 8))
    g, into = (torch.randn(shape).to(dtype).contiguous(**layout) for shape in ((1, 64, 3, 4), size))
    kept = torch.randint(0, 256, (into.numel() // 8,), dtype=torch.uint8)
    copy = lambda: into.clone(**layout)  # noqa: E731
    wanted = ops.masked_relu_backward(strided.gradient(g, size, copy()), kept)
    assert torch.equal(strided.gradient(g, size, copy(), kept=kept), wanted)
    assert torch.equal(strided.gradient(g, size, copy(), kept=kept, everywhere=True), wanted)
    part = strided.gradient(g, size, copy(), kept=kept, everywhere=False)
    assert torch.equal(part[..., ::2, ::2], wanted[..., ::2, ::2])


def test_what_is_outside_an_item_is_hidden_by_the_rectifier() -> None:
    torch.manual_seed(0)
    layer, x = Convolution(one(), torch.float32, torch.float32), torch.randn(2, 64, 5, 6)
    x = x.contiguous(memory_format=torch.channels_last)
    inside = torch.rand(2, 5, 6) < 0.5
    whole, _ = layer.forward(x, ceiling=6.0)
    value, bits = layer.forward(x, ceiling=6.0, inside=inside)
    assert torch.equal(value, whole * inside[:, None])
    assert torch.equal(ops.masked_relu_backward(torch.ones_like(value), bits) > 0, (value > 0) & (value < 6))
