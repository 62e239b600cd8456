"""component_boxes.cu on the CPU executor, number for number and in the order of the reference."""

from __future__ import annotations

import executor_evaluate as evaluate
import pytest
import torch
from executor_kernels import Kernels, reference
from torch import Tensor

SHAPES = [(1, 1, 1), (2, 1, 9), (2, 9, 1), (1, 5, 7), (3, 12, 17), (1, 33, 20)]


def check(kernels: Kernels, maps: Tensor, levels: Tensor) -> None:
    boxes, areas, offsets = reference.component_boxes(maps, levels)
    got = evaluate.component_boxes(kernels, maps, levels, len(boxes) + 3)
    assert torch.equal(got[2], offsets)
    assert torch.equal(got[0][: len(boxes)], boxes)
    assert torch.equal(got[1][: len(boxes)], areas)
    assert (got[0][len(boxes) :] == evaluate.POISON).all()
    assert got[1][len(boxes) :].isnan().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("values", [2, 5, 256])
def test_values(kernels: Kernels, shape: tuple[int, int, int], values: int) -> None:
    maps = torch.randint(0, values, shape, generator=torch.Generator().manual_seed(values)).byte()
    check(kernels, maps, torch.tensor([values // 2, 0, 255, values // 3, 0]))


def test_more_levels_than_blocks(kernels: Kernels) -> None:
    kernels.launches()
    check(
        kernels, torch.randint(0, 256, (1, 5, 6), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(200)
    )
    count, offsets, write = kernels.launches()
    assert count == write and count[0][0] == 128 and offsets[0][0] == 1


def test_nests_of_rings(kernels: Kernels) -> None:
    """Five rings within one another, beside a comb whose teeth meet below."""
    y, x = torch.meshgrid(torch.arange(21), torch.arange(34), indexing="ij")
    rings = ((y - 10).abs().maximum((x - 10).abs()) % 2 == 0) & (x < 21)
    comb = (x > 22) & ((x % 2 == 0) | (y == 18))
    check(kernels, (rings | comb).byte()[None], torch.tensor([0]))


def test_what_does_not_fit_is_not_written(kernels: Kernels) -> None:
    maps = torch.randint(0, 2, (2, 9, 8), generator=torch.Generator().manual_seed(1)).byte()
    boxes, areas, offsets = reference.component_boxes(maps, [0])
    got = evaluate.component_boxes(kernels, maps, torch.tensor([0]), 4)
    assert torch.equal(got[0], boxes[:4]) and torch.equal(got[1], areas[:4]) and torch.equal(got[2], offsets)
    assert torch.equal(evaluate.component_boxes(kernels, maps, torch.tensor([0]), 0)[2], offsets)


def test_empty(kernels: Kernels) -> None:
    for shape, steps in (((0, 3, 4), 2), ((2, 3, 4), 0), ((2, 0, 4), 3), ((2, 3, 0), 3)):
        maps = torch.zeros(shape, dtype=torch.uint8)
        offsets = evaluate.component_boxes(kernels, maps, torch.arange(steps), 2)[2]
        assert offsets.tolist() == [0] * (shape[0] * steps + 1)


def test_an_absent_device_is_an_error_text(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        evaluate.component_boxes(kernels, torch.zeros(1, 2, 3, dtype=torch.uint8), torch.tensor([0]), 1, device=1)
