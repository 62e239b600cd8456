"""CamModel: its algebra against autograd and its refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import close
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models import CamModel

PIXELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def model(classes: int = 7, channels: int = 5, dtype: torch.dtype = torch.float64, **options: object) -> CamModel:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Tanh()).to(dtype)
    return CamModel(features, torch.randn(classes, channels, dtype=dtype), **(PIXELS | options))


@pytest.mark.parametrize("rows", [None, [4], [6, 0, 2]])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 5, 1, 1), (3, 5, 1, 7), (0, 5, 2, 2)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_logit_map_and_gradient_are_those_of_a_1x1_convolution(
    rows: list[int] | None, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    cam = model()
    chosen = None if rows is None else torch.tensor(rows)
    weights = cam.class_weights if chosen is None else cam.class_weights[chosen]
    features = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    wanted = F.conv2d(features, weights[:, :, None, None])
    got = cam.logit_map(features.detach(), chosen)
    close(got, wanted.detach())
    assert got.is_contiguous(memory_format=torch.channels_last)
    ascent = torch.randn_like(wanted)
    (wanted_gradient,) = torch.autograd.grad(wanted, features, ascent)
    gradient = cam.feature_gradient(ascent, chosen)
    close(gradient, wanted_gradient)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_each_items_own() -> None:
    cam = model()
    rows = torch.tensor([[4, 1], [0, 0], [6, 2]])
    features = torch.randn(3, 5, 2, 4, dtype=torch.float64)
    maps = cam.logit_map(features, rows)
    gradient = cam.feature_gradient(maps, rows)
    for item in range(3):
        one = slice(item, item + 1)
        close(maps[one], cam.logit_map(features[one], rows[item]))
        close(gradient[one], cam.feature_gradient(maps[one], rows[item]))
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_maps_and_gradients_keep_the_dtype_they_are_given() -> None:
    cam = model(dtype=torch.float32)
    features = torch.randn(2, 5, 3, 4).bfloat16()
    assert cam.logit_map(features).dtype == torch.bfloat16
    assert cam.feature_gradient(cam.logit_map(features)).dtype == torch.bfloat16


def test_positive_counts() -> None:
    cam = CamModel(lambda images: images, torch.tensor([[1.0, -1.0, 0.0], [2.0, 3.0, 0.5]]), **PIXELS)
    assert cam.positive_counts.tolist() == [1, 3]
    assert cam.num_classes == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalise(dtype: torch.dtype) -> None:
    cam = model(dtype=dtype)
    images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    kept = images.clone()
    mean, std = (torch.tensor(PIXELS[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = cam.normalise(images)
    assert got.dtype == wide
    assert got.is_contiguous(memory_format=torch.channels_last)
    close(got, (images.double() / 255 - mean) / std)
    assert torch.equal(images, kept)
    assert cam.normalise(images, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("score", ["mean", "relu_mean"])
def test_predict_uses_bias_score_and_activation(activation: str, score: str) -> None:
    torch.manual_seed(1)
    bias = torch.randn(7, dtype=torch.float64)
    cam = model(class_bias=bias, activation=activation, prediction_score=score)
    images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    z = F.conv2d(cam.features(cam.normalise(images)), cam.class_weights[:, :, None, None], bias)
    logits = z.relu().mean((2, 3)) if score == "relu_mean" else z.mean((2, 3))
    wanted = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    got = cam.predict(images)
    close(got, wanted.detach())
    assert not got.requires_grad


def test_to_moves_features_head_and_bias() -> None:
    cam = model(class_bias=torch.zeros(7)).to(dtype=torch.float32)
    assert isinstance(cam.features, nn.Module)
    assert next(cam.features.parameters()).dtype == torch.float32
    assert cam.class_weights.dtype == torch.float32
    assert cam.class_bias is not None and cam.class_bias.dtype == torch.float32
    assert cam.predict(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).dtype == torch.float32


def with_nan(shape: tuple[int, ...]) -> Tensor:
    tensor = torch.ones(shape)
    tensor.view(-1)[-1] = torch.nan
    return tensor


def broken_features() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 5, 1))
    features[0].bias.data[2] = torch.inf
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": torch.ones(5)}, r"class_weights is torch\.float32 \[5\]; wanted floating point \[C, K\]"),
        ({"class_weights": torch.ones(0, 5)}, r"class_weights .*\[0, 5\]"),
        ({"class_weights": torch.ones(7, 5, dtype=torch.int64)}, r"class_weights is torch\.int64"),
        ({"class_weights": with_nan((7, 5))}, r"class_weights holds NaN"),
        ({"class_bias": torch.ones(6)}, r"class_bias is \[6\]; wanted \[7\]"),
        ({"class_bias": with_nan((7,))}, r"class_bias holds NaN"),
        ({"features": broken_features()}, r"features\.0\.bias holds NaN or infinite"),
        ({"features": 3}, r"features is a int"),
        ({"class_names": ["a", "b"]}, r"2 class_names for a head of 7"),
        ({"class_names": list("abcdefa")}, r"class name 'a' is given twice"),
        ({"class_names": "abcdefg"}, r"class_names is 'abcdefg'"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0\.5, 0\.5\); wanted three"),
        ({"std": (0.5, 0.5, float("nan"))}, r"std is .*; wanted three finite"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is .*; every value must be above 0"),
        ({"activation": "tanh"}, r"activation is 'tanh'"),
        ({"prediction_score": "max"}, r"prediction_score is 'max'"),
    ],
)
def test_refusals_name_what_came_and_what_is_wanted(changes: dict[str, object], message: str) -> None:
    good = {"features": nn.Conv2d(3, 5, 1), "class_weights": torch.ones(7, 5), **PIXELS}
    CamModel(**good)
    with pytest.raises(UsageError, match=message) as caught:
        CamModel(**(good | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_only_uint8_batches_are_images(images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"wanted torch\.uint8 \[B, 3, H, W\]"):
        model().normalise(images)
