"""What a batch must not change: the same bits in any company and any order of execution; one launch for all groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from executor_arguments import ClimbStepArguments, MaskedReluArguments, MaskedReluBackwardArguments
from executor_kernels import Kernels
from torch import Tensor

Results = list[Tensor]  # each [groups, ...]
GROUPS = 4


def climb_step(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    random = torch.Generator().manual_seed(1)
    image, gradient = torch.randn(2, GROUPS, 9001, generator=random)
    gradient[poisoned] = float("nan")
    image, gradient = image[groups], gradient[groups].bfloat16()
    network_input = torch.empty_like(image, dtype=torch.float16)
    largest = kernels.climb_step(image, gradient, 0.08, network_input)
    return [image, network_input, largest]


def climb_loss(kernels: Kernels, groups: Tensor, poisoned: Tensor, channels_last: bool) -> Results:
    random = torch.Generator().manual_seed(2)
    logit_map = torch.randn(GROUPS, 2, 12, 9, 11, generator=random)
    logit_map[poisoned] = float("nan")
    logit_map = logit_map[groups].flatten(0, 1)
    if channels_last:
        logit_map = logit_map.to(memory_format=torch.channels_last)
    weight, initial_map = torch.randn(GROUPS, 12, generator=random), torch.rand(GROUPS, 9, 11, generator=random)
    target, positive = torch.arange(GROUPS) * 2, torch.arange(GROUPS) + 5.0
    got = kernels.climb_loss(logit_map, target[groups], weight[groups], positive[groups], initial_map[groups], 7.0)
    assert got.gradient is not None
    pairs = (got.gradient.unflatten(0, (-1, 2)), got.score.unflatten(0, (-1, 2)))
    return [got.objective, got.pair_map, got.mask, *pairs]


def climb_loss_planar(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    return climb_loss(kernels, groups, poisoned, False)


def climb_loss_channels_last(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    return climb_loss(kernels, groups, poisoned, True)


def cam_accumulate(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    random = torch.Generator().manual_seed(3)
    maps = [torch.rand(GROUPS, *size, generator=random) for size in ((3, 4), (40, 52))]
    maps[0][poisoned] = float("nan")
    total = torch.rand(GROUPS, 40, 52, generator=random)[groups]
    return [kernels.cam_accumulate([m[groups] for m in maps], total, (40, 52), normalise=True)]


def masked_relu(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    random = torch.Generator().manual_seed(5)
    x, residual, gradient = torch.randn(3, GROUPS, 37, 24, generator=random)  # a group's bits are whole bytes
    x[poisoned] = gradient[poisoned] = float("nan")
    bias, valid = torch.randn(24, generator=random), (torch.rand(GROUPS, 37, generator=random) < 0.8).to(torch.uint8)
    x, residual, gradient = (t[groups].flatten(0, 1) for t in (x, residual, gradient))
    bits = kernels.masked_relu(x, bias, residual, 6.0, valid[groups].flatten())
    assert bits is not None
    kernels.masked_relu_backward(gradient, bits)
    return [t.unflatten(0, (len(groups), -1)) for t in (x, gradient, bits)]


def random_walk(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    random = torch.Generator().manual_seed(6)
    maps, guide = torch.rand(GROUPS, 3, 13, 37, generator=random), torch.rand(GROUPS, 13, 37, generator=random) * 0.5
    maps[poisoned] = float("nan")
    walked = kernels.random_walk(maps[groups], guide[groups], restart=0.1)
    return [walked, kernels.random_walk(maps[groups], guide[groups], radius=7, steps=2)]


def color_walk(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    random = torch.Generator().manual_seed(7)
    maps, guide = torch.rand(GROUPS, 1, 13, 37, generator=random), torch.rand(GROUPS, 3, 13, 37, generator=random)
    maps[poisoned] = float("nan")
    return [kernels.random_walk(maps[groups], guide[groups])]


def centroid_walk(kernels: Kernels, groups: Tensor, poisoned: Tensor) -> Results:
    field = torch.randn(GROUPS, 2, 13, 37, generator=torch.Generator().manual_seed(8)) * 2
    field[poisoned] = float("nan")
    return list(kernels.centroid_walk(field[groups], 20))


Op = Callable[[Kernels, Tensor, Tensor], Results]
OPS: list[Op] = [climb_step, climb_loss_planar, climb_loss_channels_last, cam_accumulate, masked_relu]
OPS += [random_walk, color_walk, centroid_walk]
EVERYONE, NOBODY = torch.arange(GROUPS), torch.empty(0, dtype=torch.int64)
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)


def same_bits(got: Results, want: Results) -> bool:
    return all(torch.equal(a, b) and not a.isnan().any() for a, b in zip(got, want, strict=True))


@every_op
def test_permuted_groups(kernels: Kernels, op: Op) -> None:
    order = torch.tensor([2, 0, 3, 1])
    together = op(kernels, EVERYONE, NOBODY)
    assert same_bits(op(kernels, order, NOBODY), [result[order] for result in together])


@every_op
def test_a_group_alone(kernels: Kernels, op: Op) -> None:
    together = op(kernels, EVERYONE, NOBODY)
    for group in range(GROUPS):
        assert same_bits(op(kernels, torch.tensor([group]), NOBODY), [result[group, None] for result in together])


@every_op
def test_neighbours_of_nan(kernels: Kernels, op: Op) -> None:
    together = op(kernels, EVERYONE, NOBODY)
    among_nan = op(kernels, EVERYONE, torch.tensor([0, 2]))
    assert among_nan[0][0].isnan().any()
    assert same_bits([result[[1, 3]] for result in among_nan], [result[[1, 3]] for result in together])


@every_op
@pytest.mark.parametrize("order", ["rev", "1", "2"])
def test_order_of_threads_and_blocks(kernels: Kernels, op: Op, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = op(kernels, EVERYONE, NOBODY)
    monkeypatch.setenv("EXECUTOR_ORDER", order)
    assert same_bits(op(kernels, EVERYONE, NOBODY), forward)


PAIRS = 64


def test_one_launch_steps_64_pairs(kernels: Kernels) -> None:
    image, gradient = torch.randn(2, PAIRS, 2 * 3 * 28 * 28, generator=torch.Generator().manual_seed(4))
    kernels.launches()
    kernels.climb_step(image, gradient, 0.08)
    launches = kernels.launches()
    assert len(launches) == 2, "the extrema and the step, however many groups"
    assert all(grid[0] % PAIRS == 0 and grid[0] >= 2 * PAIRS for grid, _ in launches)


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_launch_scores_64_pairs(kernels: Kernels, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    logit_map = torch.randn(2 * PAIRS, 20, 7, 7).to(memory_format=layout)
    kernels.launches()
    kernels.climb_loss(logit_map, torch.zeros(PAIRS, dtype=torch.int64), torch.ones(PAIRS, 20), torch.ones(PAIRS))
    (scores, _), (groups, _) = kernels.launches()
    assert scores[0] == (2 * PAIRS if channels_last else 2 * PAIRS * 20 // 8)
    assert groups == (PAIRS, 1, 1)


def test_one_launch_adds_64_maps(kernels: Kernels) -> None:
    maps = [torch.rand(PAIRS, 5, 6), torch.rand(PAIRS, 10, 12)]
    kernels.launches()
    kernels.cam_accumulate(maps, torch.zeros(PAIRS, 40, 52), (40, 52), normalise=True)
    assert [grid for grid, _ in kernels.launches()] == [(PAIRS * 3, 1, 1), (PAIRS * 3, 1, 1)]


def test_one_launch_rectifies_any_number_of_rows(kernels: Kernels) -> None:
    x = torch.randn(PAIRS * 50, 24)
    kernels.launches()
    bits = kernels.masked_relu(x)
    assert bits is not None
    kernels.masked_relu_backward(x, bits)
    assert [grid for grid, _ in kernels.launches()] == 2 * [(-(-PAIRS * 50 * 24 // 8 // 256), 1, 1)]


def test_more_groups_than_the_second_axis_of_a_grid_holds(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTOR_ORDER", "none")
    groups = 70_000
    kernels.launches()
    kernels.climb_step(torch.empty(groups, 1), torch.empty(groups, 1), 0.5)
    kernels.climb_loss(torch.empty(groups, 1, 1, 1), torch.empty(0), torch.empty(0), torch.empty(0), group_size=1)
    kernels.cam_accumulate([torch.empty(groups, 1, 1)], torch.empty(groups, 1, 1), (1, 1))
    step, apply, scores, maps, added = (grid for grid, _ in kernels.launches())
    assert step == apply == maps == added == (groups, 1, 1) and scores == (groups // 8, 1, 1)


@pytest.mark.parametrize("groups", [1 << 31, (1 << 32) + 1])
def test_too_many_groups_are_an_error_text(kernels: Kernels, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTOR_ORDER", "none")
    with pytest.raises(RuntimeError, match="invalid configuration"):
        kernels.run("climb_step", ClimbStepArguments(groups=groups, n=1), torch.empty(0))
    with pytest.raises(RuntimeError, match="invalid configuration"):
        kernels.run("masked_relu", MaskedReluArguments(rows=groups, channels=8 * 256), torch.empty(0))
    with pytest.raises(RuntimeError, match="invalid configuration"):
        kernels.run("masked_relu_backward", MaskedReluBackwardArguments(n=groups * 8 * 256), torch.empty(0))
