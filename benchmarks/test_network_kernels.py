"""The kernels of a CPU's network passes that are no public ops, against what torch and oneDNN have; equal first.

image_gradient: the first convolution of a ResNet, 64 channels of a pair of 375x500 photos, against conv_transpose2d and
against one convolution for all phases (models/convolution_kernels.py). linear_head: 2,048 channels, 20 classes, both
ways, against a product of widened copies.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import _C
from advcam_fast.bench.tolerances import close
from advcam_fast.models import linear_head
from advcam_fast.models.convolution_kernels import ImageGradient, Phases, Window, _Transposed

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
