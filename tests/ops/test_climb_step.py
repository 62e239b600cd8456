import numpy as np
import pytest
import torch
from tolerances import close
from torch.library import opcheck

from advcam_fast import _C, ops
from advcam_fast.ops import reference

FLOAT = [
    (torch.float32, torch.float32, None),
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.float32, torch.float32, torch.float16),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.float16),
    (torch.float32, torch.float16, torch.bfloat16),
    (torch.float32, torch.float16, torch.float16),
    (torch.float32, torch.bfloat16, None),
    (torch.float32, torch.float16, None),
    (torch.float64, torch.float64, None),
]
SHAPES = [(2, 3, 1, 1), (6, 3, 33, 41), (4, 3, 64, 64), (2, 3, 130, 131), (4, 7), (0, 3, 8, 8), (4, 3, 0, 5)]


def case(shape, image=torch.float32, gradient=torch.float32, network=None, channels_last=False, seed=0):
    torch.manual_seed(seed)
    layout = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    x = torch.randn(shape, dtype=torch.float64).to(image).contiguous(memory_format=layout)
    g = torch.randn(shape, dtype=torch.float64).to(gradient).contiguous(memory_format=layout)
    out = None if network is None else torch.full_like(x, torch.nan, dtype=network)
    return x, g, out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("image", "gradient", "network"), FLOAT, ids=lambda d: str(d).removeprefix("torch."))
def test_values(shape, image, gradient, network, channels_last):
    x, g, out = case(shape, image, gradient, network, channels_last)
    want = x.to(torch.float64, copy=True)
    wanted_max = reference.climb_step(want, g.double(), 0.08)
    largest = ops.climb_step(x, g, 0.08, network_input=out)
    close(x, want)
    close(largest, wanted_max)
    if out is not None:
        assert torch.equal(out, x.to(network)), "the network's input must be the image, rounded to nearest"


def test_half_rounding_is_torchs_for_every_kind_of_value():
    values = torch.tensor(
        [0.0, -0.0, 1e-8, -3e-8, 5.9e-8, 6.1e-5, 1.0009765, 65504.0, 65520.0, 1e6, -7e4, 2049.0, 2051.0]
    )
    for dtype in (torch.float16, torch.bfloat16):
        x = values.repeat(2, 1)
        out = torch.empty_like(x, dtype=dtype)
        ops.climb_step(x, torch.zeros_like(x), 0.1, network_input=out)
        assert torch.equal(out, values.to(dtype).repeat(2, 1))


