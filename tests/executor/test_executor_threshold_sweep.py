"""threshold_sweep.cu on the CPU executor, integer for integer against the reference."""

from __future__ import annotations

import executor_evaluate as evaluate
import pytest
import torch
from executor_kernels import Kernels, reference
from torch import Tensor

SHAPES = [(1, 1, 1), (2, 1, 40), (3, 19, 1), (2, 9, 33), (1, 64, 33), (0, 5, 6), (20, 4, 8)]


def case(shape: tuple[int, int, int], dtype: torch.dtype, classes: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Values on a coarse grid, so that they tie with one another and with thresholds."""
    random = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 17, shape, generator=random) / 16
    names = torch.arange(classes).repeat(20)[: shape[0]]
    truth = torch.randint(0, classes + 2, shape[1:], generator=random)
    return maps.to(dtype), names, torch.where(truth > classes, 255, truth).byte()


@pytest.mark.parametrize("steps", [0, 1, 20, 300])
@pytest.mark.parametrize("dtype", evaluate.DTYPES, ids=str)
def test_values(kernels: Kernels, dtype: torch.dtype, steps: int) -> None:
    for classes in (1, 20):
        thresholds = (torch.arange(steps) / 20 - 0.1).to(dtype).unique()
        for shape in SHAPES:
            maps, names, truth = case(shape, dtype, classes)
            got, faults = evaluate.threshold_sweep(kernels, maps, names, truth, thresholds, classes)
            assert torch.equal(got, reference.threshold_sweep(maps, names, truth, thresholds, classes)), shape
            assert faults.tolist() == [0, 0]


def test_unaligned(kernels: Kernels) -> None:
    maps, names, truth = case((2, 8, 16), torch.float32, 5)
    shifted = torch.cat([torch.zeros(1), maps.flatten()])[1:].view(maps.shape)
    thresholds = torch.tensor([0.25, 0.5])
    assert shifted.data_ptr() % 16
    got, _ = evaluate.threshold_sweep(kernels, shifted, names, truth, thresholds, 5)
    assert torch.equal(got, reference.threshold_sweep(maps, names, truth, thresholds, 5))


def test_faults_are_counted(kernels: Kernels) -> None:
    maps, names, truth = case((2, 9, 33), torch.float32, 5)
    maps[0, 1, 2] = maps[1, 1, 2] = maps[1, 8, 32] = float("nan")
    truth[0, 0], truth[3, 3], truth[4, 4] = 17, 6, 255
    _, faults = evaluate.threshold_sweep(kernels, maps, names, truth, torch.tensor([0.5]), 5)
    assert faults.tolist() == [3, 17]


def test_the_widest_loads(kernels: Kernels) -> None:
    """A thread of the packed kernel takes 16 bytes of a map: fewer blocks."""
    kernels.launches()
    for shape, blocks in (((1, 32, 256), 1), ((1, 33, 249), 5)):
        maps, names, truth = case(shape, torch.float32, 2)
        evaluate.threshold_sweep(kernels, maps, names, truth, torch.tensor([0.5]), 2)
        assert kernels.launches()[1][0][0] == blocks


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        evaluate.threshold_sweep(kernels, *case((1, 2, 2), torch.float32, 1), torch.tensor([0.5]), 1, device=1)
