import math
from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import _C, ops
from advcam_fast.ops import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# one pixel; fewer than a byte's eight elements; an odd number of elements; channels not of eights; several chunks of
# the CPU's; empty
SHAPES = [
    (2, 3, 1, 1),
    (1, 1, 1, 1),
    (1, 5, 3, 3),
    (3, 24, 5, 7),
    (2, 21, 31, 33),
    (2, 64, 20, 19),
    (9, 21),
    (700, 24),
    (0, 8, 3, 3),
    (2, 8, 0, 3),
    (4, 0),
]
OPTIONS = [(*on, ceiling) for on in product([True, False], repeat=3) for ceiling in (math.inf, 6.0)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def case(shape, dtype=torch.float32, exact=True, seed=0):
    """x, bias, residual, valid. exact: eighths whose sums no dtype rounds, with many a sum of just 0 or 6."""
    torch.manual_seed(seed)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format

    def values(*size):
        return torch.randint(-32, 33, size).double() / 8 if exact else torch.randn(size, dtype=torch.float64) * 3

    x, residual = (values(*shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    bias = values(shape[1]).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return x, bias, residual, torch.rand(shape[:1] + shape[2:]) < 0.7


def chosen(bias, residual, valid, with_bias, with_residual, with_valid):
    return (bias if with_bias else None), (residual if with_residual else None), (valid if with_valid else None)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype):
    for *on, ceiling in OPTIONS:
        x, *rest = case(shape, dtype)
        bias, residual, valid = chosen(*rest, *on)
        want = x.to(torch.float64, copy=True)
        wide = (None if t is None else t.double() for t in (bias, residual))
        wanted_bits = reference.masked_relu(want, *wide, ceiling, valid)
        bits = ops.masked_relu(x, bias, residual, ceiling, valid)
        close(x, want)
        assert torch.equal(bits, wanted_bits)
        gradient = torch.empty_like(x).copy_(torch.arange(1.0, x.numel() + 1).view(shape))
        wanted = reference.masked_relu_backward(gradient.to(torch.float64, copy=True), wanted_bits)
        assert ops.masked_relu_backward(gradient, bits) is gradient
        assert torch.equal(gradient.double(), wanted)


@every_dtype
def test_sums_are_rounded_as_in_torch(dtype):
    """After the bias and again after the residual: on any device the bits are the same."""
    x, bias, residual, valid = case((2, 40, 31, 33), dtype, exact=False)
    want, exact = x.clone(), x.to(torch.float64, copy=True)
    wanted_bits = reference.masked_relu(want, bias, residual, 6.0, valid)
    reference.masked_relu(exact, bias.double(), residual.double(), 6.0, valid)
    bits = ops.masked_relu(x, bias, residual, 6.0, valid)
    close(x, exact)
    assert torch.equal(x, want)
    assert torch.equal(bits, wanted_bits)


@every_dtype
@pytest.mark.parametrize("ceiling", [math.inf, 6.0])
def test_equals_autograd_of_torch(dtype, ceiling):
    """relu and relu6 with their gradients, at 0 and at 6 too."""
    x, bias, residual, _ = case((2, 24, 9, 11), dtype)
    gradient = case((2, 24, 9, 11), dtype, seed=1)[0]
    leaf, other = x.clone().requires_grad_(), residual.clone().requires_grad_()
    total = leaf + bias.to(dtype)[:, None, None] + other
    assert (total == 0).any()
    assert (total == 6).any()
    want = torch.relu(total) if ceiling == math.inf else torch.nn.functional.relu6(total)
    want.backward(gradient)
    bits = ops.masked_relu(x, bias, residual, ceiling)
    assert torch.equal(x, want.detach())
    ops.masked_relu_backward(gradient, bits)
    assert torch.equal(gradient, leaf.grad)
    assert torch.equal(gradient, other.grad)


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, residual, ceiling, valid):
        y = x.clone()
        ctx.save_for_backward(ops.masked_relu(y, bias, residual, ceiling, valid))
        return y

    @staticmethod
    def backward(ctx, gradient):
        gradient = ops.masked_relu_backward(gradient.clone(memory_format=torch.channels_last), *ctx.saved_tensors)
        return gradient, gradient.sum((0, 2, 3)), gradient, None, None


@pytest.mark.parametrize("ceiling", [math.inf, 1.5])
def test_gradcheck(ceiling):
    x, bias, residual, valid = case((2, 5, 3, 4), torch.float64, exact=False)
    inputs = [t.requires_grad_() for t in (x, bias, residual)]
    assert torch.autograd.gradcheck(Rectified.apply, (*inputs, ceiling, valid))


@every_dtype
def test_nan_stays_and_passes_its_gradient(dtype):
    x, bias, residual, valid = case((3, 5, 4, 6), dtype)
    x[1, :, 2, 3], x[2, :, 1, 1] = torch.nan, torch.nan
    valid[1, 2, 3], valid[2, 1, 1] = True, False
    want = x.clone()
    wanted_bits = reference.masked_relu(want, bias, residual, 6.0, valid)
    bits = ops.masked_relu(x, bias, residual, 6.0, valid)
    assert x[1, :, 2, 3].isnan().all()
    assert x.isnan().sum() == 5, "and nowhere else: what is not valid is zero, whatever it was"
    assert torch.equal(x.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(bits, wanted_bits)
    gradient = ops.masked_relu_backward(torch.ones_like(x), bits)
    assert gradient[1, :, 2, 3].all()
    assert not gradient[2, :, 1, 1].any()


@every_dtype
@pytest.mark.parametrize("repeats", [1, 100])  # the latter fill blocks
def test_infinities_and_signed_zeros_and_nans(repeats, dtype):
    special = [math.inf, -math.inf, 3.0, 0.0, -0.0, math.nan, -math.nan, 7.0]
    x = torch.tensor(special * repeats, dtype=dtype).view(1, -1)
    unbounded, bounded = x.clone(), x.clone()
    assert ops.masked_relu(unbounded).tolist() == [0b11100100] * repeats
    assert ops.masked_relu(bounded, ceiling=6.0).tolist() == [0b01100100] * repeats
    assert unbounded.nan_to_num(-1, math.inf).tolist() == [[math.inf, 0, 3, 0, 0, -1, -1, 7] * repeats]
    assert bounded.nan_to_num(-1).tolist() == [[6, 0, 3, 0, 0, -1, -1, 6] * repeats]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 8191, 8193])
