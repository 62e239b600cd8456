"""The own kernel of 1x1 convolutions: against float64 around its tiles, and with all that it does in the same pass."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import close
from torch import Tensor

from advcam_fast import _C, ops
from advcam_fast.models.convolution_kernels import Window, gradient_of, operator
from advcam_fast.models.pointwise import Pointwise, PointwiseGradient

pytestmark = pytest.mark.skipif(
    not _C.pointwise_serves(True, 32, 64), reason="the kernel wants AVX-512 with BF16 and no AMX, and a compiler"
)
LAYOUT = dict(memory_format=torch.channels_last)
# tiles of 6 positions, whole ones and less; jobs of several tiles; one position
SIZES = [(1, 1, 1), (2, 5, 7), (1, 6, 12), (3, 17, 13), (2, 31, 40)]
# blocks of 64 outputs, a rest of one to three vectors; more bytes of x than a job may see
CHANNELS = [(64, 64), (2, 16), (34, 80), (256, 160), (6, 112), (1026, 64), (96, 128)]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(**LAYOUT)


def weights(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(outputs, inputs, 1, 1) / inputs**0.5).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    wide = None if bias is None else bias.double()
    return torch.nn.functional.conv2d(x.double(), weight.double(), wide, stride)


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """bool, shaped as the channels-last `like`."""
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


@both_dtypes
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("stride", [[1, 1], [2, 2], [3, 1]], ids=str)
def test_equals_torch_in_float64(channels: tuple[int, int], stride: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs, outputs = channels
    weight, bias = weights(outputs, inputs, dtype), torch.randn(outputs).to(dtype)
    run = Pointwise(weight, bias, stride)
    for batch, height, width in SIZES:
        x = random(batch, inputs, height, width, dtype=dtype)
        wanted = product(x, weight, bias, stride)
        found = run(x, None)
        assert found.dtype == dtype
        assert found.is_contiguous(**LAYOUT)
        close(found, wanted)
        into = random(*wanted.shape, dtype=dtype)
        total = wanted + into.double()
        assert run(x, into) is into
        close(into, total)


@both_dtypes
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("stride", [[1, 1], [2, 2], [3, 1]], ids=str)
def test_gradient_equals_torch_in_float64(channels: tuple[int, int], stride: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    outputs, inputs = channels
    weight = weights(outputs, inputs, dtype)
    run = PointwiseGradient(weight, stride)
    for batch, height, width in SIZES:
        size = torch.Size((batch, inputs, height, width))
        g = random(*product(torch.zeros(size), weight, None, stride).shape, dtype=dtype)
        wanted = torch.nn.grad.conv2d_input(size, weight.double(), g.double(), stride)
        close(run(g, size, None), wanted)
        into = random(*size, dtype=dtype)
        total = wanted + into.double()
        assert run(g, size, into) is into
        close(into, total)


@both_dtypes
@pytest.mark.parametrize("ceiling", [math.inf, 0.7], ids=str)
@pytest.mark.parametrize("outputs", [128, 80], ids=str)
def test_rectifier_and_bits_are_masked_relus(outputs: int, ceiling: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    run = Pointwise(weights(outputs, 64, dtype), torch.randn(outputs).to(dtype), [1, 1])
    x, residual = random(2, 64, 9, 11, dtype=dtype), random(2, outputs, 9, 11, dtype=dtype)
    wanted = run(x, residual.clone(**LAYOUT))
    bits = ops.masked_relu(wanted, ceiling=ceiling)
    before = residual.clone(**LAYOUT)
    value, own = run.rectified(x, residual, False, ceiling, True)
    assert torch.equal(value, wanted)
    assert torch.equal(own, bits)
    assert torch.equal(residual, before)  # nobody said that it may be written
    value, own = run.rectified(x, residual, True, ceiling, False)
    assert value is residual
    assert torch.equal(value, wanted)
    assert own.numel() == 0
    value, _ = run.rectified(x, None, False, ceiling, True)
    plain = run(x, None)
    ops.masked_relu(plain, ceiling=ceiling)
    assert torch.equal(value, plain)


@both_dtypes
@pytest.mark.parametrize("ceiling", [math.inf, 6.0], ids=str)
def test_numbers_that_are_none(ceiling: float, dtype: torch.dtype) -> None:
    """NaN stays with a bit, infinity has none, as masked_relu has it; they reach their own position alone."""
    torch.manual_seed(0)
    run = Pointwise(torch.ones(80, 16, 1, 1, dtype=dtype), None, [1, 1])
    x = random(1, 16, 3, 5, dtype=dtype)
    x[0, 3, 0, 2], x[0, 4, 1, 4], x[0, 5, 2, 0] = math.nan, math.inf, -math.inf
    wanted = run(x, None)
    bits = ops.masked_relu(wanted, ceiling=ceiling)
    value, own = run.rectified(x, None, False, ceiling, True)
    assert torch.equal(
        value.view(torch.int16 if dtype == torch.bfloat16 else torch.int32),
        wanted.view(torch.int16 if dtype == torch.bfloat16 else torch.int32),
    )
    assert torch.equal(own, bits)
    assert value.isnan().sum() == 80
    assert value[0, :, 1, 4].eq(ceiling).all()
    assert not unpacked(own, value)[0, :, 1, 4].any()


@both_dtypes
@pytest.mark.parametrize("inputs", [64, 112], ids=str)
def test_bits_of_the_rectifier_before(inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, size = weights(96, inputs, dtype), torch.Size((2, inputs, 7, 9))
    kept = torch.randint(0, 256, (size.numel() // 8,), dtype=torch.uint8)
    run, g, into = PointwiseGradient(weight, [1, 1]), random(2, 96, 7, 9, dtype=dtype), random(*size, dtype=dtype)
    wanted = ops.masked_relu_backward(run(g, size, into.clone(**LAYOUT)), kept)
    assert torch.equal(run(g, size, into, kept), wanted)
    assert 0.3 < (wanted == 0).float().mean() < 0.7


@both_dtypes
def test_with_a_stride_bits_are_applied_where_it_sees(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, size = weights(96, 64, dtype), torch.Size((2, 64, 7, 10))
    kept = torch.randint(0, 256, (size.numel() // 8,), dtype=torch.uint8)
    run, g, into = PointwiseGradient(weight, [2, 3]), random(2, 96, 4, 4, dtype=dtype), random(*size, dtype=dtype)
    before = into.clone(**LAYOUT)
    total = ops.masked_relu_backward(run(g, size, into.clone(**LAYOUT)), kept)
    found = run(g, size, into, kept)
    seen = torch.zeros(7, 10, dtype=torch.bool)
    seen[::2, ::3] = True
    assert torch.equal(found[..., seen], total[..., seen])
    assert torch.equal(found[..., ~seen], before[..., ~seen])


@both_dtypes
@pytest.mark.parametrize("channels", [(64, 160), (2048, 80)], ids=str)
def test_same_bits_whatever_the_batch_and_the_threads(channels: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs, outputs = channels
    run = Pointwise(weights(outputs, inputs, dtype), torch.randn(outputs).to(dtype), [1, 1])
    x = random(3, inputs, 11, 13, dtype=dtype)
    outcomes = []
    for threads in (1, 2, 3, 40, 300):  # the last: more than there are tiles, so that blocks of weights are shared out
        y, bits = (
            torch.full((3, outputs, 11, 13), 7.0).to(dtype).contiguous(**LAYOUT),
            torch.empty(3 * outputs * 11 * 13 // 8, dtype=torch.uint8),
        )
        _C.pointwise(x, run.weight, run.bias, None, y, math.inf, bits, num_threads=threads)
        outcomes.append((y, bits))
    for y, bits in outcomes[1:]:
        assert torch.equal(y, outcomes[0][0])
        assert torch.equal(bits, outcomes[0][1])
    for item in range(3):
        alone, _ = run.rectified(x[item : item + 1].contiguous(**LAYOUT), None, False, math.inf, True)
        assert torch.equal(alone, outcomes[0][0][item : item + 1])


def test_what_it_serves() -> None:
    one = lambda *shape, dtype=torch.bfloat16: torch.zeros(*shape, dtype=dtype)  # noqa: E731
    assert Pointwise.serves(one(64, 32, 1, 1))
    assert not Pointwise.serves(one(64, 32, 3, 3))
    assert not Pointwise.serves(one(24, 32, 1, 1))
    assert not Pointwise.serves(one(64, 33, 1, 1))
    assert Pointwise.serves(one(64, 33, 1, 1, dtype=torch.float32))
    assert not Pointwise.serves(one(64, 32, 1, 1, dtype=torch.float64))
    assert not Pointwise.serves(one(64, 32, 1, 1, dtype=torch.float16))
    assert PointwiseGradient.serves(one(24, 32, 1, 1))
    assert not PointwiseGradient.serves(one(32, 24, 1, 1))


def test_only_whole_convolutions_without_padding_go_there() -> None:
    weight = torch.zeros(64, 64, 1, 1, dtype=torch.bfloat16)
    assert isinstance(operator(weight, None, Window([0, 0], [2, 2], [1, 1], 1)), Pointwise)
    assert isinstance(gradient_of(weight, Window([0, 0], [2, 2], [1, 1], 1)), PointwiseGradient)
    assert not isinstance(operator(weight, None, Window([1, 0], [1, 1], [1, 1], 1)), Pointwise)
    assert not isinstance(gradient_of(weight, Window([0, 1], [1, 1], [1, 1], 1)), PointwiseGradient)
    halved = Window([0, 0], [1, 1], [1, 1], 2)
    assert not isinstance(operator(weight[:, :32], None, halved), Pointwise)
    assert not isinstance(gradient_of(weight[:, :32], halved), PointwiseGradient)


def test_arrays_that_do_not_fit_are_refused() -> None:
    weight, x, y = (
        torch.zeros(64 * 32),
        random(2, 32, 5, 4, dtype=torch.float32),
        random(2, 64, 5, 4, dtype=torch.float32),
    )
    bias, bits = torch.zeros(64), torch.zeros(320, dtype=torch.uint8)

    def refused(message: str, *arguments: object, error: type[Exception] = ValueError, **options: object) -> None:
        with pytest.raises(error, match=message):
            _C.pointwise(*arguments, **options)

    refused(
        "y: shape .* wanted are all positions at the stride", x, weight, bias, None, y[:, :, :3].contiguous(**LAYOUT)
    )
    refused("y: shape .* wanted are all positions", x, weight, bias, None, y, stride=(2, 1))
    refused("x: shape .* wanted are all positions", x, weight, bias, None, y, stride=(2, 1), transposed=True)
    refused("stride: wanted are two numbers", x, weight, bias, None, y, stride=(0, 1))
    refused("weight: 100 elements came, wanted are 2048", x, weight[:100], bias, None, y)
    refused("weight: dtype", x, weight.bfloat16(), bias, None, y, error=TypeError)
    refused("bias: shape", x, weight, bias[:3], None, y)
    refused("residual", x, weight, bias, y.contiguous(), y)
    refused("x: shape .* channels-last", x.contiguous(), weight, bias, None, y)
    refused("bits: shape", x, weight, bias, None, y, math.inf, bits[:9])
    refused("bits: they are those of a rectifier", x, weight, bias, None, y, None, bits)
    refused("kept: shape", x, weight, bias, None, y, kept=bits[:9])
    refused("ceiling: ", x, weight, bias, None, y, 0.0, bits)
    refused(
        "pointwise: wanted are AVX-512",
        x[..., :1].contiguous(**LAYOUT),
        torch.zeros(32 * 24),
        None,
        None,
        random(2, 24, 5, 1, dtype=torch.float32),
    )
    with pytest.raises(ValueError, match="is none that pointwise serves here"):
        _C.pointwise_pack(torch.zeros(24, 32), torch.zeros(24 * 32))
