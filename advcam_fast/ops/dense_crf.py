"""dense_crf: mean field of a fully connected CRF, its Gaussian kernels filtered on permutohedral lattices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import define, fallback, stream_of, workspace

UNKNOWN = 255  # of a label map: nothing is known of this pixel


def _run(
    images: Tensor, unary: Tensor, steps: int, gaussian: Sequence[float] | None, bilateral: Sequence[float] | None
) -> Tensor:
    images, energy = images.contiguous(), unary.contiguous()
    if (other := fallback("dense_crf", unary.device.type)) is not None:
        return other(images, energy, steps, gaussian, bilateral)
    probability = torch.empty_like(energy)
    as_sets = (lambda t: t[:, None]) if unary.ndim == 4 else (lambda t: t)
    NATIVE.dense_crf(
        images,
        as_sets(energy),
        as_sets(probability),
        steps,
        list(gaussian or (1.0, 0.0)),  # a weight of 0 is no kernel
        list(bilateral or (1.0, 1.0, 0.0)),
        workspace(images, _workspace_bytes(unary)) if images.is_cuda else None,
        stream=stream_of(unary),
        num_threads=torch.get_num_threads(),
    )
    return probability


def _workspace_bytes(unary: Tensor) -> int:
    sets = unary.shape[1] if unary.ndim == 5 else 1
    return NATIVE.dense_crf_workspace(sets, *unary.shape[-3:], unary.dtype == torch.float64)


def _fake(
    images: Tensor, unary: Tensor, steps: int, gaussian: Sequence[float] | None, bilateral: Sequence[float] | None
) -> Tensor:
    return torch.empty_like(unary, memory_format=torch.contiguous_format)


define(
    "dense_crf",
    "(Tensor images, Tensor unary, int steps, float[]? gaussian, float[]? bilateral) -> Tensor",
    _run,
    _fake,
)


def _check_kernel(name: str, kernel: Sequence[float] | None, wanted: str) -> list[float] | None:
    if kernel is None:
        return None
    numbers = [float(number) for number in kernel]
    if len(numbers) != wanted.count(",") + 1 or not all(map(math.isfinite, numbers)) or min(numbers[:-1]) <= 0:
        raise ValueError(f"{name}: {tuple(kernel)} came, wanted is ({wanted}), the deviations above 0, or None")
    return numbers


def dense_crf(
    images: Tensor,
    unary: Tensor,
    steps: int = 10,
    gaussian: Sequence[float] | None = (3.0, 3.0),
    bilateral: Sequence[float] | None = (50.0, 5.0, 10.0),
) -> Tensor:
    """Sharpens label probabilities along the edges of their images: mean field of a fully connected CRF.

    Q <- softmax(-unary), then `steps` times Q <- softmax(-unary + sum_k w_k n_k F_k(n_k Q)), over the labels of each
    pixel. F_k: a Gaussian filter on the permutohedral lattice; n_k = F_k(1)^-1/2. The lattices do as pydensecrf's do:
    diagonal kernels, symmetric normalisation, Potts compatibility, its scaling, rounding and blur. On a CPU the
    Gaussian's lattices of the last image sizes are kept from call to call, 64 MB of each dtype at most.

    Args:
        images: uint8 [B, H, W, 3].
        unary: -log p, [B, L, H, W], float32 or float64; or [B, S, L, H, W], S problems on the lattices of one image.
            Plus infinity is a probability of 0. hard_unary makes it of a label map.
        steps: of mean field; 0 gives softmax(-unary).
        gaussian: (sxy, weight): deviation in pixels, and weight of the kernel over places; None: none.
        bilateral: (sxy, srgb, weight): deviations in pixels and in grey levels of 0 to 255; None: none.

    Returns:
        Probabilities, of unary's shape and dtype. Same bits whatever the number of threads and else in the batch.

    Raises:
        RuntimeError: unary requires grad. TypeError, ValueError: dtype, shape or device do not fit; no label; a
            deviation that is not above 0, or so small that the lattice has no keys of 64 bits. On a CPU also: a NaN or
            a minus infinity in unary, or a pixel of nothing but plus infinities. On a GPU, which would have to wait to
            look, such a pixel is NaN.

    Source: Krähenbühl and Koltun, NeurIPS 2011; Adams, Baek and Davis, 2010; the defaults are IRN's (CVPR 2019).
    """
    if torch.is_grad_enabled() and unary.requires_grad:
        raise RuntimeError("dense_crf has no derivative: call it under torch.no_grad() or detach")
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images: {images.dtype} {tuple(images.shape)} came, wanted is torch.uint8 [B, H, W, 3]")
    batch, height, width, _ = images.shape
    if unary.ndim not in (4, 5) or unary.shape[0] != batch or unary.shape[-2:] != (height, width):
        raise ValueError(
            f"unary: shape {tuple(unary.shape)} came, wanted is [{batch}, L, {height}, {width}] or "
            f"[{batch}, S, L, {height}, {width}], as the images are"
        )
    if unary.shape[-3] == 0:
        raise ValueError(f"unary: shape {tuple(unary.shape)} came, wanted is one label at least")
    if steps < 0:
        raise ValueError(f"steps: {steps} came, wanted is 0 or more")
    kernels = [
        _check_kernel("gaussian", gaussian, "sxy, weight"),
        _check_kernel("bilateral", bilateral, "sxy, srgb, weight"),
    ]
    return torch.ops.advcam_fast.dense_crf(images, unary, steps, *kernels)


def hard_unary(labels: Tensor, num_labels: int, confidence: float = 0.7) -> Tensor:
    """-log p of a label map [..., H, W] for dense_crf: float32 [..., L, H, W].

    p = confidence for the label that a pixel has, (1 - confidence) / (L - 1) for each other one. A pixel of 255 is
    unknown: 1 / L for all, as in pydensecrf's unary_from_labels(zero_unsure=True), whose mark for it is 0.

    Args:
        labels: uint8 or int64, 0 to num_labels - 1, or 255.
        num_labels: L, 2 to 255.
        confidence: above 0, at most 1.

    Raises:
        TypeError, ValueError: what came is none of these.
    """
    if labels.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"labels: dtype {labels.dtype} came, wanted is torch.uint8 or torch.int64")
    if not 2 <= num_labels <= UNKNOWN:
        raise ValueError(f"num_labels: {num_labels} came, wanted is 2 to {UNKNOWN}: {UNKNOWN} marks unknown pixels")
    if not 0 < confidence <= 1:
        raise ValueError(f"confidence: {confidence} came, wanted is above 0 and at most 1")
    unknown = labels == UNKNOWN
    if bool((wrong := ((labels < 0) | (labels >= num_labels)) & ~unknown).any()):
        raise ValueError(
            f"labels: {int(labels[wrong][0])} came, wanted is 0 to {num_labels - 1}, or {UNKNOWN} for unknown"
        )
    own, other = -math.log(confidence), -torch.tensor((1 - confidence) / (num_labels - 1)).log().item()
    each = torch.arange(num_labels, device=labels.device)[:, None, None]
    unary = torch.where(labels.unsqueeze(-3) == each, own, other).to(torch.float32)
    return unary.masked_fill_(unknown.unsqueeze(-3), math.log(num_labels))
