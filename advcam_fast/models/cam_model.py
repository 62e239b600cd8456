"""A classifier as class activation mapping sees it: features, then a linear head over their average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models import linear_head

Features = Callable[[Tensor], Tensor]  # [B, 3, H, W] -> [B, K, h, w]


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating-point tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


class Classifier:
    """What maps and labels need of any classifier: its pixels, its names, its weights and its probabilities.

    `features` is what is run on the normalised images. A model is climbed by the climber of its class.
    Raises UsageError where names, mean, std or the activation do not fit.
    """

    def __init__(
        self,
        features: Features,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] | None,
        activation: str,
        name: str,
    ) -> None:
        _check_input(mean, std)
        _check_names(class_names, num_classes)
        if activation not in ("softmax", "sigmoid"):
            raise UsageError(f"activation is {activation!r}; it must be 'softmax' or 'sigmoid'")
        self.features = features
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.class_names = None if class_names is None else tuple(class_names)
        self.activation = activation
        self.name = name
        self.executor: tuple[object, Any] | None = None  # (made from, frozen executor): kept here by the climb

    @property
    def num_classes(self) -> int:
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name, those of the features first."""
        return dict(self.features.state_dict()) if isinstance(self.features, nn.Module) else {}

    @property
    def reference(self) -> Tensor:
        """A weight: its device and dtype are the model's."""
        floating = (tensor for tensor in self.tensors().values() if tensor.is_floating_point())
        return next(floating, torch.empty(0))

    def normalise(self, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(pixel / 255 - mean) / std: uint8 [B, 3, H, W] -> the same, channels-last, on the model's device.

        dtype: by default fp64 for a float64 model, else fp32: a climbed image in less would swallow small steps.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"images are {images.dtype} {list(images.shape)}; wanted torch.uint8 [B, 3, H, W]")
        reference = self.reference
        wide = dtype or (torch.float64 if reference.dtype == torch.float64 else torch.float32)
        mean = torch.tensor(self.mean, dtype=wide, device=reference.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=wide, device=reference.device).view(3, 1, 1)
        pixels = images.to(reference.device, non_blocking=True).to(wide, memory_format=torch.channels_last)
        return pixels.div_(255).sub_(mean).div_(std)

    def predict(self, images: Tensor) -> Tensor:
        """Probabilities: uint8 [B, 3, H, W] -> [B, C]."""
        raise NotImplementedError

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()


