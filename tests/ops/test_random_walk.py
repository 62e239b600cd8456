"""random_walk and color_walk: one kernel, two kinds of affinity."""

from importlib import import_module

import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

# leading sizes, labels, height, width
SHAPES = [
    ((), 1, 1, 1),
    ((), 2, 1, 9),
    ((2,), 1, 9, 1),
    ((2,), 3, 5, 7),
    ((3,), 5, 12, 17),
    ((2, 2), 2, 7, 6),
    ((), 8, 33, 70),
    ((), 1, 3, 130),  # several vectors a row
]
# radius, beta or sigma, steps, restart
OPTIONS = [
    (5, 10.0, 8, 0.0),
    (1, 3.0, 4, 0.0),
    (2, 0.5, 5, 0.25),
    (4, 0.0, 3, 0.0),
    (8, 2.0, 11, 1.0),
    (5, 4.0, 0, 0.5),
]
STEMS = ["random_walk", "color_walk"]
every_stem = pytest.mark.parametrize("stem", STEMS)


def case(stem, shape=((2,), 3, 9, 11), dtype=torch.float64, seed=0):
    """Maps and what guides their walk."""
    torch.manual_seed(seed)
    leading, labels, height, width = shape
    maps = torch.rand(*leading, labels, height, width, dtype=torch.float64)
    guide = torch.rand(*leading, *([3] if stem == "color_walk" else []), height, width, dtype=torch.float64)
    return maps.to(dtype), (guide * (1.0 if stem == "color_walk" else 0.5)).to(dtype)


def scaled(stem, options):
    radius, scale, *rest = options
    return (radius, scale if stem == "random_walk" else 0.1 + 0.1 * scale, *rest)


def dense(stem, maps, guide, radius, scale, steps, restart=0.0):
    """The walk as a power of the N x N matrix, pixel by pixel: [N, h, w] with [h, w] or [C, h, w]."""
    height, width = maps.shape[-2:]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    affinity = torch.zeros(len(pixels), len(pixels), dtype=torch.float64)
    for i, (y, x) in enumerate(pixels):
        for j, (v, u) in enumerate(pixels):
            dy, dx = v - y, u - x
            length = dy * dy + dx * dx
            if i == j:
                affinity[i, j] = 1
            elif length < radius**2 and stem == "color_walk":
                affinity[i, j] = torch.exp(-(guide[:, y, x] - guide[:, v, u]).square().sum() / (2 * scale**2))
            elif length < radius**2:
                box = [(a, b) for a in range(min(y, v), max(y, v) + 1) for b in range(min(x, u), max(x, u) + 1)]
                near = [guide[a, b] for a, b in box if ((a - y) * dx - (b - x) * dy) ** 2 / length < 1]
                affinity[i, j] = (1 - max(near)) ** scale
    start = (maps * (1 - guide) if stem == "random_walk" else maps).flatten(1)
    matrix, state = affinity / affinity.sum(0), start
    if not restart:
        return (start @ torch.linalg.matrix_power(matrix, steps)).view_as(maps)
    for _ in range(steps):
        state = (1 - restart) * (state @ matrix) + restart * start
    return state.view_as(maps)


@every_stem
@pytest.mark.parametrize(("radius", "steps", "restart"), [(5, 256, 0.0), (3, 7, 0.0), (6, 4, 0.0), (5, 30, 0.1)])
def test_equals_the_power_of_the_dense_matrix(stem, radius, steps, restart):
    for size in ((9, 11), (1, 13), (6, 1)):
        maps, guide = case(stem, ((), 2, *size))
        scale = 10.0 if stem == "random_walk" else 0.3
        want = dense(stem, maps, guide, radius, scale, steps, restart)
        for run in (getattr(ops, stem), getattr(reference, stem)):
            got = run(maps, guide, radius, scale, steps, restart)
            assert ((got - want).abs().max() / want.abs().max()).item() <= 1e-9


@every_stem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values(stem, options, dtype):
    for shape in SHAPES:
        maps, guide = case(stem, shape, dtype)
        want = getattr(reference, stem)(maps.double(), guide.double(), *scaled(stem, options))
        close(getattr(ops, stem)(maps, guide, *scaled(stem, options)), want)


@every_stem
def test_float32_is_no_worse_after_256_steps(stem):
    maps, guide = case(stem, ((), 2, 94, 125), torch.float32)
    options = (5, 10.0 if stem == "random_walk" else 0.3, 256)
    close(getattr(ops, stem)(maps, guide, *options), getattr(reference, stem)(maps.double(), guide.double(), *options))


