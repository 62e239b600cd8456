"""random_walk.cu on the CPU executor against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from executor_kernels import Kernels, reference
from tolerances import close
from torch import Tensor

FLOATS = [torch.float32, torch.float64]
# batch, labels, height, width: one pixel; lines; several tiles with ragged edges; labels over a thread's four
SHAPES = [(1, 1, 1, 1), (2, 1, 1, 40), (1, 2, 19, 1), (2, 2, 9, 33), (1, 5, 17, 70), (1, 3, 8, 32), (1, 4, 3, 5)]
# radius, scale, steps, restart: states in shared memory and not; an odd and an even number of steps; none
OPTIONS = [(5, 10.0, 4, 0.0), (4, 2.0, 3, 0.2), (8, 3.0, 2, 0.0), (1, 1.0, 2, 0.5), (5, 0.0, 1, 1.0), (3, 1.0, 0, 0.3)]


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, color: bool) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(sum(shape))
    batch, _, height, width = shape
    maps = torch.rand(shape, generator=random, dtype=torch.float64)
    guide = torch.rand(batch, *([3] if color else []), height, width, generator=random, dtype=torch.float64)
    return maps.to(dtype), (guide * (1 if color else 0.6)).to(dtype)


def expected(maps: Tensor, guide: Tensor, radius: int, scale: float, steps: int, restart: float) -> Tensor:
    wide = (maps.double(), guide.double(), radius)
    if guide.ndim == 4:
        sigma = (0.5 / scale) ** 0.5 if scale else 1e9
        return reference.color_walk(*wide, sigma, steps, restart)
    return reference.random_walk(*wide, scale, steps, restart)


@pytest.mark.parametrize("color", [False, True], ids=["boundary", "colors"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(kernels: Kernels, shape: tuple[int, int, int, int], dtype: torch.dtype, color: bool) -> None:
    maps, guide = inputs(shape, dtype, color)
    for options in OPTIONS:
        close(kernels.random_walk(maps, guide, *options), expected(maps, guide, *options))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_steps(kernels: Kernels, dtype: torch.dtype) -> None:
    """In float32 too: what is lost in a step is lost 256 times."""
    maps, guide = inputs((1, 2, 12, 32), dtype, False)
    got = kernels.random_walk(maps, guide, steps=256)
    close(got, expected(maps, guide, 5, 10.0, 256, 0.0))


def test_a_launch_a_step_however_many_images(kernels: Kernels) -> None:
    kernels.launches()
    for batch in (1, 6):
        kernels.random_walk(*inputs((batch, 2, 9, 40), torch.float32, False), steps=5)
        launches = kernels.launches()
        assert len(launches) == 3 + 5, "x0, the affinities and their sums, then the steps"
        assert {grid[0] for grid, _ in launches[3:]} == {batch * 2 * 2}


def test_empty(kernels: Kernels) -> None:
    kernels.launches()
    for shape in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        kernels.random_walk(torch.empty(shape), torch.empty(shape[0], *shape[2:]))
    assert kernels.launches() == []


def test_a_nan_stays_in_its_map(kernels: Kernels) -> None:
    maps, guide = inputs((2, 3, 9, 33), torch.float32, False)
    clean = kernels.random_walk(maps, guide)
    maps[1, 1, 4, 5] = float("nan")
    got = kernels.random_walk(maps, guide)
    assert got[1, 1].isnan().any()
    assert torch.equal(got[0], clean[0]) and torch.equal(got[1, [0, 2]], clean[1, [0, 2]])


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        kernels.random_walk(torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 3), device=1)
