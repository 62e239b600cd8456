import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (20, 1, 1), (1, 7, 9), (20, 7, 9), (130, 5, 4), (64, 16, 17)]


def case(shape, dtype=torch.float32, group_size=2, groups=3, channels_last=False, seed=0):
    torch.manual_seed(seed)
    classes, height, width = shape
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    z = torch.randn(groups * group_size, classes, height, width).to(dtype).contiguous(memory_format=layout)
    target = torch.randint(0, classes, (groups,))
    weight = torch.tensor([-1.0, 0.0, -0.5], dtype=acc)[torch.randint(0, 3, (groups, classes))]
    weight[torch.arange(groups), target] = 1
    positive = torch.randint(1, 50, (groups,)).to(acc)
    initial = torch.rand(groups, height, width, dtype=acc) * 0.1
    return z, target, weight, positive, initial


def wide(arguments):
    return [a.double() if a is not None and a.is_floating_point() else a for a in arguments]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_values(dtype, start, rectify, group_size, channels_last):
    for shape in SHAPES:
        z, target, weight, positive, initial = case(shape, dtype, group_size, channels_last=channels_last)
        arguments = [z, target, weight, positive, initial if start else None]
        options = (7.0, 0.5, rectify, group_size)
        got = ops.climb_loss(*arguments, *options)
        want = ops.ClimbLoss(*reference.climb_loss(*wide(arguments), *options))
        acc = positive.dtype
        close(got.objective, want.objective, acc)
        close(got.pair_map, want.pair_map, acc)
        close(got.score, want.score, acc)
        close(got.gradient, want.gradient, dtype)
        assert torch.equal(got.mask, want.mask)
        assert got.gradient.stride() == z.stride()


def objective_for_autograd(z, target, weight, positive, initial, suppression, rectify, group_size):
    """The objective from its definition, pair by pair: P, f and M held constant, as the method does."""
    total = 0
    for group in range(len(target)):
        maps = z[group * group_size : (group + 1) * group_size]
        own = maps[:, target[group]].relu()
        count = (own.detach() > 0).sum((1, 2))
        cam = [own[n] * count[n] / (positive[group] * count.sum()) for n in range(group_size)]
        pair_map = cam[0] + (cam[1].flip(-1) if group_size == 2 else 0)
        mask = pair_map.detach() / pair_map.detach().max() > 0.5
        score = (maps.relu() if rectify else maps).mean((2, 3))
        penalty = (mask * (pair_map - initial[group]).abs()).sum()
        total = total + (weight[group] * score).sum() - suppression * penalty
    return total


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("rectify", [True, False])
def test_closed_form_is_autograds(rectify, group_size):
    z, *rest = case((20, 7, 9), torch.float64, group_size)
    z.requires_grad_()
    want = objective_for_autograd(z, *rest, 7.0, rectify, group_size)
    (wanted,) = torch.autograd.grad(want, z)
    for loss in (ops.climb_loss, reference.climb_loss):
        objective, gradient, *_ = loss(z.detach(), *rest, 7.0, 0.5, rectify, group_size)
        close(objective.sum(), want.detach())
        close(gradient, wanted)


def test_planted_sign_error_would_be_seen():
    """The regulariser is large enough in these cases for a wrong sign of it to fail."""
    z, target, weight, positive, initial = case((20, 7, 9), torch.float64)
    with_pull = ops.climb_loss(z, target, weight, positive, initial, 7.0).gradient
    without = ops.climb_loss(z, target, weight, positive, initial, 0.0).gradient
    flipped = 2 * without - with_pull
    with pytest.raises(AssertionError, match="relative error"):
        close(flipped, with_pull)


def test_other_layouts_are_copied():
    z, *rest = case((20, 7, 9))
    strange = torch.randn(6, 20, 7, 18)[..., ::2].copy_(z)
    assert torch.equal(ops.climb_loss(strange, *rest, 7.0).gradient, ops.climb_loss(z, *rest, 7.0).gradient)


def test_class_without_a_positive_score_is_zero_and_not_nan():
    z, target, weight, positive, initial = case((4, 5, 6))
    z[0:2, target[0]] = -z[0:2, target[0]].abs()
    got = ops.climb_loss(z, target, weight, positive, initial, 7.0)
    assert not got.pair_map[0].any()
    assert not got.mask[0].any()
    assert got.gradient.isfinite().all()
    assert got.objective.isfinite().all()
    assert got.pair_map[1].any()


