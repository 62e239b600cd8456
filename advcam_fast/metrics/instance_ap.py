"""Average precision of instance masks, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

MEASURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")  # the first of COCOeval's, in its order


class Instance(NamedTuple):
    """An object of class `category`: true (perhaps a crowd, which is ignored), or found with a score."""

    category: int
    mask: dict[str, Any]  # compressed RLE, of `encoded` or of CocoInstances
    score: float = 0.0
    crowd: bool = False


def encoded(mask: Tensor) -> dict[str, Any]:
    """The compressed RLE of a mask [H, W]: few bytes, where a mask has one a pixel."""
    found: dict[str, Any] = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return found


def instance_ap(images: Sequence[tuple[Sequence[Instance], Sequence[Instance]]]) -> dict[str, float]:
    """AP over IoU .50:.95, at .50, at .75 and by COCO's object sizes, of the (true, found) instances of each image.

    In 0 to 1; −1 where there is no true instance of that size, as pycocotools has it.
    Source: Lin et al., ECCV 2014.
    """
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (true_ones, found_ones) in enumerate(images, start=1):
        for one in true_ones:
            truth.append(_entry(one, number, len(truth) + 1) | {"iscrowd": int(one.crowd)})
        for one in found_ones:
            found.append(_entry(one, number, len(found) + 1) | {"iscrowd": 0, "score": one.score})
    categories = [{"id": category} for category in sorted({entry["category_id"] for entry in truth + found})]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(*(_coco(entries, len(images), categories) for entries in (truth, found)), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(MEASURES, evaluator.stats, strict=False)}


def _entry(one: Instance, image: int, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": one.category,
        "segmentation": one.mask,
        "area": float(rle.area(one.mask)),
        "bbox": rle.toBbox(one.mask).tolist(),
    }


def _coco(entries: list[dict[str, Any]], images: int, categories: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": 0, "width": 0} for number in range(1, images + 1)],
        "categories": categories,
        "annotations": entries,
    }
    coco.createIndex()
    return coco
