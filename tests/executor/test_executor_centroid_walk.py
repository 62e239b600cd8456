"""centroid_walk.cu on the CPU executor, bit for bit against the reference of its dtype."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import Kernels, reference
from torch import Tensor

FLOATS = [torch.float32, torch.float64]
SHAPES = [(1, 1, 1), (2, 1, 40), (1, 19, 1), (3, 9, 33), (1, 31, 37), (2, 3, 5)]
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def field(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    batch, height, width = shape
    random = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(batch, 2, height, width, generator=random, dtype=torch.float64) * 2).to(dtype)


def check(kernels: Kernels, displacement: Tensor, steps: int, threshold: float) -> tuple[Tensor, Tensor]:
    centroids, labels = kernels.centroid_walk(displacement, steps, threshold)
    wanted, wanted_labels = reference.centroid_walk(displacement, steps, threshold)
    assert torch.equal(centroids.nan_to_num(-9), wanted.nan_to_num(-9))
    assert torch.equal(labels, wanted_labels)
    return centroids, labels


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(kernels: Kernels, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for steps, threshold in ((0, 2.5), (1, 2.5), (30, 2.0), (3, 0.0), (5, 100.0)):
        check(kernels, field(shape, dtype), steps, threshold)


@every_dtype
def test_who_stands_still_has_made_all_steps(kernels: Kernels, dtype: torch.dtype) -> None:
    y, x = torch.meshgrid(torch.arange(20), torch.arange(26), indexing="ij")
    wells = torch.stack([y // 10 * 10 + 4 - y, x // 13 * 13 + 6 - x]).to(dtype)[None] * 0.5
    _, labels = check(kernels, wells, 300, 1.0)
    assert torch.equal(labels[0], y // 10 * 2 + x // 13 + 1)


def test_components_of_every_form(kernels: Kernels) -> None:
    """At the edge of percolation, over several shares of a thread."""
    weak = torch.rand(1, 1, 40, 41, generator=torch.Generator().manual_seed(0)) < 0.6
    check(kernels, torch.where(weak, 0.0, 9.0).expand(-1, 2, -1, -1).contiguous(), 0, 1.0)


@every_dtype
def test_who_meets_a_nan_is_lost(kernels: Kernels, dtype: torch.dtype) -> None:
    displacement = field((2, 9, 11), dtype)
    displacement[1, 0, 4, 5], displacement[1, 1, 2, 2] = float("nan"), float("inf")
    centroids, labels = check(kernels, displacement, 12, 2.5)
    assert centroids[1].isnan().any() and not centroids[0].isnan().any()
    assert not labels[1][centroids[1].isnan().any(0)].any()


def test_two_launches_however_many_images(kernels: Kernels) -> None:
    kernels.launches()
    for batch in (1, 5):
        kernels.centroid_walk(field((batch, 9, 33), torch.float32))
        (moves, _), (labels, _) = kernels.launches()
        assert moves[0] == -(-batch * 9 * 33 // 128)
        assert labels[0] == batch


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    for shape in ((0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        kernels.centroid_walk(torch.empty(shape))
    assert kernels.launches() == []


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.centroid_walk(torch.zeros(1, 2, 2, 3), device=1)