def test_an_average_over_the_sources_at_each_destination():
    """A constant stays where nothing is in the way, also at the edges; the sum of a map does not."""
    flat = ops.random_walk(torch.ones(1, 20, 30), torch.zeros(20, 30))
    close(flat, torch.ones(1, 20, 30, dtype=torch.float64))
    spot = torch.zeros(1, 20, 30)
    spot[0, 0, 0] = 1
    assert ops.random_walk(spot, torch.zeros(20, 30), steps=1).sum() < 0.6, (
        "a corner has few neighbours, they have many"
    )


def test_a_wall_is_not_crossed():
    maps, boundary = torch.zeros(1, 20, 31), torch.zeros(20, 31)
    maps[..., :15], boundary[:, 15] = 1, 1
    walked = ops.random_walk(maps, boundary)
    close(walked[..., :15], torch.ones(1, 20, 15, dtype=torch.float64))
    assert not walked[..., 15:].any()


@every_stem
def test_zeros_stay_zero(stem):
    maps, guide = case(stem)
    maps[:, 1] = 0
    assert not getattr(ops, stem)(maps, guide, steps=256)[:, 1].any()


@every_stem
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(stem, shape):
    batch, labels, height, width = shape
    maps, guide = case(stem, ((batch,), labels, height, width), torch.float32)
    maps.requires_grad_(), guide.requires_grad_()
    out = getattr(ops, stem)(maps, guide)
    assert out.shape == shape
    out.sum().backward()
    assert maps.grad.shape == shape
    assert guide.grad.shape == guide.shape
    assert not guide.grad.any()


@every_stem
def test_non_contiguous(stem):
    maps, guide = case(stem, ((2,), 3, 9, 12))
    want = getattr(ops, stem)(maps, guide, steps=9)
    strange = [torch.stack([t, t], -1).transpose(-3, -2)[..., 0].transpose(-1, -2) for t in (maps, guide)]
    assert not any(t.is_contiguous() for t in strange)
    assert torch.equal(getattr(ops, stem)(*strange, steps=9), want)


def test_bytes_are_colors():
    maps, _ = case("color_walk")
    images = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    assert torch.equal(ops.color_walk(maps, images), ops.color_walk(maps, images.double()))


@every_stem
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_whatever_else_is_in_the_batch(stem, dtype, threads):
    """Over 4096 pixels, so that threads share an image; labels that walk in fours, in twos and alone."""
    run = getattr(ops, stem)
    before = torch.get_num_threads()
    for batch, labels in ((5, 7), (1, 1), (2, 1)):
        maps, guide = case(stem, ((batch,), labels, 61, 75), dtype)
        item, label = batch // 2, labels // 2
        leaves = [t[item : item + 1].clone().requires_grad_() for t in (maps, guide)]
        try:
            torch.set_num_threads(1)
            alone = run(leaves[0][:, label : label + 1], leaves[1], steps=19)
            own = torch.autograd.grad(run(*leaves, steps=19).square().sum(), leaves)
            torch.set_num_threads(threads)
            if batch > 1:
                maps[0] = torch.nan
            together = [t.requires_grad_() for t in (maps, guide)]
            out = run(*together, steps=19)
            gradients = torch.autograd.grad(out.square().sum(), together)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(out[item, label], alone[0, 0])
        for got, want in zip(gradients, own, strict=True):
            assert torch.equal(got[item], want[0])


