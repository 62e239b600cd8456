"""The head's own kernel: against float64, at the borders of its blocks, and where it must leave the work to torch."""

from __future__ import annotations

import pytest
import torch
from tolerances import close
from torch import Tensor

from advcam_fast import _C
from advcam_fast.models import linear_head

needs_kernel = pytest.mark.skipif(not _C.linear_head_serves(False, 16), reason="the kernel wants AVX-512")
SHAPES = [
    (2, 96, 5, 7, 20),
    (1, 64, 1, 1, 3),
    (3, 16, 11, 13, 1),
    (2, 80, 6, 10, 5),
    (0, 16, 2, 2, 4),
    (2, 16, 9, 1, 9),
]


def case(shape: tuple[int, ...], dtype: torch.dtype, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weights and the logits' gradient."""
    batch, channels, height, width, classes = shape
    torch.manual_seed(0)
    layout = dict(memory_format=torch.channels_last)
    features = torch.randn(batch, channels, height, width).to(dtype).contiguous(**layout)
    weights = torch.randn(batch, classes, channels) if own else torch.randn(classes, channels)
    return features, weights, torch.randn(batch, classes, height, width).contiguous(**layout)


@needs_kernel
@pytest.mark.parametrize("own", [False, True], ids=["shared", "items'"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_product_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, weights, gradient = case(shape, dtype, own)
    wide = weights.double() if own else weights.double().expand(shape[0], -1, -1)
    monkeypatch.setattr(linear_head, "_product", None)  # the kernel alone
    logits = linear_head.logits(features, weights)
    assert logits.dtype == torch.float32
    close(logits, torch.einsum("bkhw,bck->bchw", features.double(), wide))
    back = linear_head.feature_gradient(gradient, weights, dtype)
    assert back.dtype == dtype
    close(back, torch.einsum("bchw,bck->bkhw", gradient.double(), wide))
    for tensor in (logits, back):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_whatever_the_batch_and_the_threads(dtype: torch.dtype) -> None:
    features, weights, gradient = case((3, 80, 9, 11, 7), dtype, False)
    logits, back = linear_head.logits(features, weights), linear_head.feature_gradient(gradient, weights, dtype)
    for item in range(3):
        one = slice(item, item + 1)
        assert torch.equal(linear_head.logits(features[one], weights), logits[one])
        assert torch.equal(linear_head.feature_gradient(gradient[one], weights, dtype), back[one])
    for threads in (1, 3):
        again = torch.empty_like(logits)
        _C.linear_head(features, weights, again, num_threads=threads)
        assert torch.equal(again, logits)


@needs_kernel
def test_nan_stays_at_its_position() -> None:
    features, weights, gradient = case((2, 32, 4, 5, 6), torch.float32, False)
    features[1, 7, 2, 3], gradient[0, 4, 1, 1] = torch.nan, torch.nan
    bad = linear_head.logits(features, weights).isnan()
    assert bad[1, :, 2, 3].all()
    assert bad.sum() == 6
    bad = linear_head.feature_gradient(gradient, weights, torch.bfloat16).isnan()
    assert bad[0, :, 1, 1].all()
    assert bad.sum() == 32


@pytest.mark.parametrize(
    ("channels", "classes", "dtype"),
    [(24, 3, torch.float32), (32, 3, torch.float64), (32, 3, torch.bfloat16), (256, 2000, torch.float32)],
    ids=["odd channels", "float64", "bfloat16 weights", "large head"],
)
def test_what_the_kernel_does_not_serve_goes_to_torch(
    channels: int, classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_head, "NATIVE", None if not _C.linear_head_serves(False, 16) else linear_head.NATIVE)
    features, weights, gradient = (t.to(dtype) for t in case((2, channels, 3, 4, classes), torch.float32, False))
    product, calls = linear_head._product, []
    monkeypatch.setattr(linear_head, "_product", lambda *a: calls.append(0) or product(*a))
    close(linear_head.logits(features, weights), torch.einsum("bkhw,ck->bchw", features.double(), weights.double()))
    found = linear_head.feature_gradient(gradient, weights, dtype)
    close(found, torch.einsum("bchw,ck->bkhw", gradient.double(), weights.double()))
    assert len(calls) == 2


def test_autograd_still_sees_the_product() -> None:
    features, weights, _ = case((1, 32, 2, 3, 4), torch.float32, False)
    features.requires_grad_()
    (found,) = torch.autograd.grad(linear_head.logits(features, weights).sum(), features)
    close(found, weights.sum(0).view(1, 32, 1, 1).expand(1, 32, 2, 3))


@needs_kernel
def test_arrays_that_do_not_fit_are_refused() -> None:
    features, weights, logits = case((2, 32, 3, 4, 5), torch.float32, False)
    with pytest.raises(ValueError, match=r"logits: shape \(2, 5, 4, 3\) came, wanted is \(2, 5, 3, 4\)"):
        _C.linear_head(features, weights, logits.transpose(2, 3).contiguous(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match=r"weight: shape \(4, 32\) came, wanted is \(5, 32\)"):
        _C.linear_head(features, weights[:4], logits)
    with pytest.raises(TypeError, match="weight: dtype float64 came, wanted is float32"):
        _C.linear_head(features, weights.double(), logits)
    with pytest.raises(ValueError, match="channels-last"):
        _C.linear_head(features.contiguous(), weights, logits)
    narrow = features[:, :24].contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="AVX-512 and a multiple of 16 channels"):
        _C.linear_head(narrow, weights[:, :24].contiguous(), logits)
