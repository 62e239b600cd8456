"""compute_maps: images and their labels in, one merged map a label out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.climb.climber import Ascent, Climbed, Climber, Model
from advcam_fast.climb.config import ClimbConfig
from advcam_fast.climb.grad_climber import GradClimber
from advcam_fast.climb.plan import Batch, View, padded_size, plan_batches
from advcam_fast.climb.views import Views
from advcam_fast.errors import UsageError
from advcam_fast.models import CamModel, Classifier, GradCamModel
from advcam_fast.models.footprint import available_bytes
from advcam_fast.models.ragged import Size

KEPT_BY_KERNELS = 2.0  # memory that a climb takes for each byte of its tensors; benchmarks/memory.py: 1.8 to 2.0
GPU_PAIRS = 64  # pairs of one batch on a GPU to begin with; halved when memory runs out, and remembered

NO_POSITIVE_SCORE = "no_positive_score"
NOT_FINITE = "not_finite"
ZERO_GRADIENT = "zero_gradient"


@dataclass(frozen=True)
class MapResult:
    """The maps of one image, on the device they were computed on; every map's maximum is about 1.

    classes [n] int64; strided [n, (H-1)//4+1, (W-1)//4+1]; full and initial [n, H, W] (initial: the plain CAM, step 0
    of every scale), float32 (float64 in fp64 runs). flags: what was odd, as "flag:class".
    """

    classes: Tensor
    strided: Tensor
    full: Tensor
    initial: Tensor
    flags: tuple[str, ...]


class MapMaker(Generic[Model]):
    """Keeps a model's climber, and the batch size found, between calls: what a long run uses.

    max_pairs: flip pairs of one batch to begin with, of different sizes where the network takes them so. By default 1
    on a CPU, GPU_PAIRS on a GPU.
    """

    @torch.inference_mode(False)  # here and below: gradients are needed whatever the caller has switched off
    def __init__(self, model: Model, config: ClimbConfig, max_pairs: int | None = None) -> None:
        if not isinstance(model, (CamModel, GradCamModel)):
            raise UsageError(f"model is a {type(model).__name__}; wanted is a CamModel or a GradCamModel")
        self.model = model
        self.config = config
        self.device = model.reference.device
        # On a CPU batching gains nothing, and one by one an image's bits cannot depend on its neighbours.
        self.max_pairs = max_pairs or (1 if self.device.type == "cpu" else GPU_PAIRS)
        self.climber: Ascent[Any] = (
            GradClimber(model, config)
            if isinstance(model, GradCamModel)
            else Climber(model, config, ragged=self.max_pairs > 1)
        )

    @property
    def executor(self) -> str:
        return self.climber.features.executor

    @torch.inference_mode(False)
    def compute(self, images: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> list[MapResult]:
        check_images(images, labels, self.model.num_classes)
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        ragged = self.climber.features.ragged and self.max_pairs > 1
        batches = plan_batches(sizes, [len(own) for own in labels], self.config, ragged)
        on_gpu = self.device.type == "cuda"  # on a CPU the climb has all cores
        climbed: dict[View, Climbed] = {}
        with Views(images, self.config, [view for batch in batches for view in batch.views] if on_gpu else ()) as views:
            for batch in batches:
                climbed.update(self._climb(batch, views, labels))
        return [self._merge(index, sizes[index], labels[index], climbed) for index in range(len(images))]

    def _climb(self, batch: Batch, views: Views, labels: Sequence[Sequence[int]]) -> Iterator[tuple[View, Climbed]]:
        """Climbs a batch in parts that fit in memory; when a GPU's runs out all the same, in smaller ones."""
        each = len(labels[batch.views[0].image])
        pairs = self._fitting([views.size(view) for view in batch.views])
        most = max(1, pairs // each)
        if len(batch.views) > most:
            for at in range(0, len(batch.views), most):
                yield from self._climb(batch._replace(views=batch.views[at : at + most]), views, labels)
            return
        resized = [views.resized(view) for view in batch.views]
        classes = torch.tensor([list(labels[view.image]) for view in batch.views], device=self.device)
        try:
            done = self.climber.climb(resized, classes, batch.steps, pairs)
        except torch.cuda.OutOfMemoryError:
            at_once = min(pairs, len(batch.views) * each)
            if at_once == 1:
                raise
            self.max_pairs = at_once // 2
        else:
            for i, view in enumerate(batch.views):
                yield view, done.of(i)
            return
        torch.cuda.empty_cache()
        yield from self._climb(batch, views, labels)

    def pair_bytes(self, height: int, width: int) -> float | None:
        """The memory that climbing one pair of views of that size takes; None where it could not be counted."""
        rate = self.climber.features.bytes_per_pixel
        return None if rate is None else KEPT_BY_KERNELS * rate * self.climber.members * height * width

    def _fitting(self, sizes: Sequence[Size]) -> int:
        """How many pairs of these views fit in the memory that is there, max_pairs at most.

        Raises MemoryError, before the system does worse, where there is too little for one.
        """
        height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
        needed, free = self.pair_bytes(height, width), available_bytes(self.device)
        if needed is None or free is None:
            return self.max_pairs
        if needed > free:
            raise MemoryError(
                f"to climb it at {width} x {height} takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            )
        return min(self.max_pairs, int(free / needed))

    def _merge(
        self, image: int, size: tuple[int, int], labels: Sequence[int], climbed: dict[View, Climbed]
    ) -> MapResult:
        height, width = size
        classes = torch.tensor(list(labels), dtype=torch.int64, device=self.device)
        acc = self.climber.acc
        strided_size = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
        strided = torch.zeros(len(labels), *strided_size, dtype=acc, device=self.device)
        full = torch.zeros(len(labels), height, width, dtype=acc, device=self.device)
        initial = torch.zeros_like(full)
        if not labels:
            return MapResult(classes, strided, full, initial, ())
        scales = [climbed[View(image, scale)] for scale in range(len(self.config.scales))]
        sums = [scale.total for scale in scales]
        padded = padded_size(height, width)
        ops.cam_accumulate(sums, strided, strided_size, normalise=True)
        ops.cam_accumulate(sums, full, padded, normalise=True)
        ops.cam_accumulate([scale.initial for scale in scales], initial, padded, normalise=True)
        return MapResult(classes, strided, full, initial, _flags(labels, full, scales, (strided, initial)))


def _flags(labels: Sequence[int], full: Tensor, scales: list[Climbed], others: tuple[Tensor, ...]) -> tuple[str, ...]:
    """What was odd, by class; maps that are not finite are set to zero, so that no NaN leaves."""
    steepest = torch.cat([scale.steepest for scale in scales], 1)  # [n, steps of all scales]
    broken = ~full.isfinite().all(2).all(1) | ~steepest.isfinite().all(1)
    flat = (steepest == 0).any(1) & ~broken
    empty = (full.amax((1, 2)) <= 0) & ~broken
    for maps in (full, *others):
        maps[broken] = 0
    found = [(name, which) for name, which in ((NOT_FINITE, broken), (ZERO_GRADIENT, flat), (NO_POSITIVE_SCORE, empty))]
    return tuple(
        f"{name}:{label}" for name, which in found for label, yes in zip(labels, which.tolist(), strict=True) if yes
    )


def check_images(images: Sequence[Tensor], labels: Sequence[Sequence[int]], num_classes: int) -> None:
    """Raises UsageError unless images are uint8 [3, H, W] and labels are distinct class indices of the head."""
    if len(images) != len(labels):
        raise UsageError(f"{len(images)} images and {len(labels)} lists of labels came, wanted are equally many")
    for index, (image, own) in enumerate(zip(images, labels, strict=True)):
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            came = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise UsageError(f"images[{index}]: {came} came, wanted is a uint8 tensor [3, H, W]")
        if image.numel() == 0:
            raise UsageError(f"images[{index}]: shape {tuple(image.shape)} came, wanted is at least one pixel")
        for label in own:
            if not isinstance(label, int) or isinstance(label, bool):
                raise UsageError(f"labels[{index}]: {label!r} came, wanted are class indices (int)")
            if not 0 <= label < num_classes:
                raise UsageError(f"labels[{index}]: class {label} came, the head has classes 0 to {num_classes - 1}")
        if len(set(own)) != len(own):
            raise UsageError(f"labels[{index}]: {list(own)} came, wanted is each class once")


def compute_maps(
    model: Classifier, images: Sequence[Tensor], labels: Sequence[Sequence[int]], config: ClimbConfig
) -> list[MapResult]:
    """The AdvCAM of every label of every image: A_c = sum over steps and scales of CAM_c(x_t), each over its maximum.

    Args:
        model: on the device to compute on. A frozen copy of it is kept until the config or its weights
            change (not seen: a change through `.data`).
        images: uint8 [3, H, W] RGB, of any sizes. labels: the class indices of each image; an empty list gives no maps.
        config: ClimbConfig.preset("voc-cvpr2021") for the paper's; steps=1 for the plain CAM.

    Returns:
        One MapResult an image, in order. Raises UsageError for images or labels that do not fit, before any work.

    Source: Lee et al., CVPR 2021, eq. 4.
    """
    return _maker(model, config).compute(images, labels)


def _maker(model: Classifier, config: ClimbConfig) -> MapMaker:
    """The model's maker for this config: folding a network again for every call would cost more than small images."""
    versions = sum(tensor._version for tensor in model.tensors().values() if not tensor.is_inference())
    weights = model.reference
    key = (config.as_dict(), weights.device, weights.dtype, id(model.features), versions)
    if model.executor is None or model.executor[0] != key:
        model.executor = (key, MapMaker(model, config))
    return model.executor[1]
