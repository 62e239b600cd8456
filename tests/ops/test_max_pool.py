import math
from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import close
from torch.library import opcheck

from advcam_fast import _C, ops
from advcam_fast.ops import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# fewer channels than a block of the CPU's, more than one, one and an odd number; one pixel; an empty batch
SHAPES = [(2, 24, 9, 11), (1, 130, 8, 7), (3, 1, 12, 13), (2, 5, 6, 6), (1, 8, 5, 1), (0, 8, 5, 7), (2, 0, 5, 7)]
WINDOWS = {  # kernel, stride, padding, dilation, ceil_mode
    "ResNet": ((3, 3), (2, 2), (1, 1), (1, 1), False),
    "VGG": ((2, 2), (2, 2), (0, 0), (1, 1), False),
    "SqueezeNet": ((3, 3), (2, 2), (0, 0), (1, 1), True),
    "overlapping": ((3, 5), (1, 1), (1, 2), (1, 1), False),
    "gaps": ((1, 2), (3, 4), (0, 1), (1, 1), True),
    "dilated": ((2, 3), (2, 1), (1, 1), (3, 2), False),
    "one": ((1, 1), (1, 1), (0, 0), (1, 1), False),
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_window = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)


def case(shape, dtype=torch.float32, seed=0):
    """Small integers: many a maximum is there twice, and no sum of gradients is rounded."""
    torch.manual_seed(seed)
    layout = dict(memory_format=torch.channels_last)
    return torch.randint(-4, 5, shape).double().to(dtype).contiguous(**layout)


def fits(shape, window):
    kernel, _, padding, dilation, _ = window
    return all(
        side + 2 * p >= d * (k - 1) + 1 for side, p, d, k in zip(shape[2:], padding, dilation, kernel, strict=True)
    )


def of_torch(x, window, gradient=None):
    kernel, stride, padding, dilation, ceil_mode = window
    leaf = x.clone().requires_grad_()
    y = F.max_pool2d(leaf, kernel, stride, padding, dilation, ceil_mode)
    if gradient is None:
        return y.detach()
    y.backward(gradient)
    return leaf.grad


@every_dtype
@every_window
def test_equals_torch_and_the_reference(window, dtype):
    """Which of equal elements is taken shows in the gradient."""
    for shape in filter(lambda shape: fits(shape, window), SHAPES):
        x = case(shape, dtype)
        y, at = ops.max_pool(x, *window)
        if x.numel():  # torch has no empty ones
            assert torch.equal(y, of_torch(x, window))
        want, wanted_at = reference.max_pool(x.double(), *window)
        assert torch.equal(y.double(), want)
        assert torch.equal(at, wanted_at)
        gradient = case(y.shape, dtype, seed=1)
        found = ops.max_pool_backward(gradient, at, x.shape[2:], *window[:4])
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.double(), reference.max_pool_backward(gradient.double(), at, x.shape[2:], *window[:4]))
        if x.numel():
            assert torch.equal(found, of_torch(x, window, gradient))


@every_dtype
def test_sums_of_gradients_are_rounded_once(dtype):
    """Nine windows took the same element."""
    x = torch.zeros(1, 3, 5, 5, dtype=dtype)
    x[..., 2, 2] = 1
    window = WINDOWS["overlapping"]
    y, at = ops.max_pool(x, *window)
    gradient = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = reference.max_pool_backward(gradient.double(), at, (5, 5), *window[:4])
    found = ops.max_pool_backward(gradient, at, (5, 5), *window[:4])
    close(found, want)
    if dtype in (torch.bfloat16, torch.float16):  # summed in float32
        assert torch.equal(found, want.to(dtype))


@every_dtype
@pytest.mark.parametrize("channels", [24, 64])  # the latter fill a block
def test_nan_and_infinities_as_in_torch(channels, dtype):
    x = case((2, channels, 9, 11), dtype)
    x[0, :, 4, 4], x[0, 3, 5, 4], x[1, :, 1, 1], x[1, :, 7, 7] = torch.nan, torch.nan, math.inf, -math.inf
    window = WINDOWS["ResNet"]
    y, at = ops.max_pool(x, *window)
    want = of_torch(x, window)
    assert y.isnan().any()
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y.nan_to_num(7), want.nan_to_num(7))
    gradient = case(y.shape, dtype, seed=1)
    found = ops.max_pool_backward(gradient, at, x.shape[2:], *window[:4])
    assert torch.equal(found, of_torch(x, window, gradient))


