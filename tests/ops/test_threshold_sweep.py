from importlib import import_module

import numpy as np
import pytest
import torch
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

DTYPES = [torch.float16, torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def case(seed=0, dtype=torch.float32, shape=None, steps=None, classes=20):
    """maps, classes, truth, thresholds, num_classes: of every second seed on a grid, where all of them tie."""
    random = np.random.default_rng(seed)
    count, height, width = shape or (int(random.integers(0, 4)), *map(int, random.integers(1, 40, 2)))
    maps = random.random((count, height, width))
    thresholds = random.random(int(random.integers(0, 60)) if steps is None else steps) * 1.2 - 0.1
    if seed % 2:
        maps, thresholds = np.round(maps * 8) / 8, np.round(thresholds * 8) / 8
    names = random.permutation(classes)[:count]
    truth = random.choice([*random.integers(0, classes + 1, 3), 0, 255], (height, width))  # most classes are missing
    return (
        torch.from_numpy(maps).to(dtype),
        torch.from_numpy(names),
        torch.from_numpy(truth.astype(np.uint8)),
        thresholds.tolist(),
        classes,
    )


def naive(maps, classes, truth, thresholds, num_classes):
    """Threshold by threshold and pixel by pixel, in NumPy and Python."""
    counts = np.zeros((len(thresholds), num_classes + 1, num_classes + 1), np.int64)
    for count, threshold in zip(counts, np.asarray(thresholds, np.float64).astype(maps.numpy().dtype), strict=True):
        for pixel in np.ndindex(*truth.shape):
            predicted, best = 0, threshold
            for index, name in enumerate(classes.tolist()):
                if maps.numpy()[(index, *pixel)] > best:
                    predicted, best = name + 1, maps.numpy()[(index, *pixel)]
            if truth[pixel] != 255:
                count[truth[pixel], predicted] += 1
    return torch.from_numpy(counts)


@pytest.mark.parametrize("seed", range(100))
def test_equals_the_naive_loop(seed):
    """Ignored pixels, ties, missing classes, thresholds in any order and more than once."""
    random = np.random.default_rng(seed)
    shape = (int(random.integers(0, 4)), *map(int, random.integers(1, 12, 2)))
    arguments = case(seed, DTYPES[seed % 3], shape, int(random.integers(0, 9)), classes=int(random.integers(3, 8)))
    assert torch.equal(ops.threshold_sweep(*arguments), naive(*arguments))
    assert torch.equal(reference.threshold_sweep(*arguments), naive(*arguments))


@every_dtype
@pytest.mark.parametrize("seed", range(40))
def test_equals_the_reference(dtype, seed):
    arguments = case(seed, dtype)
    got = ops.threshold_sweep(*arguments)
    assert got.dtype == torch.int64
    assert torch.equal(got, reference.threshold_sweep(*arguments))


@every_dtype
@pytest.mark.parametrize("steps", [64, 65, 66, 500])
def test_many_thresholds_close_together_and_far_apart(dtype, steps):
    """They are looked up in cells: many within one cell, far beyond all maps, infinite, equal."""
    maps, names, truth, _, classes = case(2, dtype, (2, 60, 70))
    maps[0, :3] = torch.tensor([torch.inf, -torch.inf, 0.5], dtype=dtype)[:, None]
    near = (0.5 + torch.arange(steps - 6, dtype=torch.float64) * 1e-6).tolist()
    for others in ([1e30, -1e30, 0.25, 0.25, 2.0, -1.0], [np.inf, -np.inf, 0.1, 0.9, 0.0, -0.0]):
        thresholds = near + others
        want = reference.threshold_sweep(maps, names, truth, thresholds, classes)
        assert torch.equal(ops.threshold_sweep(maps, names, truth, thresholds, classes), want)
    fine = maps[0, 3:].flatten()[:steps].double().tolist()  # each is the value of a pixel
    want = reference.threshold_sweep(maps, names, truth, fine, classes)
    assert torch.equal(ops.threshold_sweep(maps, names, truth, fine, classes), want)


def test_thresholds_are_rounded_to_the_dtype_of_the_maps():
    maps, truth = torch.full((1, 1, 1), 0.3, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.uint8)
    assert float(maps) > 0.3
    assert ops.threshold_sweep(maps, torch.tensor([0]), truth, [0.3], 1)[0, 0].tolist() == [1, 0]
    assert ops.threshold_sweep(maps.double(), torch.tensor([0]), truth, [0.3], 1)[0, 0].tolist() == [0, 1]


def test_counts_of_images_add_up():
    """As one image would have them that holds both."""
    maps, names, truth, thresholds, classes = case(0, shape=(2, 20, 30), steps=9)
    parts = [
        ops.threshold_sweep(maps[:, rows], names, truth[rows], thresholds, classes)
        for rows in (slice(7), slice(7, None))
    ]
    assert torch.equal(sum(parts), ops.threshold_sweep(maps, names, truth, thresholds, classes))


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (1, 1, 1)], ids=str)
def test_empty_and_one_pixel(shape):
    for steps in (0, 3, 80):
        arguments = case(0, shape=shape, steps=steps)
        got = ops.threshold_sweep(*arguments)
        assert got.shape == (steps, 21, 21)
        assert torch.equal(got, reference.threshold_sweep(*arguments))


