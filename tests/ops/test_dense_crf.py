import itertools
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import close
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

SIZES = [(1, 1), (1, 7), (5, 1), (2, 2), (9, 13), (33, 47)]  # the last one of 2 x 2 patches
KERNELS = [
    dict(),
    dict(gaussian=None),
    dict(bilateral=None),
    dict(gaussian=None, bilateral=None),
    dict(gaussian=(1.5, 2), bilateral=(7, 20, 4)),
]
LABELS = [1, 2, 3, 6, 10, 21]  # blocks of 0, 1, 2, 8, 16 and 20 channels


def case(size, labels, batch=2, sets=None, dtype=torch.float32, dark=1, seed=0):
    """Random images of 256 / dark levels, and energies of both certain and uncertain pixels."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256 // dark, (batch, *size, 3), dtype=torch.uint8, generator=random)
    shape = (batch, *([] if sets is None else [sets]), labels, *size)
    unary = (3 * torch.randn(shape, dtype=torch.float64, generator=random)).abs().to(dtype)
    return images, unary


def of_peer(images, unary, steps=10, gaussian=(3, 3), bilateral=(50, 5, 10)):
    """The same by pydensecrf2, in its float32."""
    peer = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    labels, height, width = unary.shape[1:]
    results = []
    for image, energy in zip(images, unary, strict=True):
        field = peer.DenseCRF2D(width, height, labels)
        field.setUnaryEnergy(energy.float().flatten(1).contiguous().numpy())
        if gaussian is not None:
            field.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        if bilateral is not None:
            sxy, srgb, weight = bilateral
            field.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image.numpy(), compat=weight)
        results.append(torch.from_numpy(np.array(field.inference(steps))).view(labels, height, width))
    return torch.stack(results)


def agrees_with_peer(images, unary, **options):
    got, want = ops.dense_crf(images, unary, **options), of_peer(images, unary, **options)
    assert (got.argmax(1) == want.argmax(1)).double().mean() >= 0.999
    assert (got - want).abs().max() <= 1e-3


@pytest.mark.parametrize("dark", [1, 16])  # random labels on a nearly flat image have no stable answer
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_pydensecrf(size, labels, dark):
    agrees_with_peer(*case(size, labels, dark=dark))


@pytest.mark.parametrize("options", [*KERNELS, dict(steps=0), dict(steps=1)], ids=str)
def test_equals_pydensecrf_with_options(options):
    agrees_with_peer(*case((30, 41), 4, dark=8), **options)


@pytest.mark.parametrize("labels", [2, 21])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_equals_pydensecrf_on_photos(real_data, labels, soft):
    for path in sorted((real_data / "coco_train" / "images").glob("*.jpg"))[:40:13]:
        photo = Image.open(path).convert("RGB")
        photo = photo.crop((0, 0, min(photo.width, 251), min(photo.height, 187)))
        images = torch.from_numpy(np.array(photo))[None]
        seeds = torch.randint(0, labels, (1, 1, 8, 10), generator=torch.Generator().manual_seed(labels))
        cells = torch.nn.functional.interpolate(seeds.double(), images.shape[1:3])[:, 0].long()
        if soft:
            near = torch.nn.functional.one_hot(cells, labels).movedim(-1, 1).float() + 0.3
            unary = -torch.nn.functional.avg_pool2d(near, 25, 1, 12, count_include_pad=False).log()
        else:
            unary = ops.hard_unary(cells, labels)
        agrees_with_peer(images, unary)


@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values(dtype, options):
    for size in SIZES:
        for labels in LABELS:
            images, unary = case(size, labels, dtype=dtype, dark=4)
            # steps amplify the rounding of float32, ten of them beyond the table
            steps = 10 if dtype == torch.float64 else 2
            want = reference.dense_crf(images, unary.double(), steps, **options)
            close(ops.dense_crf(images, unary, steps, **options), want, dtype)


@pytest.mark.parametrize("labels", [2, 3, 9, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sets_share_a_lattice(dtype, labels):
    images, unary = case((20, 31), labels, sets=3, dtype=dtype, dark=8)
    got = ops.dense_crf(images, unary, steps=2)
    assert got.shape == unary.shape
    close(got, reference.dense_crf(images, unary.double(), steps=2), dtype)
    for s in range(3):
        close(got[:, s], ops.dense_crf(images, unary[:, s].contiguous(), steps=2), dtype)


def test_what_it_is_for():
    """Two flat halves: the label of the many wins on both sides of the edge, and not over it."""
    images = torch.zeros(1, 40, 60, 3, dtype=torch.uint8)
    images[:, :, 30:] = 200
    labels = (torch.arange(60) >= 30).long().expand(1, 40, 60).clone()
    noisy = torch.where(torch.rand(1, 40, 60, generator=torch.Generator().manual_seed(0)) < 0.3, 1 - labels, labels)
    assert torch.equal(ops.dense_crf(images, ops.hard_unary(noisy, 2)).argmax(1), labels)


def test_probabilities():
    images, unary = case((20, 30), 7)
    got = ops.dense_crf(images, unary)
    assert got.min() >= 0
    assert (got.sum(1) - 1).abs().max() < 1e-6
    assert torch.equal(ops.dense_crf(images, unary[:, :1]), torch.ones(2, 1, 20, 30))


def test_empty_batch_and_sets():
    assert ops.dense_crf(torch.zeros(0, 4, 5, 3, dtype=torch.uint8), torch.zeros(0, 2, 4, 5)).shape == (0, 2, 4, 5)
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    assert ops.dense_crf(images, torch.zeros(2, 0, 3, 4, 5)).shape == (2, 0, 3, 4, 5)
    assert ops.dense_crf(images[:, :0], torch.zeros(2, 3, 0, 5)).shape == (2, 3, 0, 5)


def test_impossible_labels_stay_impossible():
    images, unary = case((20, 30), 3, dark=8)
    unary[:, 1] = torch.inf
    unary[:, 2, 5, 5] = torch.inf
    got = ops.dense_crf(images, unary)
    assert not got[:, 1].any()
    assert torch.equal(got[:, 0, 5, 5], torch.ones(2))
    close(got, reference.dense_crf(images, unary.double()), torch.float32)


@pytest.mark.parametrize("energy", [0.0, 1e4, 3e38])
def test_large_energies(energy):
    images, unary = case((20, 30), 3, dark=8)
    unary[:, 2] = energy
    close(ops.dense_crf(images, unary), reference.dense_crf(images, unary.double()), torch.float32)


@pytest.mark.parametrize("labels", [1, 2, 3, 7, 21])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_the_threads_and_else_in_the_batch(threads, labels):
    images, unary = case((70, 97), labels, batch=3, dark=16)
    unary[..., 40:] *= 50  # probabilities of 0 and 1
    alone = ops.dense_crf(images[1:2].clone(), unary[1:2].clone())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.dense_crf(images, unary)[1:2], alone)
        assert torch.equal(ops.dense_crf(images[1:2], unary[1:2]), alone)
    finally:
        torch.set_num_threads(before)


def test_kept_lattices_serve_their_own_size_and_deviation_alone():
    """Same bits as in a process of their own: a lattice is kept by height, width and deviation, for every dtype."""
    cases = [((30, 40), 3), ((40, 30), 3), ((30, 41), 3), ((30, 40), 4), ((40, 40), 3)]

    def results(order):
        found = {}
        for (size, sxy), dtype in itertools.product(order, (torch.float32, torch.float64)):
            images, unary = case(size, 3, dtype=dtype)
            found[size, sxy, dtype] = ops.dense_crf(images, unary, gaussian=(sxy, 3), bilateral=None)
        return found

    first, again = results(cases), results(reversed(cases))
    assert all(torch.equal(first[key], again[key]) for key in first)
    for (size, sxy), dtype in itertools.product(cases, (torch.float32, torch.float64)):
        close(first[size, sxy, dtype], reference.dense_crf(*case(size, 3, dtype=dtype), 10, (sxy, 3), None))


def test_kept_lattices_serve_threads_at_once():
    """With sizes that come and go, so that some are built by two at a time."""
    sizes = [(33 + i % 5, 47) for i in range(40)]
    want = {size: ops.dense_crf(*case(size, 2)) for size in set(sizes)}
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda size: ops.dense_crf(*case(size, 2)), sizes))
    assert all(torch.equal(want[size], result) for size, result in zip(sizes, got, strict=True))


KEEP_MANY = """
import torch
from advcam_fast import ops
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
for i in range(24):
    images, unary = torch.zeros(1, 700, 1000 + i, 3, dtype=torch.uint8), torch.zeros(1, 1, 700, 1000 + i).double()
    ops.dense_crf(images, unary, steps=0, bilateral=None)
    before = resident() if i == 0 else before
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read a process's memory from")
def test_few_lattices_are_kept():
    """Each of these takes 21 MB and more; 64 MB are kept in all."""
    result = subprocess.run([sys.executable, "-c", KEEP_MANY], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 200


def test_non_contiguous():
    images, unary = case((20, 30), 4)
    want = ops.dense_crf(images, unary)
    planar = images.movedim(3, 1).contiguous().movedim(1, 3)
    got = ops.dense_crf(planar, unary.contiguous(memory_format=torch.channels_last))
    assert torch.equal(got, want)
    assert got.is_contiguous()


@pytest.mark.parametrize("shape", [(4, 20, 24), (2, 4, 20, 24)], ids=["one set", "two sets"])
@pytest.mark.parametrize("options", [dict(), dict(gaussian=None)], ids=str)
def test_opcheck(shape, options):
    images, unary = torch.zeros(2, 20, 24, 3, dtype=torch.uint8), torch.rand(2, *shape)
    arguments = dict(gaussian=[3.0, 3.0], bilateral=[50.0, 5.0, 10.0]) | options
    opcheck(torch.ops.advcam_fast.dense_crf.default, (images, unary, 2), arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    images, unary = case((20, 24), 3)

    def refine(images, unary):
        return ops.dense_crf(images, unary * 2, steps=3).amax(1) + 1

    assert torch.equal(torch.compile(refine, fullgraph=True, backend=backend)(images, unary), refine(images, unary))


IMAGES, UNARY = torch.zeros(2, 4, 5, 3, dtype=torch.uint8), torch.zeros(2, 3, 4, 5)


def with_pixel(value, channels=slice(None)):
    unary = UNARY.clone()
    unary[1, channels, 2, 2] = value
    return unary


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(images=IMAGES.float()), ValueError, r"images: torch.float32 \(2, 4, 5, 3\) came"),
        (dict(images=IMAGES.movedim(3, 1)), ValueError, r"images: torch.uint8 \(2, 3, 4, 5\) came"),
        (dict(unary=UNARY[:1]), ValueError, r"unary: shape \(1, 3, 4, 5\) came, wanted is \[2, L, 4, 5\] or"),
        (dict(unary=UNARY[0]), ValueError, r"unary: shape \(3, 4, 5\) came"),
        (dict(unary=UNARY.mT), ValueError, r"unary: shape \(2, 3, 5, 4\) came"),
        (dict(unary=UNARY[:, :0]), ValueError, "one label at least"),
        (dict(unary=UNARY.half()), TypeError, "unary: dtype float16 came, wanted is float32, float64"),
        (dict(unary=UNARY.long()), TypeError, "unary: dtype int64 came"),
        (dict(unary=UNARY.clone().requires_grad_()), RuntimeError, "no derivative"),
        (dict(unary=with_pixel(math.nan, 1)), ValueError, "unary: a NaN"),
        (dict(unary=with_pixel(-math.inf, 0)), ValueError, "a minus infinity"),
        (dict(unary=with_pixel(math.inf)), ValueError, "nothing but infinities"),
        (dict(steps=-1), ValueError, "steps: -1 came"),
        (dict(gaussian=(0, 3)), ValueError, r"gaussian: \(0, 3\) came, wanted is \(sxy, weight\)"),
        (dict(gaussian=(3, math.nan)), ValueError, "gaussian"),
        (dict(gaussian=(3,)), ValueError, "gaussian"),
        (dict(bilateral=(50, -5, 10)), ValueError, r"bilateral: .* wanted is \(sxy, srgb, weight\)"),
        (dict(bilateral=(3, 10)), ValueError, "bilateral"),
        (dict(bilateral=(50, 1e-4, 10)), ValueError, "bilateral: the deviations are so small"),
        (dict(gaussian=(1e-9, 3)), ValueError, "gaussian: the deviation is so small"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text) as raised:
        ops.dense_crf(**(dict(images=IMAGES, unary=UNARY) | change))
    assert "\n" not in str(raised.value)


def test_hard_unary():
    labels = torch.tensor([[[0, 2], [255, 1]]], dtype=torch.uint8)
    got = ops.hard_unary(labels, 3, 0.7)
    assert got.shape == (1, 3, 2, 2)
    own, other, unknown = -math.log(0.7), -math.log(0.15), math.log(3)
    want = [[[own, other], [unknown, other]], [[other, other], [unknown, own]], [[other, own], [unknown, other]]]
    close(got, torch.tensor([want], dtype=torch.float64), torch.float32)
    assert torch.equal(ops.hard_unary(labels.long(), 3, 0.7), got)
    assert ops.hard_unary(labels[0], 3).shape == (3, 2, 2)
    certain = ops.hard_unary(labels, 3, 1.0)
    assert certain[0, 0, 0, 0] == 0 and certain[0, 1, 0, 0] == torch.inf


def test_hard_unary_equals_pydensecrf():
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed")
    labels = torch.randint(0, 5, (13, 17), generator=torch.Generator().manual_seed(0))
    want = utils.unary_from_labels(labels.numpy(), 5, 0.7, zero_unsure=False)
    close(ops.hard_unary(labels, 5), torch.from_numpy(want).view(5, 13, 17).double(), torch.float32)
    want = utils.unary_from_labels(labels.numpy(), 4, 0.7, zero_unsure=True)
    ours = ops.hard_unary(torch.where(labels == 0, 255, labels - 1), 4)
    close(ours, torch.from_numpy(want).view(4, 13, 17).double(), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.zeros(2, 2, dtype=torch.uint8), 256), ValueError, "num_labels: 256 came"),
        ((torch.zeros(2, 2, dtype=torch.uint8), 1), ValueError, "num_labels: 1 came"),
        ((torch.full((2, 2), 3), 3), ValueError, "labels: 3 came, wanted is 0 to 2, or 255"),
        ((torch.full((2, 2), -1), 3), ValueError, "labels: -1 came"),
        ((torch.zeros(2, 2), 3), TypeError, "labels: dtype torch.float32"),
        ((torch.zeros(2, 2, dtype=torch.int64), 3, 0.0), ValueError, "confidence: 0.0 came"),
    ],
)
def test_hard_unary_names_what_is_wrong(arguments, error, text):
    with pytest.raises(error, match=text):
        ops.hard_unary(*arguments)
