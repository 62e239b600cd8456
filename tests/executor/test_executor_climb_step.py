"""climb_step.cu on the CPU executor against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import Kernels, reference
from tolerances import close
from torch import Tensor

STEP = 0.08
SIZES = [1, 3, 4, 1023, 4096, 5120, 17411]  # one pixel, odd, vector, prime; several blocks
FLOAT32_PAIRS = [
    (gradient, network)
    for gradient in (torch.float32, torch.bfloat16, torch.float16)
    for network in (None, torch.bfloat16, torch.float16)
]


def inputs(groups: int, n: int, image: torch.dtype, gradient: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed + n)
    x = torch.randn(groups, n, generator=random, dtype=torch.float64)
    g = torch.randn(groups, n, generator=random, dtype=torch.float64) * 1e-3
    return x.to(image), g.to(gradient)


def check(kernels: Kernels, image: Tensor, gradient: Tensor, network: torch.dtype | None) -> None:
    want = image.to(torch.float64, copy=True)
    want_max = reference.climb_step(want, gradient.double(), STEP, group_size=1)
    network_input = None if network is None else torch.full_like(image, float("nan"), dtype=network)
    largest = kernels.climb_step(image, gradient, STEP, network_input)
    close(image, want)
    close(largest, want_max)
    if network_input is not None:
        assert torch.equal(network_input, image.to(network)), "the network's input is the new image, rounded"


@pytest.mark.parametrize("n", SIZES)
def test_float32(kernels: Kernels, n: int) -> None:
    for gradient_dtype, network in FLOAT32_PAIRS:
        check(kernels, *inputs(3, n, torch.float32, gradient_dtype), network)


@pytest.mark.parametrize("n", SIZES)
def test_float64(kernels: Kernels, n: int) -> None:
    check(kernels, *inputs(3, n, torch.float64, torch.float64), None)


@pytest.mark.parametrize("offset", [1, 2])
def test_misaligned_tensors_take_the_scalar_path(kernels: Kernels, offset: int) -> None:
    image, gradient = inputs(2, 4096, torch.float32, torch.bfloat16)
    shifted = torch.empty(2 * 4096 + offset)[offset:].view(2, 4096).copy_(image)
    check(kernels, shifted, gradient, torch.float16)


def test_more_than_one_round_of_the_loops(kernels: Kernels) -> None:
    """Over 64 partial results of a group, and over 256 blocks in the second pass."""
    check(kernels, *inputs(1, 256 * 4096 + 4 * 1000, torch.float32, torch.float32), None)


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    assert kernels.climb_step(torch.empty(0, 12), torch.empty(0, 12), STEP).shape == (0,)
    assert kernels.launches() == []
    assert torch.equal(kernels.climb_step(torch.empty(3, 0), torch.empty(3, 0), STEP), torch.zeros(3))


def test_a_zero_gradient_leaves_the_image(kernels: Kernels) -> None:
    image, gradient = inputs(2, 512, torch.float32, torch.float32)
    before = image.clone()
    largest = kernels.climb_step(image, gradient.zero_(), STEP)
    assert torch.equal(image, before) and torch.equal(largest, torch.zeros(2))


@pytest.mark.parametrize("poisoned", ["gradient", "image"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n", [1023, 9000])
def test_a_nan_spreads_over_its_group_only(kernels: Kernels, poisoned: str, sign: float, n: int) -> None:
    image, gradient = inputs(3, n, torch.float32, torch.float32)
    clean = image.clone()
    kernels.climb_step(clean, gradient, STEP)
    victim = image if poisoned == "image" else gradient
    victim[1, n // 2] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    want = image.double()
    want_max = reference.climb_step(want, gradient.double(), STEP, group_size=1)
    largest = kernels.climb_step(image, gradient, STEP)
    assert image[1].isnan().all() and want[1].isnan().all()
    assert torch.equal(image[[0, 2]], clean[[0, 2]])
    close(largest, want_max)


def test_an_infinite_gradient_is_as_in_the_reference(kernels: Kernels) -> None:
    image, gradient = inputs(2, 1024, torch.float32, torch.float32)
    gradient[1, 7] = -float("inf")
    want = image.double()
    want_max = reference.climb_step(want, gradient.double(), STEP, group_size=1)
    largest = kernels.climb_step(image, gradient, STEP)
    close(image, want)
    assert torch.equal(largest.double().isinf(), want_max.isinf())


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.climb_step(*inputs(1, 4, torch.float32, torch.float32), STEP, device=1)
