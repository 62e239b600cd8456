"""climb_loss: logit maps -> pair map, mask, scores, the regularised objective and its closed-form gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from advcam_fast._native import NATIVE
from advcam_fast.ops.backend import LIBRARY, define, fallback, stream_of


class ClimbLoss(NamedTuple):
    """What climb_loss returns; acc is float64 for float64 logits and float32 otherwise."""

    objective: Tensor  # [groups], acc: J
    gradient: Tensor  # like logit_map: dJ/dz
    pair_map: Tensor  # [groups, h, w], acc: R
    mask: Tensor  # [groups, h, w], bool: M
    score: Tensor  # [B, C], acc: y


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _outputs(logit_map: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    items, classes, height, width = logit_map.shape
    groups, acc = items // group_size, _acc(logit_map.dtype)
    return (
        logit_map.new_empty(groups, dtype=acc),
        torch.empty_like(logit_map),
        logit_map.new_empty(groups, height, width, dtype=acc),
        logit_map.new_empty(groups, height, width, dtype=torch.bool),
        logit_map.new_empty(items, classes, dtype=acc),
    )


def _dense(z: Tensor) -> Tensor:
    plain = z.is_contiguous() or z.is_contiguous(memory_format=torch.channels_last)
    return z if plain else z.contiguous()


def _run(
    logit_map: Tensor,
    target: Tensor,
    weight: Tensor,
    positive: Tensor,
    initial_map: Tensor | None,
    suppression: float,
    mask_threshold: float,
    rectify: bool,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logit_map = _dense(logit_map).detach()  # torch without DLPack's C table exports no tensor that requires grad
    fixed = [target.contiguous(), weight.contiguous(), positive.contiguous()]
    initial = None if initial_map is None else initial_map.contiguous()
    if (other := fallback("climb_loss", logit_map.device.type)) is not None:
        return other(logit_map, *fixed, initial, suppression, mask_threshold, rectify, group_size)
    out = objective, gradient, pair_map, mask, score = _outputs(logit_map, group_size)
    NATIVE.climb_loss(
        logit_map,
        *fixed,
        initial,
        suppression,
        mask_threshold,
        rectify,
        group_size,
        objective,
        gradient,
        pair_map,
        mask,
        score,
        stream=stream_of(logit_map),
        num_threads=torch.get_num_threads(),
    )
    return out


def _fake(
    logit_map: Tensor,
    target: Tensor,
    weight: Tensor,
    positive: Tensor,
    initial_map: Tensor | None,
    suppression: float,
    mask_threshold: float,
    rectify: bool,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(_dense(logit_map), group_size)


define(
    "climb_loss",
    "(Tensor logit_map, Tensor target, Tensor weight, Tensor positive, Tensor? initial_map, "
    "float suppression, float mask_threshold, bool rectify, int group_size) "
    "-> (Tensor objective, Tensor gradient, Tensor pair_map, Tensor mask, Tensor score)",
    _run,
    _fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])
    ctx.group_size = inputs[8]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_objective: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    per_item = grad_objective.repeat_interleave(ctx.group_size).view(-1, 1, 1, 1)
    return (gradient * per_item.to(gradient.dtype), *[None] * 8)


torch.library.register_autograd("advcam_fast::climb_loss", _backward, setup_context=_setup, lib=LIBRARY)


def climb_loss(
    logit_map: Tensor,
    target: Tensor,
    weight: Tensor,
    positive: Tensor,
    initial_map: Tensor | None = None,
    suppression: float = 0.0,
    mask_threshold: float = 0.5,
    rectify: bool = True,
    group_size: int = 2,
) -> ClimbLoss:
    """The climb's objective, its gradient with respect to the logit maps and the pair's activation map, in one pass.

    With members n of a pair, positions p, s(z) = relu(z) (rectify) or z, P_n = #{p : z_c,n(p) > 0}:

        R    = f_0 relu(z_c,0) + flip(f_1 relu(z_c,1)),  f_n = P_n / (positive * sum_m P_m)
        M    = 1[R > mask_threshold * max R]
        y_kn = mean_p s(z_k,n(p))
        J    = sum_n sum_k weight_k y_kn - suppression * sum_p M |R - R0|

    Args:
        logit_map: [B, C, h, w], float32, float64, bfloat16 or float16, B = groups * group_size, any layout.
        target: [groups], int64: the column c of the pair's own class, 0 to C - 1 (checked on a CPU only).
        weight: [groups, C], acc: 1 for the own class, -1 or 0 for others.
        positive: [groups], acc: the number of positive head weights of the own class (K+).
        initial_map: [groups, h, w], acc: R of the clean image (R0); None at step 0, where the last term is 0.
        suppression: the paper's lambda, >= 0. mask_threshold: its tau, in [0, 1].
        rectify: score the mean of relu(z) (as the released code) or of z itself.
        group_size: 2 for an image and its mirror image, 1 without.

    Returns:
        ClimbLoss(objective, gradient, pair_map, mask, score). Autograd sees objective as a function of logit_map
        alone, with P, f and M held constant, as the method does.

    Raises:
        TypeError, ValueError, IndexError: dtype, shape, device or class do not fit.

    Source: Lee et al., CVPR 2021, eq. 6 and 7, with the released code's scalings; closed form in csrc/climb_loss.h.
    """
    if logit_map.ndim != 4 or group_size not in (1, 2) or logit_map.shape[0] % group_size:
        raise ValueError(
            f"logit_map: shape {tuple(logit_map.shape)} with group_size {group_size} came, "
            "wanted is [groups * group_size, classes, height, width] and group_size 1 or 2"
        )
    if logit_map.shape[1:].numel() == 0:
        raise ValueError(f"logit_map: shape {tuple(logit_map.shape)} came, wanted: one class, one position at least")
    arguments = (target, weight, positive, initial_map, suppression, mask_threshold, rectify, group_size)
    return ClimbLoss(*torch.ops.advcam_fast.climb_loss(logit_map, *arguments))