def test_half_gradients_are_read_exactly():
    bits = torch.arange(0, 0x7C00, 7, dtype=torch.int16)
    g = torch.stack([bits.view(torch.float16), -bits.view(torch.float16)])
    x, want = torch.zeros(g.shape), torch.zeros(g.shape)
    x[:, 0], x[:, 1] = want[:, 0], want[:, 1] = -1, 1  # room to move
    x[:, 0] = want[:, 0] = -1
    reference.climb_step(want, g.float(), 0.5)
    ops.climb_step(x, g, 0.5)
    close(x, want)


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_extrema_are_those_of_each_group(group_size):
    x, g, _ = case((6, 3, 17, 19))
    g *= torch.logspace(-3, 3, 6)[:, None, None, None]
    want = x.to(torch.float64, copy=True)
    reference.climb_step(want, g.double(), 0.05, group_size)
    assert ops.climb_step(x, g, 0.05, group_size).shape == (6 // group_size,)
    close(x, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_else_is_in_the_batch(threads):
    x, g, _ = case((10, 3, 90, 77))
    alone = x[4:6].clone()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.climb_step(alone, g[4:6].clone(), 0.05)
        g[0, 0, 0, 0] = torch.nan
        x[8] = 1e30
        ops.climb_step(x, g, 0.05)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(x[4:6], alone)


def test_nan_is_not_hidden_and_stays_in_its_group():
    x, g, _ = case((6, 3, 20, 21))
    clean = x.clone()
    ops.climb_step(clean, g, 0.05)
    g[2, 1, 3, 3] = torch.nan
    largest = ops.climb_step(x, g, 0.05)
    assert largest.isnan().tolist() == [False, True, False]
    assert x[2:4].isnan().all()
    assert torch.equal(x[:2], clean[:2])
    assert torch.equal(x[4:], clean[4:])
    y, g, _ = case((2, 3, 20, 21))
    y[0, 0, 0, 0] = torch.nan
    ops.climb_step(y, g, 0.05)
    assert y.isnan().all()


def test_zero_gradient_moves_nothing():
    x, g, _ = case((4, 3, 9, 9))
    before = x.clone()
    assert ops.climb_step(x, torch.zeros_like(g), 0.08).tolist() == [0, 0]
    assert torch.equal(x, before)


def test_mixed_layouts_and_lazy_negatives():
    x, g, _ = case((4, 3, 9, 11))
    want = x.to(torch.float64, copy=True)
    reference.climb_step(want, -g.double(), 0.05)
    ops.climb_step(x, torch._neg_view(g).contiguous(memory_format=torch.channels_last), 0.05)
    close(x, want)


def test_opcheck():
    for image, gradient, network in FLOAT:
        x, g, out = case((4, 3, 9, 8), image, gradient, network)
        opcheck(torch.ops.advcam_fast.climb_step.default, (x, g, 0.05, 2, out))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    def step(x, g):
        y = x * 1.0
        largest = ops.climb_step(y, g, 0.05)
        ops.climb_step(x, g, 0.1)
        return x + y, largest

    x, g, _ = case((4, 3, 9, 8))
    z = x.clone()
    want, largest = step(x, g)
    got, compiled_largest = torch.compile(step, fullgraph=True, backend=backend)(z, g)
    assert torch.equal(got, want)
    assert torch.equal(compiled_largest, largest)
    assert torch.equal(z, x)


def test_autograd_sees_the_write_and_no_gradient_passes():
    x, g, _ = case((2, 3, 4, 4))
    w = torch.rand_like(x, requires_grad=True)
    product, version = (w * x).sum(), x._version
    ops.climb_step(x, g, 0.05)
    assert x._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with pytest.raises(RuntimeError, match="no derivative"):
        ops.climb_step(x.clone().requires_grad_(), g, 0.05)


def test_numpy_without_a_copy():
    x, g, _ = case((4, 3, 9, 8))
    want = x.clone()
    largest = ops.climb_step(want, g, 0.05)
    a, b, m = x.numpy(), g.numpy(), np.empty(2, "f4")
    b.flags.writeable = False  # inputs may be read-only
    _C.climb_step(a, b, m, 0.05)
    assert np.array_equal(a, want.numpy())
    assert np.array_equal(m, largest.numpy())
    a.flags.writeable = False
    with pytest.raises(ValueError, match="image: the array is read-only"):
        _C.climb_step(a, b, m, 0.05)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x, g, m: (x.half(), g, m), TypeError, "image: dtype float16 came, wanted is float32, float64"),
        (lambda x, g, m: (x, g.double(), m), TypeError, "gradient: dtype float64 came, wanted is float32, bfloat16"),
        (lambda x, g, m: (x, g[:2], m), ValueError, r"gradient: shape \(2, 3, 9, 8\) differs from image's"),
        (lambda x, g, m: (x, g.contiguous(memory_format=torch.channels_last), m), ValueError, "strides"),
        (lambda x, g, m: (x[..., ::2], g[..., ::2], m), ValueError, "dense"),
        (lambda x, g, m: (x, g, torch.empty(3)), ValueError, "does not divide the 4 items"),
        (lambda x, g, m: (x, g, m.double()), TypeError, "gradient_max: dtype float64"),
        (lambda x, g, m: ([1.0], g, m), TypeError, "image: list came, wanted is a tensor or array with __dlpack__"),
        (lambda x, g, m: (x.to("meta"), g, m), ValueError, "image"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    x, g, _ = case((4, 3, 9, 8))
    with pytest.raises(error, match=text):
        _C.climb_step(*change(x, g, torch.empty(2)), 0.05)


def test_public_function_names_wrong_arguments():
    x, g, _ = case((4, 3, 9, 8))
    with pytest.raises(ValueError, match="must divide by 3"):
        ops.climb_step(x, g, 0.05, group_size=3)
    with pytest.raises(ValueError, match=r"gradient: shape \(4, 3, 9, 7\) came"):
        ops.climb_step(x, g[..., :7], 0.05)