def test_windows_of_minus_infinity_alone():
    """So a canvas hides what is outside an item: nothing is there to be taken."""
    x = torch.full((1, 2, 4, 4), -math.inf)
    y, at = ops.max_pool(x, *WINDOWS["ResNet"])
    assert (y == -math.inf).all()
    assert not at.any()
    found = ops.max_pool_backward(torch.ones_like(y), at, (4, 4), *WINDOWS["ResNet"][:4])
    assert found.sum() == 2, "three of four windows have their first element in the padding"
    assert (found[..., 1, 1] == 1).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_any_layout(layout):
    x = case((2, 24, 9, 11)).contiguous(memory_format=layout)
    window = WINDOWS["ResNet"]
    y, at = ops.max_pool(x, *window)
    assert torch.equal(y, of_torch(x, window))
    gradient = case(y.shape, seed=1).contiguous(memory_format=layout)
    found = ops.max_pool_backward(gradient, at, x.shape[2:], *window[:4])
    assert torch.equal(found, of_torch(x, window, gradient))


def test_no_memory_beyond_is_written():
    """Into poisoned memory: all of it, and none beyond."""
    x, window = case((1, 5, 6, 6)).permute(0, 2, 3, 1).reshape(-1), [list(part) for part in WINDOWS["VGG"][:4]]
    y, at = torch.full((3 * 3 * 5 + 1,), math.nan), torch.full((3 * 3 * 5 + 1,), 255, dtype=torch.uint8)
    back = torch.full((6 * 6 * 5 + 1,), math.nan)

    def planes(flat, side):
        return flat[: side * side * 5].view(1, side, side, 5).permute(0, 3, 1, 2)

    _C.max_pool(planes(x, 6), planes(y, 3), planes(at, 3), *window)
    _C.max_pool_backward(planes(y, 3), planes(at, 3), planes(back, 6), *window)
    assert y[-1].isnan()
    assert at[-1] == 255
    assert back[-1].isnan()
    assert not y[:-1].isnan().any()
    assert (at[:-1] < 4).all()
    assert not back[:-1].isnan().any()


def test_nothing_is_kept_where_none_is_wanted():
    x, window = case((2, 24, 9, 11)), WINDOWS["ResNet"]
    y, at = ops.max_pool(x, *window, save=False)
    assert at.shape == (0,)
    assert torch.equal(y, of_torch(x, window))
    with pytest.raises(RuntimeError, match="save=False"):
        ops.max_pool(x.requires_grad_(), *window, save=False)[0].sum().backward()


@every_window
def test_gradcheck(window):
    x = torch.randperm(2 * 3 * 5 * 6).double().view(2, 3, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.max_pool(x, *window)[0], x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_else_is_in_the_batch(threads):
    x, window = torch.randn(5, 40, 23, 31).contiguous(memory_format=torch.channels_last), WINDOWS["ResNet"]
    gradient = torch.randn(5, 40, 12, 16).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, at_alone = ops.max_pool(x[2:3], *window)
        gradient_alone = ops.max_pool_backward(gradient[2:3], at_alone, (23, 31), *window[:4])
        torch.set_num_threads(threads)
        x[0], x[4] = torch.nan, 1e30
        y, at = ops.max_pool(x, *window)
        found = ops.max_pool_backward(gradient, at, (23, 31), *window[:4])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y[2:3], alone)
    assert torch.equal(at[2:3], at_alone)
    assert torch.equal(found[2:3], gradient_alone)


@every_window
def test_without_the_kernels_the_reference_does_it(window, monkeypatch):
    x = case((2, 21, 9, 8))
    y, at = ops.max_pool(x, *window)
    gradient = case(y.shape, seed=1)
    want = ops.max_pool_backward(gradient, at, (9, 8), *window[:4])
    monkeypatch.setattr(import_module("advcam_fast.ops.max_pool"), "fallback", lambda stem, _: getattr(reference, stem))
    other, other_at = ops.max_pool(x, *window)
    assert torch.equal(other, y)
    assert torch.equal(other_at, at)
    assert torch.equal(ops.max_pool_backward(gradient, at, (9, 8), *window[:4]), want)
    assert ops.max_pool(x, *window, save=False)[1].shape == (0,)


