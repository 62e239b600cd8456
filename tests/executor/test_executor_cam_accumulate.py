"""cam_accumulate.cu on the CPU executor against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import Kernels, reference
from tolerances import close
from torch import Tensor

FLOATS = [torch.float32, torch.float64]
# maps' sizes, total's size, size resized to: plain additions (one pixel, odd, vector, over 64 blocks); the method's
# stride-4 grid and its 16-multiple, cropped; rows of vectors and odd rows; reduction; one scale as large as the total,
# which is cropped or not; rows that end within a vector
CASES = [
    ([(1, 1)], (1, 1), (1, 1)),
    ([(7, 9)], (7, 9), (7, 9)),
    ([(8, 6), (8, 6)], (8, 6), (8, 6)),
    ([(260, 256)], (260, 256), (260, 256)),
    ([(3, 4), (6, 8), (9, 12), (12, 16)], (47, 63), (48, 64)),
    ([(3, 4), (6, 8), (9, 12), (12, 16)], (24, 32), (24, 32)),
    ([(3, 4), (24, 32)], (24, 32), (24, 32)),
    ([(24, 32)], (20, 28), (24, 32)),
    ([(20, 28)], (20, 28), (24, 32)),
    ([(3, 4)], (8, 6), (8, 6)),
    ([(90, 70)], (11, 13), (11, 13)),
    ([(1, 1), (1, 5)], (9, 4), (9, 4)),
]


def inputs(sizes: list[tuple[int, int]], total: tuple[int, int], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(sum(total))
    maps = [torch.rand(3, *size, generator=random, dtype=torch.float64).to(dtype) for size in sizes]
    return maps, torch.rand(3, *total, generator=random, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("sizes", "total_size", "size"), CASES, ids=str)
def test_values(
    kernels: Kernels,
    sizes: list[tuple[int, int]],
    total_size: tuple[int, int],
    size: tuple[int, int],
    normalise: bool,
    dtype: torch.dtype,
) -> None:
    maps, total = inputs(sizes, total_size, dtype)
    want = reference.cam_accumulate([m.double() for m in maps], total.to(torch.float64, copy=True), size, normalise)
    close(kernels.cam_accumulate(maps, total, size, normalise), want)


def test_no_scale_only_normalises(kernels: Kernels) -> None:
    _, total = inputs([], (5, 7), torch.float32)
    want = reference.cam_accumulate([], total.double(), (5, 7), True)
    close(kernels.cam_accumulate([], total, (5, 7), True), want)


def test_eight_scales(kernels: Kernels) -> None:
    maps, total = inputs([(s, s + 1) for s in range(1, 9)], (16, 20), torch.float32)
    want = reference.cam_accumulate([m.double() for m in maps], total.double(), (16, 20), False)
    close(kernels.cam_accumulate(maps, total, (16, 20)), want)


def test_long_sides_keep_their_precision(kernels: Kernels) -> None:
    """A float32 source coordinate near 3000 would be off by 1e-4."""
    maps, total = inputs([(2, 3001)], (2, 4099), torch.float32)
    want = reference.cam_accumulate([m.double() for m in maps], total.double(), (2, 4099), False)
    close(kernels.cam_accumulate(maps, total, (2, 4099)), want)


@pytest.mark.parametrize("offset", [1, 2])
def test_misaligned_tensors_take_the_scalar_path(kernels: Kernels, offset: int) -> None:
    maps, total = inputs([(8, 8)], (8, 8), torch.float32)
    shifted = torch.empty(total.numel() + offset)[offset:].view_as(total).copy_(total)
    assert torch.equal(kernels.cam_accumulate(maps, shifted, (8, 8)), total + maps[0])


def test_a_map_of_zeros_stays_zero(kernels: Kernels) -> None:
    assert not kernels.cam_accumulate([torch.zeros(2, 3, 3)], torch.zeros(2, 9, 9), (9, 9), True).any()


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    kernels.cam_accumulate([torch.empty(0, 4, 4)], torch.empty(0, 4, 4), (4, 4), True)
    kernels.cam_accumulate([torch.empty(2, 4, 4)], torch.empty(2, 0, 4), (4, 4), True)
    assert kernels.launches() == []


@pytest.mark.parametrize("size", [(6, 8), (9, 12)], ids=["plain", "resized"])
def test_a_nan_stays_in_its_map(kernels: Kernels, size: tuple[int, int]) -> None:
    maps, total = inputs([(6, 8)], size, torch.float32)
    clean = kernels.cam_accumulate(maps, total.clone(), size, True)
    maps[0][1, 2, 3] = float("nan")
    want = reference.cam_accumulate([m.double() for m in maps], total.double(), size, True)
    got = kernels.cam_accumulate(maps, total, size, True)
    assert got[1].isnan().all() and want[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


def test_sizes_over_32_bits_are_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match=r"2\^31"):
        kernels.cam_accumulate([torch.zeros(1, 1, 1)], torch.zeros(1, 1, 1), (1 << 16, 1 << 16))
