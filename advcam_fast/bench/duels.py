"""What is measured against which package: classifiers' maps, refinement, evaluation, and the single kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast import ops
from advcam_fast.bench.agreement import check
from advcam_fast.bench.cases import CASES, Case, Source
from advcam_fast.bench.duel import Duel, Scope
from advcam_fast.bench.networks import best_class, random_model
from advcam_fast.bench.plain_loop import plain_maps
from advcam_fast.bench.tolerances import close
from advcam_fast.climb import ClimbConfig
from advcam_fast.climb.maps import MapMaker
from advcam_fast.compat.network_maps import NetworkMaps

CLASSES = 20
SAME_MAPS = 1e-3  # of two networks in float32, one of them with its BatchNorm folded
SAME_CLIMB = 3e-3
SAME_MARGINALS = 1e-3  # of two lattices in float32, at 99.9 % of the pixels the same label
LEVELS = torch.arange(256)
Contest = tuple[Callable[[], Any], Callable[[], Any], Callable[[], None]]


def _classifier(scope: Scope) -> tuple[nn.Module, Tensor]:
    """A network from images to logits as people have it, weight gradients on, and normalised images for it."""
    model = random_model(scope.network, CLASSES)
    assert isinstance(model.features, nn.Module)
    head = nn.Linear(model.class_weights.shape[1], CLASSES)
    head.load_state_dict({"weight": model.class_weights, "bias": torch.zeros(CLASSES)})
    layers = OrderedDict(features=model.features, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)
    views = torch.randint(0, 256, (scope.batch, 3, scope.side, scope.side), dtype=torch.uint8)
    return nn.Sequential(layers).eval().requires_grad_(True), model.normalise(views)


def _grad_cam(scope: Scope) -> Contest:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from advcam_fast.compat import pytorch_grad_cam as compat

    network, images = _classifier(scope)
    targets = [ClassifierOutputTarget(index % CLASSES) for index in range(len(images))]
    cams = [
        kind(model=network, target_layers=[network.get_submodule("features")]) for kind in (compat.GradCAM, GradCAM)
    ]
    ours, theirs = (lambda cam=cam: cam(input_tensor=images, targets=targets) for cam in cams)
    return ours, theirs, lambda: close(torch.tensor(ours()), torch.tensor(theirs()), limit=SAME_MAPS)


def _torchcam(scope: Scope) -> Contest:
    """From images to maps in both: torchcam hooks into the pass that its user runs."""
    from torchcam.methods import GradCAM

    network, images = _classifier(scope)
    classes = torch.arange(len(images)) % CLASSES
    plain = NetworkMaps(network, "features", ClimbConfig(steps=1, scales=(1.0,), flip=False))
    other = GradCAM(network, "features")

    def ours() -> Tensor:
        return plain.maps(images, classes)

    def theirs() -> Tensor:
        maps = other(classes.tolist(), network(images))[0]
        large = F.interpolate(maps[None], images.shape[2:], mode="bilinear", align_corners=False)[0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        return (large - low) / (high - low)

    return ours, theirs, lambda: close(ours(), theirs().detach(), limit=SAME_MAPS)


def _released_loop(scope: Scope) -> Contest:
    """Two of the paper's scales and a few steps of one photo; small ones, since a climb magnifies rounding."""
    model = random_model(scope.network, CLASSES)
    paper = ClimbConfig.preset("voc-cvpr2021")
    config = replace(paper, steps=4, step_size=0.01, scales=(0.5, 1.0), steps_at_scale={0.5: 2})
    photo = torch.randint(0, 256, (1, 3, scope.side, scope.side), dtype=torch.uint8)
    labels, pixels = [best_class(model, photo)], photo[0].permute(1, 2, 0).numpy()
    maker, network = MapMaker(model, config), random_model(scope.network, CLASSES).features
    assert isinstance(network, nn.Module)
    network.requires_grad_(True)  # as released

    def ours() -> Tensor:
        return maker.compute([photo[0]], [labels])[0].full

    def theirs() -> Tensor:
        return plain_maps(network, model.class_weights, pixels, labels, config, model.mean, model.std).full

    return ours, theirs, lambda: close(ours(), theirs(), limit=SAME_CLIMB)