def test_opcheck():
    for dtype, window, save in product(DTYPES, WINDOWS.values(), [True, False]):
        x = torch.randperm(2 * 3 * 5 * 6).view(2, 3, 5, 6).to(dtype)
        some = {} if window is WINDOWS["ResNet"] else {"test_utils": ["test_schema", "test_faketensor"]}
        given = x.requires_grad_(save)
        opcheck(torch.ops.advcam_fast.max_pool.default, (given, *window, save), **some)
        y, at = ops.max_pool(x.detach(), *window)
        opcheck(torch.ops.advcam_fast.max_pool_backward.default, (y, at, [5, 6], *window[:4]), **some)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    def slope(x):
        y, _ = ops.max_pool(x * 2.0, *WINDOWS["ResNet"])
        return y.square()

    x = case((2, 24, 9, 11)).requires_grad_()
    want = slope(x)
    (wanted,) = torch.autograd.grad(want.sum(), x)
    got = torch.compile(slope, fullgraph=True, backend=backend)(x)
    (found,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(got, want)
    assert torch.equal(found, wanted)


def test_numpy_without_a_copy():
    x, window = case((1, 5, 6, 6)), WINDOWS["VGG"]
    want, wanted_at = ops.max_pool(x, *window)
    y, at = (np.zeros((1, 3, 3, 5), kind).transpose(0, 3, 1, 2) for kind in ("f4", "u1"))
    _C.max_pool(x.numpy(), y, at, *[list(part) for part in window[:4]])
    assert np.array_equal(y, want.numpy())
    assert np.array_equal(at, wanted_at.numpy())
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y: the array is read-only"):
        _C.max_pool(x.numpy(), y, at, *[list(part) for part in window[:4]])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(x=torch.zeros(2, 8, 5, 5, dtype=torch.int32)), TypeError, "x: dtype int32 came, wanted is float32"),
        (dict(x=torch.zeros(8, 5, 5)), ValueError, r"x: shape \(8, 5, 5\) came, wanted is \(B, C, H, W\)"),
        (dict(x=torch.zeros(2, 8, 5, 0)), RuntimeError, r"x: shape \(2, 8, 5, 0\) came, smaller than the window"),
        (dict(kernel=(17, 16)), ValueError, r"kernel, stride, dilation: \(17, 16\).* at most 256 elements"),
        (dict(kernel=(0, 3)), ValueError, r"kernel, stride, dilation: \(0, 3\).*wanted are 1 or more"),
        (dict(stride=(2, 0)), ValueError, "wanted are 1 or more"),
        (dict(padding=(1, 2)), ValueError, r"padding: \(1, 2\) came, wanted is 0 to half of the kernel \(3, 3\)"),
        (dict(padding=(-1, 0)), ValueError, r"padding: \(-1, 0\) came"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    arguments = dict(x=case((2, 8, 5, 5)), kernel=(3, 3), stride=(2, 2), padding=(1, 1)) | change
    with pytest.raises(error, match=text):
        ops.max_pool(**arguments)


def kernel_arguments(**change):
    x = case((2, 8, 5, 5))
    y, at = ops.max_pool(x, *WINDOWS["ResNet"])
    return dict(x=x, y=y, at=at, kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)) | change


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(y=torch.zeros(2, 7, 3, 3).contiguous(memory_format=torch.channels_last)), ValueError, "y: shape"),
        (dict(y=torch.zeros(2, 8, 3, 3)), ValueError, "y: shape .* channels-last"),
        (dict(x=torch.zeros(9, 8)), ValueError, r"x: shape \(9, 8\) came, wanted is a channels-last"),
        (dict(at=torch.zeros(2, 8, 3, 3, dtype=torch.uint8)), ValueError, "at: strides"),
        (dict(at=torch.zeros(2, 8, 3, 3)), TypeError, "at: dtype float32 came, wanted is bool or uint8"),
        (dict(kernel=(300, 1)), ValueError, "kernel: 300 x 1 came, wanted are at most 256"),
        (dict(dilation=(0, 1)), ValueError, "kernel, stride, dilation: wanted are 1 or more"),
    ],
)
def test_the_kernel_names_wrong_arguments(change, error, text):
    with pytest.raises(error, match=text):
        _C.max_pool(**kernel_arguments(**change))


def test_wrong_arguments_of_the_gradient_are_named():
    y, at = ops.max_pool(case((2, 8, 5, 5)), *WINDOWS["ResNet"])
    window = WINDOWS["ResNet"][:4]
    with pytest.raises(TypeError, match="gradient: dtype int32 came"):
        ops.max_pool_backward(y.int(), at, (5, 5), *window)
    with pytest.raises(ValueError, match="at: shape"):
        ops.max_pool_backward(y, at[:1], (5, 5), *window)
    with pytest.raises(TypeError, match="at: dtype float32"):
        ops.max_pool_backward(y, at.float(), (5, 5), *window)
