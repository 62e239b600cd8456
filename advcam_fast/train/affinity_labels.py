"""From the maps of an image to the labels that are sure enough to teach the affinity net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.data.images import enlarged
from advcam_fast.errors import UsageError

UNSURE = 255
_STRIDE = 4

Crf = Callable[[Tensor, Tensor, int], Tensor]  # image, hard label maps [S, H, W], their number of labels -> [S, H, W]


def affinity_labels(
    image: Tensor,  # uint8 [3, H, W]
    maps: Tensor,  # [n, H, W] or [n, ceil(H / 4), ceil(W / 4)]
    classes: Tensor,  # [n]
    foreground: float = 0.35,
    background: float = 0.15,
    crf: Crf | None = None,
) -> Tensor:  # uint8 [H, W]
    """Sure foreground, sure background, and 255 for the rest, by two dense CRFs on hard label maps.

    At threshold t a pixel has the label 0 where no map is above t, else that of the greatest map, the first of equals.
    F and B are those label maps after the CRF, at `foreground` and at `background`:

        label = the class where F is foreground, 0 where F and B are both background, 255 elsewhere

    Args:
        image: uint8 [3, H, W].
        maps: floats, each map's max 1, of the image's size, or at stride 4 and then made larger bilinearly and cropped.
        classes: int64, 0 to 253, each once: class c gets the label c + 1.
        foreground, background: thresholds, 0 to 1, the background's not above the foreground's.
        crf: (image, hard label maps uint8 [2, H, W], number of labels L) -> label maps [2, H, W]; None: dense_crf
            with IRN's settings, both maps on one lattice.

    Without a class every pixel is 0: the tags say that there is nothing.
    Raises UsageError where shapes, classes or thresholds do not fit, or a map holds a NaN.
    Source: Ahn et al., CVPR 2019 (IRN); the thresholds are AdvCAM's.
    """
    _check(image, maps, classes, foreground, background)
    size = image.shape[1:]
    if len(maps) == 0:
        return torch.zeros(size, dtype=torch.uint8, device=image.device)
    if maps.shape[1:] != size:
        maps = enlarged(maps, (size[0], size[1]))
    greatest, which = maps.max(0)
    hard = torch.stack([torch.where(greatest > t, which + 1, 0) for t in (foreground, background)]).to(torch.uint8)
    refined = (crf or _dense_crf)(image, hard, len(maps) + 1)
    if refined.shape != hard.shape:
        raise UsageError(f"crf gave {list(refined.shape)}; wanted {list(hard.shape)}, as the label maps that it got")
    names = torch.cat([classes.new_zeros(1), classes + 1]).to(image.device, torch.uint8)
    sure, possible = refined.long()
    labels = torch.where(possible == 0, 0, UNSURE).to(torch.uint8)
    return torch.where(sure > 0, names[sure], labels)


def _dense_crf(image: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    unary = ops.hard_unary(labels[None], num_labels)  # [1, S, L, H, W]: both on the lattices of the one image
    found: Tensor = ops.dense_crf(image.permute(1, 2, 0)[None].contiguous(), unary)[0].argmax(1)
    return found


def _check(image: Tensor, maps: Tensor, classes: Tensor, foreground: float, background: float) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise UsageError(f"image is {image.dtype} {list(image.shape)}; wanted torch.uint8 [3, H, W]")
    size = tuple(image.shape[1:])
    strided = tuple(-(-side // _STRIDE) for side in size)
    if not maps.is_floating_point() or maps.ndim != 3 or tuple(maps.shape[1:]) not in (size, strided):
        raise UsageError(
            f"maps are {maps.dtype} {list(maps.shape)}; wanted floats [n, {size[0]}, {size[1]}] like the image, or "
            f"[n, {strided[0]}, {strided[1]}] at stride {_STRIDE}"
        )
    if bool(maps.isnan().any()):
        raise UsageError("maps hold a NaN; wanted numbers")
    if classes.dtype != torch.int64 or classes.shape != maps.shape[:1]:
        raise UsageError(f"classes are {classes.dtype} {list(classes.shape)}; wanted torch.int64 [{len(maps)}]")
    numbers = classes.tolist()
    if len(set(numbers)) != len(numbers) or not all(0 <= number < UNSURE - 1 for number in numbers):
        raise UsageError(f"classes are {numbers}; wanted different ones of 0 to {UNSURE - 2}")
    if not 0 <= background <= foreground <= 1:
        raise UsageError(
            f"thresholds are {foreground} for foreground and {background} for background; "
            "wanted 0 to 1, the background's not above the foreground's"
        )
