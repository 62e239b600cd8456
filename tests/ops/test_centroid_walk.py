from importlib import import_module

import numpy as np
import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

SHAPES = [(2, 1, 1), (2, 1, 9), (2, 9, 1), (2, 5, 7), (3, 2, 12, 17), (2, 2, 2, 8, 6), (2, 33, 70), (1, 2, 130, 3)]
FLOATS = [torch.float32, torch.float64]


def case(shape=(2, 2, 9, 11), dtype=torch.float64, size=3.0, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(shape, dtype=torch.float64) * size).to(dtype)


def wells(height=60, width=75, dtype=torch.float64, every=25):
    """A field that leads to centres `every` pixels apart, and the number of the well of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    row, column = y // every, x // every
    field = torch.stack([row * every + every // 2 - y, column * every + every // 2 - x]).to(dtype) * 0.5
    return field, row * -(-width // every) + column + 1


def numpy_steps(displacement, steps):
    """The method's loop on one image: [2, h, w] -> [2, h, w]."""
    height, width = displacement.shape[1:]
    y, x = (a.astype(displacement.dtype) for a in np.mgrid[:height, :width])
    for _ in range(steps):
        top, bottom = np.floor(y).astype(int), np.ceil(y).astype(int)
        left, right = np.floor(x).astype(int), np.ceil(x).astype(int)
        a, b = y - top.astype(y.dtype), x - left.astype(x.dtype)
        move = [
            f[bottom, right] * a * b
            + f[top, right] * (1 - a) * b
            + f[bottom, left] * a * (1 - b)
            + f[top, left] * (1 - a) * (1 - b)
            for f in displacement
        ]
        y, x = np.clip(y + move[0], 0, height - 1), np.clip(x + move[1], 0, width - 1)
    return np.stack([y, x])


def flooded(weak):
    """Components by flood fill, in raster order."""
    height, width = weak.shape
    numbers, count = np.zeros(weak.shape, int), 0
    for start in zip(*np.nonzero(weak), strict=True):
        if numbers[start]:
            continue
        count, todo = count + 1, [start]
        numbers[start] = count
        while todo:
            y, x = todo.pop()
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= v < height and 0 <= u < width and weak[v, u] and not numbers[v, u]:
                    numbers[v, u] = count
                    todo.append((v, u))
    return numbers


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("steps", [0, 1, 2, 25])
def test_the_bits_are_those_of_numpy(dtype, steps):
    for seed, (height, width) in enumerate([(1, 1), (7, 1), (9, 14), (41, 37)]):
        field = case((2, height, width), dtype, seed=seed)
        for run in (ops.centroid_walk, reference.centroid_walk):
            centroids, labels = run(field, steps, 2.5)
            want = numpy_steps(field.numpy(), steps)
            assert np.array_equal(centroids.numpy(), want)
            weak = np.sqrt(field[1].numpy() ** 2 + field[0].numpy() ** 2) < 2.5
            y, x = np.round(want).astype(int)
            assert np.array_equal(labels.numpy(), flooded(weak)[y, x])


@pytest.mark.parametrize("dtype", FLOATS)
def test_values(dtype):
    """As the reference of that dtype, to the bit, whatever the shape."""
    for shape in SHAPES:
        for steps, threshold in ((7, 2.5), (3, 0.0), (4, 100.0)):
            field = case(shape, dtype)
            got, want = ops.centroid_walk(field, steps, threshold), reference.centroid_walk(field, steps, threshold)
            assert torch.equal(got.centroids, want[0])
            assert torch.equal(got.labels, want[1])
            assert got.labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_float64_after_300_steps_where_the_field_leads_somewhere(dtype):
    field, number = wells()
    want = reference.centroid_walk(field)
    got = ops.centroid_walk(field.to(dtype))
    close(got.centroids, want[0])
    assert torch.equal(got.labels, want[1])
    assert torch.equal(got.labels, number)


def test_components_of_every_form():
    """Only the corners of a diagonal touch; a comb joins late; a spiral is one."""
    drawn = [
        "#.#.#.#",
        "#.#.#.#",
        "#######",
        ".......",
        "##.#.##",
        "..#.#..",
        "####...",
        "...#.##",
        "##.#.#.",
        "#..##..",
    ]
    weak = np.array([[c == "#" for c in row] for row in drawn])
    field = torch.zeros(2, *weak.shape)
    field[0][torch.tensor(~weak)] = 9.0
    for run in (ops.centroid_walk, reference.centroid_walk):
        assert np.array_equal(run(field, 0, 1.0)[1].numpy(), flooded(weak))
    random = torch.rand(120, 131, generator=torch.Generator().manual_seed(0)) < 0.6  # at the edge of percolation
    field = torch.where(random, 0.0, 9.0).expand(2, -1, -1)
    assert np.array_equal(ops.centroid_walk(field, 0, 1.0).labels.numpy(), flooded(random.numpy()))