def test_every_bit_is_written_and_none_beyond(n):
    """Into poisoned bytes: what is left over in the last one is 0."""
    bits = torch.full(((n + 7) // 8 + 1,), 0xFF, dtype=torch.uint8)
    x = torch.ones(n, 1)
    _C.masked_relu(x, None, None, math.inf, None, bits[:-1])
    assert bits[-1] == 0xFF
    flags = (bits[:-1, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()
    assert flags.tolist() == [1] * n + [0] * (-n % 8)


@pytest.mark.parametrize("kind", ["bool", "uint8"])
def test_outside_of_valid_all_is_zero(kind):
    x, bias, residual, valid = case((2, 24, 9, 11))
    given = valid if kind == "bool" else valid.to(torch.uint8) * 200
    bits = ops.masked_relu(x, bias + 5, residual, valid=given)
    outside = ~valid[:, None].expand_as(x)
    assert outside.any()
    assert not x[outside].any()
    assert not ops.masked_relu_backward(torch.ones_like(x), bits)[outside].any()


def test_no_bits_where_none_are_wanted():
    x, bias, residual, valid = case((2, 24, 9, 11))
    want = x.clone()
    ops.masked_relu(want, bias, residual, 6.0, valid)
    assert ops.masked_relu(x, bias, residual, 6.0, valid, save=False).shape == (0,)
    assert torch.equal(x, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_else_is_in_the_batch(threads):
    x, bias, residual, valid = case((5, 40, 23, 31), exact=False)
    alone, gradient = x[2:3].clone(), residual.clone()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        bits_alone = ops.masked_relu(alone, bias, residual[2:3].clone(), 6.0, valid[2:3])
        gradient_alone = ops.masked_relu_backward(gradient[2:3].clone(), bits_alone)
        torch.set_num_threads(threads)
        x[0], x[4] = torch.nan, 1e30
        bits = ops.masked_relu(x, bias, residual, 6.0, valid)
        ops.masked_relu_backward(gradient, bits)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(x[2:3], alone)
    assert torch.equal(bits.view(5, -1)[2], bits_alone)
    assert torch.equal(gradient[2:3], gradient_alone)


def test_other_strides_of_the_residual():
    x, bias, residual, valid = case((3, 24, 5, 7))
    want = x.clone()
    ops.masked_relu(want, bias, residual, valid=valid)
    strange = torch.rand(3, 24, 5, 14)[..., ::2].copy_(residual)
    ops.masked_relu(x, bias, strange, valid=valid)
    assert torch.equal(x, want)


def test_without_the_kernels_the_reference_does_it(monkeypatch):
    x, bias, residual, valid = case((2, 21, 5, 7), exact=False)
    want, gradient = x.clone(), residual.clone()
    wanted_bits = ops.masked_relu(want, bias, residual, 6.0, valid)
    wanted_gradient = ops.masked_relu_backward(gradient.clone(), wanted_bits)
    module, version = import_module("advcam_fast.ops.masked_relu"), x._version
    monkeypatch.setattr(module, "fallback", lambda stem, _: getattr(reference, stem))
    bits = ops.masked_relu(x, bias, residual.contiguous(), 6.0, valid)
    assert torch.equal(bits, wanted_bits)
    assert torch.equal(x, want)
    assert x._version > version
    assert torch.equal(ops.masked_relu_backward(gradient, bits), wanted_gradient)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        ops.masked_relu(torch.zeros(2, 3, 4, 5))  # and not a copy that nobody sees


def test_opcheck():
    for dtype, shape in product(DTYPES, [(2, 5, 3, 4), (7, 3)]):
        for *on, ceiling in OPTIONS:
            x, *rest = case(shape, dtype)
            bias, residual, valid = chosen(*rest, *on)
            arguments = (x, bias, residual, ceiling, valid)
            # the schema of every combination, the slow rest of one
            some = {} if all(on) else {"test_utils": ["test_schema", "test_faketensor"]}
            for save in (True, False):
                opcheck(torch.ops.advcam_fast.masked_relu.default, (*arguments, save), **some)
        bits = torch.randint(0, 256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
        opcheck(torch.ops.advcam_fast.masked_relu_backward.default, (x, bits))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    def both_ways(x, bias, residual, valid, gradient):
        y = x * 1.0
        bits = ops.masked_relu(y, bias, residual, 6.0, valid)
        ops.masked_relu(x)
        kept = ops.masked_relu_backward(gradient * 2.0, bits)
        ops.masked_relu_backward(gradient, bits)
        return x + y, bits, kept

    inputs = [*case((2, 24, 9, 11)), case((2, 24, 9, 11), seed=1)[0]]
    others = [t.clone() for t in inputs]
    want = both_ways(*inputs)
    got = torch.compile(both_ways, fullgraph=True, backend=backend)(*others)
    for a, b in zip([*got, *others], [*want, *inputs], strict=True):
        assert torch.equal(a, b)


def test_autograd_sees_the_writes_and_no_gradient_passes():
    x, bias, residual, _ = case((2, 8, 3, 4))
    w = torch.rand_like(x, requires_grad=True)
    product_of_both, version = (w * x).sum(), x._version
    bits = ops.masked_relu(x, bias)
    assert x._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product_of_both.backward()
    version = x._version
    ops.masked_relu_backward(x, bits)
    assert x._version == version + 1
    for name, tensor in (("x", x), ("bias", bias), ("residual", residual)):
        arguments = {"x": x, "bias": bias, "residual": residual} | {name: tensor.clone().requires_grad_()}
        with pytest.raises(RuntimeError, match="masked_relu works in place and has no derivative"):
            ops.masked_relu(**arguments)
    with pytest.raises(RuntimeError, match="masked_relu_backward works in place and has no derivative"):
        ops.masked_relu_backward(w, bits)


def test_numpy_without_a_copy():
    x, bias, residual, _ = case((9, 21))
    want = x.clone()
    wanted_bits = ops.masked_relu(want, bias, residual)
    a, bits = x.numpy(), np.empty(24, "u1")
    _C.masked_relu(a, bias.numpy(), residual.numpy(), math.inf, None, bits)
    assert np.array_equal(a, want.numpy())
    assert np.array_equal(bits, wanted_bits.numpy())
    a.flags.writeable = False
    with pytest.raises(ValueError, match="x: the array is read-only"):
        _C.masked_relu(a, None, None, math.inf, None, None)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(x=torch.zeros(2, 8, 3, 4, dtype=torch.int32)), TypeError, "x: dtype int32 came, wanted is float32"),
        (dict(x=torch.zeros(2, 8, 3, 4)), ValueError, r"x: shape \(2, 8, 3, 4\) came, wanted is a channels-last"),
        (dict(x=torch.zeros(6, 16)[:, ::2], residual=None), ValueError, r"x: shape \(6, 8\) came"),
        (dict(bias=torch.zeros(7)), ValueError, r"bias: shape \(7,\) came"),
        (dict(bias=torch.zeros(8).double()), TypeError, "bias: dtype float64 came, wanted is float32"),
        (dict(bias=torch.zeros(16)[::2]), ValueError, "bias: .*contiguous"),
        (dict(residual=torch.zeros(1, 8, 1, 1)), ValueError, r"residual: shape \(1, 8, 1, 1\) came, wanted is x's"),
        (dict(residual=torch.zeros(2, 8, 3, 4).double()), TypeError, "residual: dtype float64 came"),
        (dict(valid=torch.ones(2, 3, 5, dtype=torch.bool)), ValueError, "valid: 30 elements came, wanted are 24"),
        (dict(valid=torch.ones(2, 3, 4)), TypeError, "valid: dtype float32 came, wanted is bool or uint8"),
        (dict(ceiling=0.0), ValueError, r"ceiling: 0\.0+ came, wanted is a number > 0"),
        (dict(ceiling=math.nan), ValueError, "ceiling: nan came"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    x, bias, residual, valid = case((2, 8, 3, 4))
    with pytest.raises(error, match=text):
        ops.masked_relu(**(dict(x=x, bias=bias, residual=residual, valid=valid) | change))


@pytest.mark.parametrize(
    ("gradient", "bits", "error", "text"),
    [
        (torch.zeros(3, 8).int(), torch.zeros(3, dtype=torch.uint8), TypeError, "gradient: dtype int32 came"),
        (torch.zeros(2, 3, 4, 5), torch.zeros(15, dtype=torch.uint8), ValueError, "gradient: shape"),
        (torch.zeros(3, 8), torch.zeros(4, dtype=torch.uint8), ValueError, r"bits: shape \(4,\) came"),
        (torch.zeros(3, 8), torch.zeros(3), TypeError, "bits: dtype float32 came, wanted is bool or uint8"),
    ],
)
def test_wrong_arguments_of_the_gradient_are_named(gradient, bits, error, text):
    with pytest.raises(error, match=text):
        ops.masked_relu_backward(gradient, bits)
