"""In the place of transformers' `pipeline("image-segmentation")`: made in another line, called in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import match_labels, read_image
from advcam_fast.errors import UsageError
from advcam_fast.models import CamModel, GradCamModel, load_model
from advcam_fast.pipelines.label import LabelRule, probabilities_of
from advcam_fast.refine import RefineConfig, mask_of, refined_maps

Segment = dict[str, Any]


class ImageSegmentation:
    """AdvCAM and its refinement with the calls of transformers' ImageSegmentationPipeline.

        segmenter = ImageSegmentation("efficientnet_lite0")
        segmenter("cat.jpg")  # [{"score": 0.41, "label": "tabby", "mask": <PIL.Image, L, 0 or 255, the photo's size>}]

    A list of images gives a list of such lists; on a GPU it is one batch. score: the classifier's probability.
    model: a classifier or a name for load_model. config, refine: configurations or names of presets, of refine one
    that needs no affinity net. Raises UsageError for names that are not known.
    Source: https://huggingface.co/docs/transformers for the calls; Lee et al., CVPR 2021, for the maps.
    """

    def __init__(
        self,
        model: CamModel | GradCamModel | str,
        config: ClimbConfig | str = "general",
        refine: RefineConfig | str = "color-walk",
    ) -> None:
        self.model = load_model(model) if isinstance(model, str) else model
        self.refine = RefineConfig.preset(refine) if isinstance(refine, str) else refine
        if self.refine.walk == "boundary":
            raise UsageError("refine: a walk by the boundary came, wanted is one that needs no affinity net")
        climb = ClimbConfig.preset(config) if isinstance(config, str) else config
        self._maker: MapMaker[Any] = MapMaker(self.model, climb)

    def __call__(
        self,
        inputs: str | Path | Image.Image | Sequence[str | Path | Image.Image],
        threshold: float | None = None,
        top_k: int | None = None,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        subtask: str | None = None,
    ) -> list[Segment] | list[list[Segment]]:
        """inputs: paths of images, or PIL images; nothing is fetched.

        labels: the tags of an image, or a list of them for each; else its classes are guessed: at most top_k of
        probability >= threshold, by default as `--labels predicted`. A class without a pixel is left out.
        Raises UsageError for labels that are no classes, and subtasks other than semantic; ImageError for no image.
        """
        if subtask not in (None, "semantic"):
            raise UsageError(f"subtask {subtask!r} came, wanted is semantic: instances need an affinity net")
        alone = isinstance(inputs, (str, Path, Image.Image))
        batch: list[Any] = [inputs] if alone else list(inputs)  # type: ignore[arg-type]
        images = [_pixels(one) for one in batch]
        scores = [probabilities_of(image, self.model) for image in images]
        if labels is None:
            rule = LabelRule(True, top_k, threshold)
            classes = [rule.choose(row, self.model.activation) for row in scores]
        elif threshold is not None or top_k is not None:
            raise UsageError("threshold and top_k choose guessed classes; labels came, which are taken as they are")
        else:
            classes = self._indices([list(labels)] if alone else list(labels), len(images))  # type: ignore[arg-type]
        results = self._maker.compute(images, classes)
        found = []
        for image, own, row, result in zip(images, classes, scores, results, strict=True):
            pixels = image.to(result.strided.device)
            mask = mask_of(refined_maps(result.strided.float(), pixels, self.refine), pixels, self.refine)
            names = [self.model.class_names[index] if self.model.class_names else str(index) for index in own]
            found.append(segments(mask, names, row[own].tolist()))
        return found[0] if alone else found

    def _indices(self, labels: Sequence[Sequence[str]], count: int) -> list[list[int]]:
        if len(labels) != count or any(isinstance(row, str) for row in labels):
            raise UsageError(f"labels: {labels!r} came, wanted is a list of names for each of {count} images")
        named = self.model.class_names or [str(index) for index in range(self.model.num_classes)]
        index = match_labels(sorted({name for row in labels for name in row}), named)
        return [list(dict.fromkeys(index[name] for name in row)) for row in labels]


def segments(mask: Tensor | np.ndarray, classes: Sequence[str], scores: Sequence[float] | None = None) -> list[Segment]:
    """A mask's classes as that pipeline gives them: {"score", "label", "mask"} for each that has a pixel, in order.

    mask: whole numbers [H, W], v > 0 is classes[v - 1], as `refine` writes them; above, 255 say, is nothing.
    scores: one a class; without, every score is None, as transformers' semantic segmenters have it.
    """
    values = np.asarray(torch.as_tensor(mask).cpu())
    present = [value for value in np.unique(values).tolist() if 0 < value <= len(classes)]
    return [
        {
            "score": None if scores is None else scores[value - 1],
            "label": classes[value - 1],
            "mask": Image.fromarray(np.where(values == value, 255, 0).astype(np.uint8), mode="L"),
        }
        for value in present
    ]


def _pixels(image: str | Path | Image.Image) -> Tensor:
    """uint8 [3, H, W], upright."""
    if isinstance(image, Image.Image):
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        return torch.from_numpy(upright).permute(2, 0, 1).contiguous()
    if str(image).startswith(("http://", "https://", "data:")):
        raise UsageError(f"{str(image)[:80]} came, wanted are files or PIL images: nothing is fetched")
    return read_image(image)
