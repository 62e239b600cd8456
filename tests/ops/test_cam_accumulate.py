import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

SIZES = [
    ([(3, 4), (6, 8), (9, 12), (12, 16)], (91, 125), (96, 128)),
    ([(7, 9)], (7, 9), None),
    ([(1, 1), (1, 5), (4, 1)], (33, 17), (48, 32)),
    ([(40, 50)], (11, 13), (12, 13)),  # down
    ([(1, 1)], (1, 1), None),
    ([(20, 3), (5, 200)], (400, 1), (400, 16)),
    ([], (5, 6), None),
    ([(2, 2)] * 8, (9, 9), None),
]


def case(sizes, size, dtype=torch.float32, count=3, seed=0):
    torch.manual_seed(seed)
    return [torch.rand(count, *s, dtype=dtype) for s in sizes], torch.rand(count, *size, dtype=dtype)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sizes", "size", "resized"), SIZES, ids=str)
def test_values(sizes, size, resized, dtype, normalise):
    maps, total = case(sizes, size, dtype)
    want = total.to(torch.float64, copy=True)
    reference.cam_accumulate([m.double() for m in maps], want, resized or size, normalise)
    assert ops.cam_accumulate(maps, total, resized, normalise) is total
    close(total, want)


def test_normalised_maximum_is_one_in_every_map():
    maps, total = case([(5, 5)], (30, 40))
    total.zero_()
    ops.cam_accumulate([maps[0] * torch.tensor([1.0, 10.0, 100.0])[:, None, None]], total, normalise=True)
    assert (total.amax((1, 2)) - 1).abs().max() < 1e-4
    assert total.max() <= 1


def test_empty_maps_are_zero_and_not_nan():
    total = torch.zeros(2, 8, 8)
    ops.cam_accumulate([torch.zeros(2, 3, 3)], total, normalise=True)
    assert not total.any()
    assert ops.cam_accumulate([torch.zeros(0, 3, 3)], torch.zeros(0, 8, 8)).shape == (0, 8, 8)


def test_nan_stays_in_its_map():
    maps, total = case([(5, 5)], (16, 16))
    clean = ops.cam_accumulate(maps, total.clone(), normalise=True)
    maps[0][1, 2, 2] = torch.nan
    got = ops.cam_accumulate(maps, total, normalise=True)
    assert got[1].isnan().all(), "a maximum that is NaN divides the whole map"
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[2], clean[2])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_else_is_in_the_batch(threads):
    maps, total = case([(6, 8), (12, 16)], (150, 130), count=5)
    alone = ops.cam_accumulate([m[2:3].clone() for m in maps], total[2:3].clone(), (160, 144), normalise=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.cam_accumulate(maps, total, (160, 144), normalise=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(total[2:3], alone)


def test_non_contiguous_maps():
    maps, total = case([(6, 8)], (20, 20))
    want = ops.cam_accumulate(maps, total.clone())
    strange = torch.rand(3, 8, 6).transpose(1, 2).copy_(maps[0])
    assert torch.equal(ops.cam_accumulate([strange], total), want)


def test_opcheck():
    maps, total = case([(3, 4), (6, 8)], (20, 24))
    opcheck(torch.ops.advcam_fast.cam_accumulate.default, (maps, total, [32, 32], True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    maps, total = case([(3, 4), (6, 8)], (20, 24))

    def merge(a, b, total):
        sums = torch.zeros_like(total)
        ops.cam_accumulate([a, b], sums, (32, 32), normalise=True)
        return ops.cam_accumulate([sums], total) * 2

    other = total.clone()
    assert torch.equal(torch.compile(merge, fullgraph=True, backend=backend)(*maps, other), merge(*maps, total))
    assert torch.equal(other, total)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(maps=[torch.zeros(2, 3, 3)] * 9), ValueError, "9 came, wanted are at most 8"),
        (dict(maps=[torch.zeros(3, 3, 3)]), ValueError, r"maps: shape \(3, 3, 3\) came"),
        (dict(maps=[torch.zeros(2, 3, 3).double()]), TypeError, "maps: dtype float64"),
        (dict(maps=[torch.zeros(2, 0, 3)]), ValueError, "not empty"),
        (dict(size=(7, 8)), ValueError, "smaller than total"),
        (dict(total=torch.zeros(2, 8, 16)[..., ::2]), ValueError, "contiguous"),
        (dict(total=torch.zeros(8, 8)), ValueError, r"wanted is \[N, H, W\]"),
        (dict(total=torch.zeros(2, 8, 8, requires_grad=True)), RuntimeError, "no derivative"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        ops.cam_accumulate(**(dict(maps=[torch.zeros(2, 3, 3)], total=torch.zeros(2, 8, 8)) | change))