def _dense_crf(labels: int) -> Callable[[Scope], Contest]:
    def make(scope: Scope) -> Contest:
        from pydensecrf.densecrf import DenseCRF2D

        name = f"{labels} labels 375x500"
        case = next(case for case in CASES if case.stem == "dense_crf" and case.name == name)
        given = case.arguments(shrink=scope.shrink) | {"steps": 10}
        image, unary = given["images"][0].numpy(), given["unary"][0]
        height, width = unary.shape[1:]

        def theirs() -> Tensor:
            field = DenseCRF2D(width, height, labels)
            field.setUnaryEnergy(unary.flatten(1).numpy())
            field.addPairwiseGaussian(sxy=3, compat=3)
            field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
            return torch.from_numpy(np.array(field.inference(10))).view_as(unary)

        def same() -> None:
            got, want = ops.dense_crf(**given)[0], theirs()
            close(got, want, limit=SAME_MARGINALS)
            if (agree := (got.argmax(0) == want.argmax(0)).double().mean()) < 0.999:
                raise AssertionError(f"labels are the same at {agree:.2%} of the pixels")

        return lambda: ops.dense_crf(**given), theirs, same

    return make


def _contours(scope: Scope) -> Contest:
    import cv2

    side = 224 // scope.shrink
    maps = F.interpolate(torch.rand(4, 1, 7, 7), (side, side), mode="bicubic")[:, 0].clamp(0, 1).mul(255).byte()
    images = list(maps.numpy())

    def theirs() -> list[list[Any]]:
        found = []
        for image in images:
            for level in range(len(LEVELS)):
                _, above = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
                found.append(list(cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]))
        return found

    def same() -> None:
        boxes = ops.component_boxes(maps, LEVELS)
        want = [[cv2.contourArea(contour) for contour in found] for found in theirs()]
        if [part.tolist() for part in boxes.polygon_area.tensor_split(boxes.offsets[1:-1])] != want:
            raise AssertionError("the areas of the contours differ")

    return lambda: ops.component_boxes(maps, LEVELS), theirs, same


def _confusion(counts: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Scope], Contest]:
    """counts: (predicted, truth), int64 [H, W] each, truth 255 unknown -> [C + 1, C + 1], rows the truth's."""

    def make(scope: Scope) -> Contest:
        draw = Source("cpu", scope.shrink, True)
        truth = (draw.uniform(draw.side(375), draw.side(500)) * (CLASSES + 2)).long().numpy()
        truth[truth == CLASSES + 1] = 255
        maps, classes, thresholds = draw.uniform(2, *truth.shape), torch.tensor([3, 14]), torch.arange(10, 30) / 64
        names, small = np.array([0, 4, 15]), torch.from_numpy(truth).to(torch.uint8)

        def ours() -> Tensor:
            return ops.threshold_sweep(maps, classes, small, thresholds, CLASSES)

        def theirs() -> Tensor:
            found = []
            for threshold in thresholds.tolist():
                levels = np.pad(maps.numpy(), ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
                found.append(counts(names[levels.argmax(0)], truth))
            return torch.from_numpy(np.stack(found))

        def same() -> None:
            if not torch.equal(ours(), theirs()):
                raise AssertionError("the confusion matrices differ")

        return ours, theirs, same

    return make


def _by_numpy(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    side, known = CLASSES + 1, truth != 255
    return np.bincount(side * truth[known] + predicted[known], minlength=side**2).reshape(side, side)


def _by_torchmetrics(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    given = torch.from_numpy(predicted), torch.from_numpy(truth)
    return multiclass_confusion_matrix(*given, num_classes=CLASSES + 1, ignore_index=255, validate_args=False).numpy()


def _of_case(case: Case) -> Duel:
    def make(scope: Scope) -> Contest:
        given = {ours: case.arguments(shrink=scope.shrink, channels_last=ours) for ours in (True, False)}
        own, other = getattr(ops, case.stem), case.eager(given[False])

        def right() -> None:
            check(case.stem, own, given[True])
            check(case.stem, other, given[False], limit=case.peer_error)

        return lambda: own(**given[True]), lambda: other(**given[False]), right

    return Duel(f"{case.stem}, {case.name}", "PyTorch, eager", "", make)


DUELS = (
    Duel("AdvCAM of a photo, 2 + 4 steps", "the released loop's way", "", _released_loop),
    Duel("Grad-CAM of a batch", "pytorch-grad-cam", "grad-cam", _grad_cam),
    Duel("Grad-CAM of a batch", "torchcam", "torchcam", _torchcam),
    Duel("dense CRF, 2 labels", "pydensecrf2", "pydensecrf2", _dense_crf(2)),
    Duel("dense CRF, 21 labels", "pydensecrf2", "pydensecrf2", _dense_crf(21)),
    Duel("boxes of 4 maps at 256 levels", "OpenCV's contours", "opencv-python-headless", _contours),
    Duel("confusion at 20 thresholds", "NumPy, a pass each", "", _confusion(_by_numpy)),
    Duel("confusion at 20 thresholds", "torchmetrics, a pass each", "torchmetrics", _confusion(_by_torchmetrics)),
    *(_of_case(case) for case in CASES if case.stem != "dense_crf" and "bf16" not in case.name),
)