def test_ends_are_clamped_and_rounded_half_to_even():
    field = torch.zeros(2, 4, 6)
    field[0], field[1] = -5.0, 0.5
    centroids = ops.centroid_walk(field, 1, 10.0).centroids
    assert not centroids[0].any()
    assert centroids[1, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.0]
    column = torch.zeros(2, 1, 6)
    column[1] = 0.5
    column[1, 0, 1::2] = 0.25  # weak at 1, 3, 5
    assert ops.centroid_walk(column, 1, 0.3).labels.tolist() == [[0, 1, 0, 2, 0, 3]]


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 2, 0, 5), (2, 2, 4, 0)], ids=str)
def test_empty(shape):
    centroids, labels = ops.centroid_walk(torch.empty(shape))
    assert centroids.shape == shape
    assert labels.shape == (shape[0], *shape[2:])


def test_non_contiguous():
    field = case((2, 2, 9, 12))
    want = ops.centroid_walk(field, 9)
    strange = torch.stack([field, field], -1).transpose(-3, -2)[..., 0].transpose(-1, -2)
    assert not strange.is_contiguous()
    got = ops.centroid_walk(strange, 9)
    assert torch.equal(got.centroids, want.centroids)
    assert torch.equal(got.labels, want.labels)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_same_bits_whatever_else_is_in_the_batch(dtype, threads):
    field = case((5, 2, 31, 45), dtype)
    alone = ops.centroid_walk(field[2:3].clone(), 40)
    field[0] = torch.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = ops.centroid_walk(field, 40)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together.centroids[2:3], alone.centroids)
    assert torch.equal(together.labels[2:3], alone.labels)
    assert together.centroids[0].isnan().all()
    assert not together.labels[0].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_who_meets_a_nan_is_lost_and_the_others_are_not(value):
    field, number = wells(50, 50)
    field[1, 12, 20] = value
    got, want = ops.centroid_walk(field), reference.centroid_walk(field)
    assert torch.equal(got.centroids.nan_to_num(-1), want[0].nan_to_num(-1))
    assert torch.equal(got.labels, want[1])
    assert torch.equal(got.labels[25:], number[25:])


def test_without_the_kernels_the_reference_does_it(monkeypatch):
    field = case()
    want = ops.centroid_walk(field, 12)
    monkeypatch.setattr(import_module("advcam_fast.ops.centroid_walk"), "backend_of", lambda _: "reference")
    got = ops.centroid_walk(field, 12)
    assert torch.equal(got.centroids, want.centroids)
    assert torch.equal(got.labels, want.labels)


def test_opcheck():
    for dtype in FLOATS:
        opcheck(torch.ops.advcam_fast.centroid_walk.default, (case(dtype=dtype), 6, 2.5))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    def run(field):
        centroids, labels = ops.centroid_walk(field * 2, 5)
        return centroids + 1, labels * 2

    field = case()
    for got, want in zip(torch.compile(run, fullgraph=True, backend=backend)(field), run(field), strict=True):
        assert torch.equal(got, want)


def test_it_has_no_gradient():
    centroids, _ = ops.centroid_walk(case().requires_grad_(), 3)
    assert not centroids.requires_grad


@pytest.mark.parametrize(
    ("field", "options", "error", "text"),
    [
        (torch.zeros(3, 4, 5), {}, ValueError, r"displacement: shape \(3, 4, 5\) came, wanted is \[..., 2, h, w\]"),
        (torch.zeros(2, 5), {}, ValueError, "displacement: shape"),
        (torch.zeros(2, 4, 5).half(), {}, TypeError, "displacement: dtype torch.float16 came"),
        (torch.zeros(2, 4, 5), dict(steps=-1), ValueError, "steps: -1 came"),
    ],
)
def test_wrong_arguments_are_named(field, options, error, text):
    with pytest.raises(error, match=text) as caught:
        ops.centroid_walk(field, **options)
    assert "\n" not in str(caught.value)