def test_nan_stays_in_its_pair():
    z, *rest = case((20, 7, 9))
    clean = ops.climb_loss(z, *rest, 7.0)
    z[2, :, 3, 3] = torch.nan
    got = ops.climb_loss(z, *rest, 7.0)
    close(got.gradient, reference.climb_loss(z, *rest, 7.0)[1])
    assert got.objective.isnan().tolist() == [False, True, False]
    assert got.pair_map[1].isnan().any()
    for a, b in zip(got, clean, strict=True):
        items = slice(0, 2) if len(a) == 6 else slice(0, 1)
        assert torch.equal(a[items], b[items])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_else_is_in_the_batch(threads, channels_last):
    z, target, weight, positive, initial = case((130, 12, 13), groups=5, channels_last=channels_last)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.climb_loss(z[4:6].clone(), target[2:3], weight[2:3], positive[2:3], initial[2:3], 7.0)
        torch.set_num_threads(threads)
        batch = ops.climb_loss(z, target, weight, positive, initial, 7.0)
    finally:
        torch.set_num_threads(before)
    for one, many in zip(alone, batch, strict=True):
        assert torch.equal(many[4:6] if len(many) == 10 else many[2:3], one)


def test_gradcheck():
    z, target, weight, positive, initial = case((5, 4, 3), torch.float64)
    # Off the kinks of relu and |R - R0|. P, f and M are constants for the method's gradient, and a step of 1e-6
    # changes none of them here.
    z = torch.where(z.abs() < 0.05, 0.1, z).requires_grad_()

    def objective(z):
        return ops.climb_loss(z, target, weight, positive, initial, 7.0).objective

    assert torch.autograd.gradcheck(objective, z)


def test_opcheck():
    for dtype in DTYPES:
        z, target, weight, positive, initial = case((5, 4, 3), dtype, channels_last=dtype == torch.float16)
        for requires_grad in (False, True):
            arguments = (z.requires_grad_(requires_grad), target, weight, positive, initial, 7.0, 0.5, True, 2)
            opcheck(torch.ops.advcam_fast.climb_loss.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    z, *rest = case((5, 4, 3), channels_last=True)

    def loss(z):
        out = ops.climb_loss(z, *rest, 7.0)
        return out.objective.sum() + 0 * out.pair_map.sum(), out.pair_map

    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    want, want_map = loss(a)
    got, got_map = torch.compile(loss, fullgraph=True, backend=backend)(b)
    want.backward()
    got.backward()
    assert torch.equal(got_map, want_map)
    assert torch.equal(a.grad, b.grad)
    close(got.detach(), want.detach())


def test_empty():
    z, *rest = case((4, 5, 6), groups=0)
    assert ops.climb_loss(z, *rest, 7.0).pair_map.shape == (0, 5, 6)
    z, *rest = case((4, 0, 6))
    with pytest.raises(ValueError, match="one position at least"):
        ops.climb_loss(z, *rest, 7.0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(logit_map=torch.zeros(5, 4, 3, 3)), ValueError, "wanted is \\[groups"),
        (dict(logit_map=torch.zeros(4, 4, 3, 3, dtype=torch.int32)), TypeError, "logit_map: dtype int32"),
        (dict(target=torch.tensor([0, 4])), IndexError, "target: class 4 came, wanted is 0 to 3"),
        (dict(target=torch.tensor([0, -1])), IndexError, "target: class -1"),
        (dict(target=torch.tensor([0.0, 1.0])), TypeError, "target: dtype float32 came, wanted is int64"),
        (dict(weight=torch.ones(2, 3)), ValueError, r"weight: shape \(2, 3\) came, wanted is \(2, 4\)"),
        (dict(positive=torch.ones(2).double()), TypeError, "positive: dtype float64"),
        (dict(initial_map=torch.ones(2, 3, 4)), ValueError, "initial_map: shape"),
        (dict(group_size=3), ValueError, "group_size 3"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    arguments = dict(
        logit_map=torch.zeros(4, 4, 3, 3), target=torch.tensor([0, 1]), weight=torch.ones(2, 4), positive=torch.ones(2)
    )
    with pytest.raises(error, match=text):
        ops.climb_loss(**(arguments | change))