@every_stem
def test_nan_stays_in_its_map(stem):
    maps, guide = case(stem, ((2,), 5, 9, 11))
    clean = getattr(ops, stem)(maps, guide)
    maps[1, 2, 3, 4] = torch.nan
    got = getattr(ops, stem)(maps, guide)
    assert got[1, 2].isnan().any()
    others = torch.ones(2, 5, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(got[others], clean[others])
    assert torch.equal(getattr(ops, stem)(maps.flip(0), guide.flip(0))[1], got[0]), "nor into the next call's"


@every_stem
@pytest.mark.parametrize(("radius", "steps", "restart"), [(3, 5, 0.0), (5, 1, 0.0), (2, 4, 0.3), (3, 0, 0.0)])
def test_gradcheck(stem, radius, steps, restart):
    maps, guide = (t.requires_grad_() for t in case(stem, ((), 2, 4, 5)))

    def run(maps, guide):
        return getattr(ops, stem)(maps, guide, radius, 2.0 if stem == "random_walk" else 0.5, steps, restart)

    assert torch.autograd.gradcheck(run, (maps, guide))


@every_stem
@pytest.mark.parametrize("steps", [1, 2, 3, 16, 17, 256])
def test_gradient_equals_autograd_of_the_reference(stem, steps):
    """Every way that stretches of states can be cut, several labels together, a second pass over left-over ones."""
    leaves = [t.requires_grad_() for t in case(stem, ((2,), 7, 9, 20))]
    for restart in (0.0, 0.2):
        results = []
        for run in (getattr(ops, stem), getattr(reference, stem)):
            out = run(*leaves, 5, 3.0 if stem == "random_walk" else 0.4, steps, restart)
            results.append(torch.autograd.grad((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum(), leaves))
        for got, want in zip(*results, strict=True):  # sums of 256 steps' terms of both signs
            assert ((got - want).abs().max() / want.abs().max()).item() <= 1e-10


def test_gradient_where_the_boundary_is_closed():
    """(1 - b)^10 is flat at b = 1, and beta = 0 asks for no boundary at all."""
    maps, boundary = case("random_walk", ((), 2, 6, 7))
    boundary[2:4, 3] = 1
    boundary.requires_grad_()
    for beta in (10.0, 0.0, 1.0):
        (gradient,) = torch.autograd.grad(ops.random_walk(maps, boundary, 3, beta, 4).square().sum(), boundary)
        assert gradient.isfinite().all()


@every_stem
def test_without_the_kernels_the_reference_does_it(stem, monkeypatch):
    maps, guide = (t.requires_grad_() for t in case(stem))
    want = getattr(ops, stem)(maps, guide, steps=7)
    wanted = torch.autograd.grad(want.square().sum(), (maps, guide))
    monkeypatch.setattr(import_module(f"advcam_fast.ops.{stem}"), "backend_of", lambda _: "reference")
    got = getattr(ops, stem)(maps, guide, steps=7)
    close(got, want)
    for a, b in zip(torch.autograd.grad(got.square().sum(), (maps, guide)), wanted, strict=True):
        close(a, b)


@every_stem
def test_opcheck(stem):
    for dtype in (torch.float32, torch.float64):
        maps, guide = (t.requires_grad_() for t in case(stem, ((2,), 2, 4, 5), dtype))
        opcheck(getattr(torch.ops.advcam_fast, stem).default, (maps, guide, 3, 2.0, 4, 0.1))
    gradient = torch.rand_like(maps)
    backward = getattr(torch.ops.advcam_fast, f"{stem}_backward").default
    opcheck(backward, (gradient, maps.detach(), guide.detach(), 3, 2.0, 4, 0.1))


@every_stem
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(stem, backend):
    leaves = [t.requires_grad_() for t in case(stem)]

    def loss(maps, guide):
        return (getattr(ops, stem)(maps.square(), guide, steps=5) * 2).square().sum()

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend=backend)(*leaves), leaves)
    for got, want in zip(compiled, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        close(got, want)


@pytest.mark.parametrize(
    ("stem", "change", "error", "text"),
    [
        ("random_walk", dict(guide=torch.zeros(4, 6)), ValueError, r"boundary: shape \(4, 6\) came for maps of shape"),
        ("random_walk", dict(guide=torch.zeros(1, 4, 5)), ValueError, "same h, w and leading sizes"),
        ("random_walk", dict(maps=torch.zeros(4, 5)), ValueError, r"wanted are maps \[..., N, h, w\]"),
        ("random_walk", dict(maps=torch.zeros(2, 4, 5).half()), TypeError, "dtype torch.float16 came"),
        ("random_walk", dict(guide=torch.full((4, 5), 1.5)), ValueError, "boundary: 1.5.* came, wanted are prob"),
        ("random_walk", dict(guide=torch.full((4, 5), -0.1)), ValueError, "boundary: -0.1.* came, wanted are prob"),
        ("random_walk", dict(guide=torch.full((4, 5), torch.nan)), ValueError, "boundary: .*nan came, wanted are prob"),
        ("random_walk", dict(radius=0), ValueError, "radius: 0 came, wanted is 1 to 64"),
        ("random_walk", dict(radius=65), ValueError, "radius: 65 came"),
        ("random_walk", dict(steps=-1), ValueError, "steps: -1 came"),
        ("random_walk", dict(beta=-1.0), ValueError, "beta: -1.0 came"),
        ("random_walk", dict(restart=1.5), ValueError, "restart: 1.5 came"),
        ("color_walk", dict(guide=torch.zeros(3, 4, 6)), ValueError, r"images: shape \(3, 4, 6\) came for maps"),
        ("color_walk", dict(guide=torch.zeros(4, 5)), ValueError, r"images \[..., C, h, w\]"),
        ("color_walk", dict(guide=torch.full((3, 4, 5), torch.inf)), ValueError, "images: inf came, wanted are finite"),
        ("color_walk", dict(sigma=0.0), ValueError, "sigma: 0.0 came"),
    ],
)
def test_wrong_arguments_are_named(stem, change, error, text):
    guide = torch.zeros(4, 5) if stem == "random_walk" else torch.zeros(3, 4, 5)
    arguments = dict(maps=torch.zeros(2, 4, 5), guide=guide) | change
    with pytest.raises(error, match=text) as caught:
        getattr(ops, stem)(arguments.pop("maps"), arguments.pop("guide"), **arguments)
    assert "\n" not in str(caught.value)
