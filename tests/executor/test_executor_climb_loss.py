"""climb_loss.cu on the CPU executor against the float64 reference, whose gradient is autograd's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from executor_kernels import Kernels, Loss, reference
from tolerances import close
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# classes, height, width: one pixel; odd; every width of vectors in rows and in columns; rows that a whole block sums;
# more classes than a block of columns holds; an ImageNet head
SHAPES = [(1, 1, 1), (5, 3, 5), (8, 4, 6), (21, 7, 9), (3, 50, 70), (2, 48, 64), (136, 6, 4), (1000, 7, 7)]


@dataclasses.dataclass
class Problem:
    logit_map: Tensor
    target: Tensor
    weight: Tensor
    positive: Tensor
    initial_map: Tensor | None
    members: int = 2
    suppression: float = 7.0
    rectify: bool = True

    def run(self, kernels: Kernels, want_gradient: bool = True) -> Loss:
        arguments = (self.logit_map, self.target, self.weight, self.positive, self.initial_map, self.suppression)
        return kernels.climb_loss(*arguments, 0.5, self.rectify, self.members, want_gradient)

    def want(self) -> Loss:
        initial = None if self.initial_map is None else self.initial_map.double()
        arguments = (self.logit_map.double(), self.target, self.weight.double(), self.positive.double(), initial)
        return Loss(*reference.climb_loss(*arguments, self.suppression, 0.5, self.rectify, self.members))


def problem(
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    groups: int = 2,
    members: int = 2,
    channels_last: bool = False,
    **options: bool,
) -> Problem:
    random = torch.Generator().manual_seed(sum(shape))
    classes, height, width = shape
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    # continuous, so that no position lies on the mask's threshold, where float32 and float64 may differ
    logit_map = (torch.randn(groups * members, *shape, generator=random, dtype=torch.float64) * 2 + 0.5).to(dtype)
    weight = torch.randint(-1, 1, (groups, classes), generator=random).to(acc)
    target = torch.randint(0, classes, (groups,), generator=random)
    weight[torch.arange(groups), target] = 1
    initial_map = torch.rand(groups, height, width, generator=random, dtype=torch.float64).to(acc) / 16
    layout = torch.channels_last if channels_last else torch.contiguous_format
    positive = torch.randint(10, 40, (groups,), generator=random).to(acc)
    return Problem(logit_map.to(memory_format=layout), target, weight, positive, initial_map, members, **options)


def check(got: Loss, want: Loss, dtype: torch.dtype) -> None:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("objective", "pair_map", "score"):
        close(getattr(got, name), getattr(want, name), acc)
    assert torch.equal(got.mask.bool(), want.mask.bool()) and got.mask.max() <= 1
    if got.gradient is not None:
        close(got.gradient, want.gradient, dtype)


@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs(kernels: Kernels, shape: tuple[int, int, int], dtype: torch.dtype, channels_last: bool) -> None:
    given = problem(shape, dtype, channels_last=channels_last)
    check(given.run(kernels), given.want(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("members", [1, 2])
def test_members_and_scores(kernels: Kernels, dtype: torch.dtype, rectify: bool, members: int) -> None:
    for channels_last in (False, True):
        given = problem((6, 5, 8), dtype, 3, members, channels_last, rectify=rectify)
        check(given.run(kernels), given.want(), dtype)


@pytest.mark.parametrize("channels_last", [False, True])
def test_unwanted_gradient_and_absent_initial_map(kernels: Kernels, channels_last: bool) -> None:
    given = problem((21, 7, 9), channels_last=channels_last)
    given.initial_map = None
    check(given.run(kernels, want_gradient=False), given.want(), torch.float32)
    check(given.run(kernels), given.want(), torch.float32)


def test_a_class_without_positive_positions(kernels: Kernels) -> None:
    given = problem((4, 6, 6))
    given.logit_map[:2, given.target[0]] = -1.0
    got = given.run(kernels)
    check(got, given.want(), torch.float32)
    assert not got.pair_map[0].any() and not got.mask[0].any() and got.mask[1].any()


def test_the_suppressed_part_matters(kernels: Kernels) -> None:
    """The regulariser shows in the objective and in the own class's gradient, and nowhere else."""
    given = problem((5, 6, 6))
    with_term = given.run(kernels)
    given.suppression = 0.0
    without = given.run(kernels)
    assert (with_term.objective < without.objective).all()
    changed = (with_term.gradient != without.gradient).unflatten(0, (2, 2)).any(1).flatten(2).any(2)  # [groups, C]
    assert torch.equal(changed, torch.nn.functional.one_hot(given.target, 5).bool())


@pytest.mark.parametrize("channels_last", [False, True])
def test_empty(kernels: Kernels, channels_last: bool) -> None:
    kernels.launches()
    got = problem((4, 3, 3), groups=0, channels_last=channels_last).run(kernels)
    assert got.objective.shape == (0,) and kernels.launches() == []


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_nan_shows_in_its_group_only(kernels: Kernels, channels_last: bool) -> None:
    given = problem((5, 6, 6), groups=3, channels_last=channels_last)
    clean = given.run(kernels)
    given.logit_map[2, given.target[1], 3, 3] = float("nan")
    got, want = given.run(kernels), given.want()
    for name in ("objective", "pair_map", "score"):
        close(getattr(got, name), getattr(want, name))
    assert torch.equal(got.mask.bool(), want.mask) and got.objective[1].isnan()
    for name in ("objective", "pair_map", "mask"):
        assert torch.equal(getattr(got, name)[[0, 2]], getattr(clean, name)[[0, 2]])
    assert torch.equal(got.gradient[[0, 1, 4, 5]], clean.gradient[[0, 1, 4, 5]])
