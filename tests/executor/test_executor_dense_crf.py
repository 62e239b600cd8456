"""dense_crf.cu on the CPU executor against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import Kernels, reference
from tolerances import close
from torch import Tensor

SIZES = [(1, 1), (1, 7), (5, 1), (4, 4), (9, 13), (17, 20)]
KERNELS = [
    dict(),
    dict(gaussian=None),
    dict(bilateral=None),
    dict(gaussian=None, bilateral=None),
    dict(gaussian=(1.5, 2.0), bilateral=(7.0, 20.0, 4.0)),
]


def inputs(size: tuple[int, int], labels: int, sets: int, dtype: torch.dtype, dark: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(sum(size))
    images = torch.randint(0, 256 // dark, (2, *size, 3), dtype=torch.uint8, generator=random)
    unary = 3 * torch.randn((2, sets, labels, *size), dtype=torch.float64, generator=random).abs()
    return images, unary.to(dtype)


@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(kernels: Kernels, size: tuple[int, int], dtype: torch.dtype, options: dict) -> None:
    for labels, sets in [(1, 1), (2, 1), (5, 2)]:  # one block of channels, a part of one, three and a part
        images, unary = inputs(size, labels, sets, dtype)
        want = reference.dense_crf(images, unary.double(), 2, **options)
        close(kernels.dense_crf(images, unary, 2, **options), want, dtype)


def test_ten_steps(kernels: Kernels) -> None:
    images, unary = inputs((17, 20), 3, 1, torch.float64)
    close(kernels.dense_crf(images, unary), reference.dense_crf(images, unary), torch.float64)


def test_no_steps(kernels: Kernels) -> None:
    images, unary = inputs((9, 13), 3, 2, torch.float32)
    close(kernels.dense_crf(images, unary, 0), (-unary.double()).softmax(2), torch.float32)


@pytest.mark.parametrize("order", ["rev", "1", "2"])
def test_who_comes_first_in_the_table_does_not_matter(
    kernels: Kernels, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, unary = inputs((17, 20), 3, 1, torch.float32)
    forward = kernels.dense_crf(images, unary)
    monkeypatch.setenv("EXECUTOR_ORDER", order)
    assert torch.equal(kernels.dense_crf(images, unary), forward)


def test_nan_stays_in_its_pixel(kernels: Kernels) -> None:
    images, unary = inputs((9, 13), 3, 1, torch.float32)
    weak = dict(steps=1, gaussian=(3.0, 0.1), bilateral=None)  # what one pixel says changes little
    clean = kernels.dense_crf(images, unary, **weak)
    unary[0, 0, 1, 4, 5] = torch.nan
    got = kernels.dense_crf(images, unary, **weak)
    assert got[0, 0, :, 4, 5].isnan().all()
    assert got.isnan().sum() == 3
    assert (got - clean).nan_to_num().abs().max() < 0.05


def test_an_image_alone(kernels: Kernels) -> None:
    images, unary = inputs((9, 13), 3, 1, torch.float32)
    assert torch.equal(kernels.dense_crf(images[1:], unary[1:]), kernels.dense_crf(images, unary)[1:])


def test_a_lattice_without_keys_is_an_error_text(kernels: Kernels) -> None:
    images, unary = inputs((9, 13), 3, 1, torch.float32)
    with pytest.raises(RuntimeError, match="bilateral: the deviations are so small"):
        kernels.dense_crf(images, unary, bilateral=(50.0, 1e-4, 10.0))
