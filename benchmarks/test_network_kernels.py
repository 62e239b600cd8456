"""The kernels of a CPU's network passes that are no public ops, against what torch and oneDNN have; equal first.

image_gradient: the first convolution of a ResNet, 64 channels of a pair of 375x500 photos, against conv_transpose2d and
against one convolution for all phases (models/convolution_kernels.py). pointwise: three of a ResNet-50's convolutions
of 1x1 with residual, rectifier and its bits, against oneDNN's fused convolution and masked_relu. linear_head: 2,048
channels, 20 classes, both ways, against a product of widened copies.
"""

from __future__ import annotations

import math

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import _C, ops
from advcam_fast.bench.tolerances import close
from advcam_fast.models import linear_head
from advcam_fast.models.convolution_kernels import ImageGradient, Phases, Window, _Onednn, _Transposed, onednn_serves
from advcam_fast.models.pointwise import Pointwise

WINDOW = Window([3, 3], [2, 2], [1, 1], 1)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
two_threads = pytest.mark.parametrize("threads", [2], indirect=True, ids=["two_threads"])


@both_dtypes
@two_threads
@pytest.mark.parametrize("way", ["ours", "phases", "conv_transpose2d"])
def test_image_gradient(benchmark: BenchmarkFixture, way: str, dtype: torch.dtype, threads: int, shrink: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 3, 7, 7).to(dtype)
    if not ImageGradient.serves(weight):
        pytest.skip("the kernel wants AVX-512 with BF16")
    size = torch.Size((2, 3, 375 // shrink, 500 // shrink))
    sides = [(side - 1) // 2 + 1 for side in size[2:]]
    gradient = torch.randn(2, 64, *sides).to(dtype).contiguous(memory_format=torch.channels_last)
    if way == "ours":
        run = ImageGradient(weight, WINDOW)
    elif way == "phases":
        run = Phases(weight, WINDOW, 4 if dtype == torch.bfloat16 else 2)
    else:
        run = _Transposed(weight, WINDOW)
    close(run(gradient, size, None), torch.nn.grad.conv2d_input(size, weight.double(), gradient.double(), 2, 3))
    benchmark.group = f"image_gradient, 64 channels, {dtype}, {threads} threads"
    benchmark.extra_info["implementation"] = way
    benchmark.pedantic(run, args=(gradient, size, None), rounds=30, warmup_rounds=3)


@both_dtypes
@two_threads
@pytest.mark.parametrize("layer", [(64, 256, 94, 125), (256, 1024, 24, 32), (2048, 512, 24, 32)], ids=str)
@pytest.mark.parametrize("way", ["ours", "onednn"])
def test_pointwise(
    benchmark: BenchmarkFixture, way: str, layer: tuple[int, ...], dtype: torch.dtype, threads: int, shrink: int
) -> None:
    torch.manual_seed(0)
    inputs, outputs, height, width = layer
    weight = (torch.randn(outputs, inputs, 1, 1) / inputs**0.5).to(dtype)
    if not Pointwise.serves(weight) or not onednn_serves("cpu", dtype):
        pytest.skip("the kernel wants AVX-512 with BF16 and no AMX; its peer, oneDNN")
    layout = dict(memory_format=torch.channels_last)
    x = torch.randn(2, inputs, height // shrink, width // shrink).to(dtype).contiguous(**layout)
    residual = torch.randn(2, outputs, *x.shape[2:]).to(dtype).contiguous(**layout)
    bias = torch.randn(outputs).to(dtype)
    if way == "ours":
        own = Pointwise(weight, bias, [1, 1])
        run = lambda into: own.rectified(x, into, True, math.inf, True)  # noqa: E731
    else:
        convolve = _Onednn(weight, bias, Window([0, 0], [1, 1], [1, 1], 1))
        run = lambda into: ops.masked_relu(convolve(x, into))  # noqa: E731
    wanted = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double()) + residual.double()
    found = residual.clone(**layout)
    run(found)
    close(found, wanted.clamp(min=0))
    benchmark.group = f"pointwise, {layer}, {dtype}, {threads} threads"
    benchmark.extra_info["implementation"] = way
    benchmark.pedantic(run, args=(residual,), rounds=60, warmup_rounds=3)


@both_dtypes
@two_threads
@pytest.mark.parametrize("direction", ["logits", "gradient"])
@pytest.mark.parametrize("way", ["ours", "torch"])
def test_linear_head(
    benchmark: BenchmarkFixture, way: str, direction: str, dtype: torch.dtype, threads: int, monkeypatch
) -> None:
    if not _C.linear_head_serves(dtype == torch.bfloat16, 2048):
        pytest.skip("the kernel wants AVX-512")
    torch.manual_seed(0)
    layout = dict(memory_format=torch.channels_last)
    weights = torch.randn(20, 2048)
    features = torch.randn(2, 2048, 24, 32).to(dtype).contiguous(**layout)
    gradient = torch.randn(2, 20, 24, 32).contiguous(**layout)
    if way == "torch":
        monkeypatch.setattr(linear_head, "_own", lambda *_: False)
    if direction == "logits":
        run = lambda: linear_head.logits(features, weights)  # noqa: E731
        wanted = torch.einsum("bkhw,ck->bchw", features.double(), weights.double())
    else:
        run = lambda: linear_head.feature_gradient(gradient, weights, dtype)  # noqa: E731
        wanted = torch.einsum("bchw,ck->bkhw", gradient.double(), weights.double())
    close(run(), wanted)
    benchmark.group = f"linear_head {direction}, 20 classes, {dtype}, {threads} threads"
    benchmark.extra_info["implementation"] = way
    benchmark.pedantic(run, rounds=30, warmup_rounds=3)