class CamModel(Classifier):
    """Features and a linear head: z_c(p) = W_c . F(p), from which scores, maps and predictions are taken.

    Shapes: features [B, 3, H, W] -> F [B, K, h, w]; class_weights W [C, K]; class_bias [C], used by `predict` only.
    The network's input is (pixel / 255 - mean) / std, RGB, so mean and std are in units of [0, 1].
    activation: "softmax" (one class per image) or "sigmoid" (any number). prediction_score: "mean" over positions of
    z + bias, or "relu_mean", of relu(z + bias), as SqueezeNet was trained.
    Raises UsageError where shapes, names or options do not fit, or a weight is NaN or infinite.
    Source: Zhou et al., CVPR 2016.
    """

    def __init__(
        self,
        features: Features,
        class_weights: Tensor,  # [C, K]
        class_bias: Tensor | None = None,  # [C]
        *,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        prediction_score: Literal["mean", "relu_mean"] = "mean",
        name: str = "custom",
    ) -> None:
        _check_head(features, class_weights, class_bias)
        super().__init__(features, len(class_weights), mean, std, class_names, activation, name)
        if prediction_score not in ("mean", "relu_mean"):
            raise UsageError(f"prediction_score is {prediction_score!r}; it must be 'mean' or 'relu_mean'")
        self.class_weights = class_weights.detach().contiguous()
        self.class_bias = None if class_bias is None else class_bias.detach().to(class_weights)
        self.prediction_score = prediction_score

    @property
    def num_classes(self) -> int:
        return len(self.class_weights)

    @property
    def positive_counts(self) -> Tensor:  # [C], int64
        """K+ = #{k : W_c,k > 0} of every class."""
        return (self.class_weights > 0).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        bias = {} if self.class_bias is None else {"bias": self.class_bias}
        return {**super().tensors(), "head": self.class_weights, **bias}

    @property
    def reference(self) -> Tensor:
        return self.class_weights

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CamModel:
        """Moves head and features in place and returns the model; features that are no nn.Module stay as they are."""
        if isinstance(self.features, nn.Module):
            self.features.to(device=device, dtype=dtype)
        self.class_weights = self.class_weights.to(device=device, dtype=dtype)
        if self.class_bias is not None:
            self.class_bias = self.class_bias.to(device=device, dtype=dtype)
        return self

    def logit_map(self, features: Tensor, rows: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """z = W . F at every position: [B, K, h, w] -> channels-last [B, C, h, w].

        rows: int64, the head rows wanted, [R] for all items or [B, R] for each its own; the result is [B, R, h, w].
        dtype: of sums and result; by default the features'.
        """
        return linear_head.logits(features, self._rows(rows, dtype or features.dtype))

    def feature_gradient(
        self, logit_gradient: Tensor, rows: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """dJ/dF = W^T . dJ/dz: [B, C, h, w] ([B, R, h, w] with rows) -> channels-last [B, K, h, w].

        Sums are in dz's dtype. dtype: of the result; by default the same.
        """
        weights = self._rows(rows, logit_gradient.dtype)
        return linear_head.feature_gradient(logit_gradient, weights, dtype or logit_gradient.dtype)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities: uint8 [B, 3, H, W] -> [B, C], softmax(y) or sigmoid(y), y the score with the bias."""
        features = self.features(self.normalise(images).to(self.class_weights.dtype))
        bias = 0.0 if self.class_bias is None else self.class_bias
        if self.prediction_score == "relu_mean":
            logits = (self.logit_map(features).permute(0, 2, 3, 1) + bias).relu().mean((1, 2))
        else:
            logits = features.mean((2, 3)) @ self.class_weights.T + bias
        return self._probabilities(logits)

    def _rows(self, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
        weights = self.class_weights if rows is None else self.class_weights[rows]
        return weights.to(dtype)


def _check_head(features: Features, weights: Tensor, bias: Tensor | None) -> None:
    if not callable(features):
        raise UsageError(f"features is a {type(features).__name__}; wanted a module or function [B,3,H,W] -> [B,K,h,w]")
    if weights.ndim != 2 or 0 in weights.shape or not weights.is_floating_point():
        raise UsageError(f"class_weights is {weights.dtype} {list(weights.shape)}; wanted floating point [C, K]")
    if bias is not None and bias.shape != weights.shape[:1]:
        raise UsageError(f"class_bias is {list(bias.shape)}; wanted [{len(weights)}] like class_weights")
    tensors = {"class_weights": weights} | ({} if bias is None else {"class_bias": bias})
    if isinstance(features, nn.Module):
        tensors |= {f"features.{key}": tensor for key, tensor in features.state_dict().items()}
    if (bad := first_nonfinite(tensors)) is not None:
        raise UsageError(f"{bad} holds NaN or infinite values; all weights must be finite")


def _check_input(mean: Sequence[float], std: Sequence[float]) -> None:
    for role, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not bool(torch.tensor([float(value) for value in values]).isfinite().all()):
            raise UsageError(f"{role} is {values!r}; wanted three finite numbers, for red, green and blue in [0, 1]")
    if min(std) <= 0:
        raise UsageError(f"std is {std!r}; every value must be above 0")


def _check_names(names: Sequence[str] | None, num_classes: int) -> None:
    if names is None:
        return
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"class_names is {names!r}; wanted a list of strings")
    if len(names) != num_classes:
        raise UsageError(f"{len(names)} class_names for a head of {num_classes} classes; wanted one for each")
    if len(set(names)) != len(names):
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise UsageError(f"class name {repeated!r} is given twice; each class needs its own")
