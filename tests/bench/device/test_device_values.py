"""The cases of tests/ops and of the benchmarks, in guarded and NaN-poisoned memory of the device."""

from __future__ import annotations

import pytest
import test_cam_accumulate
import test_centroid_walk
import test_climb_loss
import test_climb_step
import test_component_boxes
import test_dense_crf
import test_masked_relu
import test_max_pool
import test_random_walk
import test_threshold_sweep
import torch

from advcam_fast.bench.agreement import check
from advcam_fast.bench.cases import CASES, EVALUATION_CASES, Arguments, mapped
from advcam_fast.ops import reference

RUNS = dict(argnames="channels_last", argvalues=[False, True], ids=["contiguous", "channels_last"])


@pytest.fixture
def agree(run_of, device, guarded):
    """Runs an op on the device in guarded memory and compares all that it wrote."""

    def compare(stem: str, arguments: Arguments) -> None:
        def run(**inputs):
            with guarded:
                return run_of(stem)(**inputs)

        check(stem, run, mapped(arguments, lambda tensor: tensor.to(device)), guarded.copy)

    return compare


@pytest.mark.parametrize(**RUNS)
@pytest.mark.parametrize("types", test_climb_step.FLOAT, ids=str)
def test_climb_step_values(agree, types, channels_last) -> None:
    for shape in test_climb_step.SHAPES:
        image, gradient, network_input = test_climb_step.case(shape, *types, channels_last)
        agree(
            "climb_step",
            dict(image=image, gradient=gradient, step_size=0.08, group_size=2, network_input=network_input),
        )


@pytest.mark.parametrize(**RUNS)
@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("dtype", test_climb_loss.DTYPES, ids=str)
def test_climb_loss_values(agree, dtype, start, rectify, group_size, channels_last) -> None:
    for shape in test_climb_loss.SHAPES:
        z, target, weight, positive, initial = test_climb_loss.case(
            shape, dtype, group_size, channels_last=channels_last
        )
        options = dict(suppression=7.0, mask_threshold=0.5, rectify=rectify, group_size=group_size)
        fixed = dict(target=target, weight=weight, positive=positive, initial_map=initial if start else None)
        agree("climb_loss", dict(logit_map=z, **fixed, **options))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("sizes", "size", "resized"), test_cam_accumulate.SIZES, ids=str)
def test_cam_accumulate_values(agree, sizes, size, resized, dtype, normalise) -> None:
    maps, total = test_cam_accumulate.case(sizes, size, dtype)
    agree("cam_accumulate", dict(maps=maps, total=total, size=resized or size, normalise=normalise))


@pytest.mark.parametrize("shape", test_masked_relu.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", test_masked_relu.DTYPES, ids=str)
def test_masked_relu_values(agree, dtype, shape) -> None:
    for *on, ceiling in test_masked_relu.OPTIONS:
        x, *rest = test_masked_relu.case(shape, dtype)
        bias, residual, valid = test_masked_relu.chosen(*rest, *on)
        agree("masked_relu", dict(x=x, bias=bias, residual=residual, ceiling=ceiling, valid=valid, save=True))
    bits = torch.randint(0, 256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
    agree("masked_relu_backward", dict(gradient=x, bits=bits))


@pytest.mark.parametrize("window", test_max_pool.WINDOWS.values(), ids=test_max_pool.WINDOWS)
@pytest.mark.parametrize("dtype", test_max_pool.DTYPES, ids=str)
def test_max_pool_values(agree, dtype, window) -> None:
    names = ("kernel", "stride", "padding", "dilation")
    given = dict(zip(names, window, strict=False))
    for shape in (shape for shape in test_max_pool.SHAPES if test_max_pool.fits(shape, window)):
        x = test_max_pool.case(shape, dtype)
        agree("max_pool", dict(x=x, ceil_mode=window[4], save=True, **given))
        y, at = reference.max_pool(x, *window)
        agree("max_pool_backward", dict(gradient=y, at=at, size=shape[2:], **given))


@pytest.mark.parametrize("stem", test_random_walk.STEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", test_random_walk.OPTIONS, ids=str)
def test_walk_values(agree, stem, options, dtype) -> None:
    names = ("radius", "beta" if stem == "random_walk" else "sigma", "steps", "restart")
    for shape in test_random_walk.SHAPES:
        maps, guide = test_random_walk.case(stem, shape, dtype)
        given = {"maps": maps, "boundary" if stem == "random_walk" else "images": guide}
        agree(stem, given | dict(zip(names, test_random_walk.scaled(stem, options), strict=True)))


@pytest.mark.parametrize("every", [9, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_centroid_walk_values(agree, dtype, every) -> None:
    for height, width in ((1, 1), (1, 60), (60, 75), (131, 40)):
        field, _ = test_centroid_walk.wells(height, width, dtype, every)
        agree("centroid_walk", dict(displacement=field[None], steps=300, threshold=2.5))


@pytest.mark.parametrize("options", test_dense_crf.KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dense_crf_values(agree, dtype, options) -> None:
    for size in test_dense_crf.SIZES:
        for labels, sets in ((1, None), (3, None), (10, 2)):
            images, unary = test_dense_crf.case(size, labels, sets=sets, dtype=dtype, dark=8)
            kernels = dict(gaussian=(3.0, 3.0), bilateral=(50.0, 5.0, 10.0)) | options
            agree("dense_crf", dict(images=images, unary=unary, steps=2, **kernels))


@pytest.mark.parametrize("dtype", test_threshold_sweep.DTYPES, ids=str)
def test_threshold_sweep_values(agree, dtype) -> None:
    names = ("maps", "classes", "truth", "thresholds", "num_classes")
    for seed in range(1, 40, 2):  # on a grid that every dtype holds
        maps, classes, truth, thresholds, num_classes = test_threshold_sweep.case(seed, dtype)
        steps = torch.tensor(thresholds, dtype=torch.float64)
        agree("threshold_sweep", dict(zip(names, (maps, classes, truth, steps, num_classes), strict=True)))


def test_component_boxes_values(agree) -> None:
    for maps in test_component_boxes.various(20):
        agree("component_boxes", dict(maps=maps, levels=torch.arange(0, 256, 17)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stem}, {case.name}")
@pytest.mark.parametrize(**RUNS)
def test_cases_of_the_benchmarks(agree, case, channels_last) -> None:
    agree(case.stem, case.arguments(pairs=2, channels_last=channels_last))


@pytest.mark.parametrize("case", EVALUATION_CASES, ids=lambda case: f"{case.stem}, {case.name}")
def test_evaluation_cases_of_the_benchmarks(agree, case) -> None:
    agree(case.stem, case.arguments())