def test_no_classes_at_all():
    truth = torch.tensor([[0, 255, 0]], dtype=torch.uint8)
    assert ops.threshold_sweep(torch.zeros(0, 1, 3), torch.zeros(0).long(), truth, [0.5], 0).tolist() == [[[2]]]


def test_non_contiguous():
    maps, names, truth, thresholds, classes = case(0, shape=(2, 31, 17), steps=7)
    want = ops.threshold_sweep(maps, names, truth, thresholds, classes)
    strange = torch.stack([maps, maps], -1).transpose(1, 2)[..., 0].transpose(1, 2)
    mirrored = torch.stack([truth, truth], -1)[..., 0]
    assert not strange.is_contiguous() and not mirrored.is_contiguous()
    assert torch.equal(ops.threshold_sweep(strange, names.flip(0).flip(0), mirrored, thresholds, classes), want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_on_any_number_of_threads(threads):
    arguments = case(0, shape=(2, 375, 500), steps=20)  # several jobs
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.threshold_sweep(*arguments)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, reference.threshold_sweep(*arguments))


def test_without_the_kernels_the_reference_does_it(monkeypatch):
    arguments = case(4)
    want = ops.threshold_sweep(*arguments)
    monkeypatch.setattr(import_module("advcam_fast.ops.threshold_sweep"), "backend_of", lambda _: "reference")
    assert torch.equal(ops.threshold_sweep(*arguments), want)


def test_opcheck():
    for dtype in DTYPES:
        maps, names, truth, thresholds, classes = case(0, dtype, (2, 9, 11), 4)
        opcheck(torch.ops.advcam_fast.threshold_sweep.default, (maps, names, truth, torch.tensor(thresholds), classes))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    maps, names, truth, thresholds, classes = case(0, shape=(2, 9, 11), steps=4)

    def run(maps):
        return ops.threshold_sweep(maps * 0.5, names, truth, thresholds, classes) + 1

    assert torch.equal(torch.compile(run, fullgraph=True, backend=backend)(maps), run(maps))


def test_it_has_no_gradient():
    maps, *others = case(0, shape=(2, 9, 11))
    assert not ops.threshold_sweep(maps.requires_grad_(), *others).requires_grad


def changed(**change):
    maps, names, truth, _, classes = case(0, shape=(2, 4, 5), classes=3)
    arguments = {"maps": maps, "classes": names, "truth": truth % 3, "thresholds": [0.5], "num_classes": classes}
    return arguments | change


@pytest.mark.parametrize("run", [ops.threshold_sweep, reference.threshold_sweep], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(truth=torch.full((4, 5), 4, dtype=torch.uint8)), "truth: label 4 came, wanted is 0 to 3, or 255"),
        (dict(maps=torch.full((2, 4, 5), torch.nan)), "maps: 40 NaN came, wanted are numbers"),
        (dict(thresholds=[0.1, float("nan")]), "thresholds: NaN came"),
        (dict(classes=torch.tensor([0, 3])), "classes: 3 came, wanted is 0 to 2"),
        (dict(classes=torch.tensor([-1, 0])), "classes: -1 came, wanted is 0 to 2"),
    ],
)
def test_wrong_values_are_named(run, change, text):
    with pytest.raises(ValueError, match=text) as caught:
        run(**changed(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(truth=torch.zeros(5, 4, dtype=torch.uint8)), ValueError, r"maps, truth: shapes \(2, 4, 5\) and \(5, 4\)"),
        (dict(maps=torch.zeros(4, 5)), ValueError, "maps, truth: shapes"),
        (dict(classes=torch.tensor([0])), ValueError, r"classes: shape \(1,\) came, wanted is \(2,\)"),
        (dict(maps=torch.zeros(2, 4, 5).bfloat16()), TypeError, "maps: dtype torch.bfloat16 came"),
        (dict(truth=torch.zeros(4, 5)), TypeError, "truth: dtype torch.float32 came"),
        (dict(classes=torch.tensor([0, 1]).int()), TypeError, "classes: dtype torch.int32 came"),
        (dict(num_classes=255), ValueError, "num_classes: 255 came, wanted is 0 to 254"),
        (dict(thresholds=[[0.5]]), ValueError, r"thresholds: shape \(1, 1\) came"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text) as caught:
        ops.threshold_sweep(**changed(**change))
    assert "\n" not in str(caught.value)
