"""The engine against the one-by-one loop that is written from the method's description alone."""

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from networks import MEAN, STD, photo, resnet50_stride16, tensor, tiny

from advcam_fast import ClimbConfig, UsageError, compute_maps, ops
from advcam_fast.bench.plain_loop import flip_pair, plain_maps, plain_step
from advcam_fast.climb import MapMaker
from advcam_fast.models import freeze

PAPER = ClimbConfig.preset("voc-cvpr2021")
PAPER64 = dataclasses.replace(PAPER, dtype="fp64")


def reference(model, pixels, labels, config):
    network = copy.deepcopy(model.features).double()
    return plain_maps(network, model.class_weights.double(), pixels, labels, config, model.mean, model.std)


def assert_same_maps(result, want, limit=1e-9):
    for name in ("strided", "full", "initial"):
        got, wanted = getattr(result, name), getattr(want, name)
        assert got.shape == wanted.shape
        error = (got.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= limit, f"{name}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def resnet():
    return resnet50_stride16()


@pytest.fixture(scope="module")
def resnet_cases(resnet):
    """Two sizes, two labels each, all four scales; the reference of each."""
    config = dataclasses.replace(PAPER64, steps=5, steps_at_scale={0.5: 3})
    cases = [(photo(24, 40, 1), [3, 7]), (photo(35, 18, 2), [7, 11])]
    return config, cases, [reference(resnet, pixels, labels, config) for pixels, labels in cases]


@pytest.mark.parametrize("max_pairs", [1, 3, 64])
def test_resnet50_climb_equals_the_plain_loop_whatever_the_batch(resnet, resnet_cases, max_pairs):
    config, cases, wanted = resnet_cases
    maker = MapMaker(resnet, config)
    maker.max_pairs = max_pairs
    doubled = [*cases, *cases] if max_pairs > 1 else cases
    results = maker.compute([tensor(pixels) for pixels, _ in doubled], [labels for _, labels in doubled])
    for result, want in zip(results, [*wanted, *wanted], strict=False):
        assert_same_maps(result, want)
        assert result.flags == ()


def test_resnet50_whole_climb_of_the_paper(resnet):
    """All 94 steps."""
    pixels, labels = photo(17, 22, 3), [3]
    result = compute_maps(resnet, [tensor(pixels)], [labels], PAPER64)[0]
    assert_same_maps(result, reference(resnet, pixels, labels, PAPER64))


@pytest.mark.parametrize("scale", PAPER.scales)
@pytest.mark.parametrize(("size", "label", "start"), [((40, 56), 5, 0.9), ((40, 56), 2, None), ((33, 28), 11, 1.1)])
def test_single_step_in_fp32(resnet, size, label, start, scale):
    """CAM, objective, gradient of the logit maps (through W^T also of the features) within 1e-4 of float64."""
    pair = flip_pair(photo(*size, 4), scale, MEAN, STD)
    network, head = copy.deepcopy(resnet.features).double(), resnet.class_weights.double()
    initial = plain_step(network, head, pair, [label], None, PAPER).pair_map * start if start else None
    want = plain_step(network, head, pair, [label], initial, PAPER)
    assert want.pair_map.any(), "a map of zeros would prove nothing"

    features = freeze(resnet.features)(pair.float())
    weight = -torch.ones(1, 20)
    weight[0, label] = 1
    fixed = (torch.tensor([label]), weight, resnet.positive_counts[[label]].float())
    loss = ops.climb_loss(
        resnet.logit_map(features), *fixed, None if initial is None else initial[None].float(), PAPER.suppression
    )
    got = (loss.pair_map[0], loss.objective[0], resnet.feature_gradient(loss.gradient))
    for name, a, b in zip(("CAM", "objective", "gradient"), got, want[:3], strict=True):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error <= 1e-4, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "change",
    [
        dict(score="mean"),
        dict(other_classes="present"),
        dict(other_classes="none", suppression=0.0),
        dict(other_classes="none", score="mean", mask_threshold=0.2),
        dict(steps=1, steps_at_scale={}),
        dict(steps=2, steps_at_scale={0.5: 1}),
        dict(scales=(1.0,), steps_at_scale={}),
        dict(base_side=20),
        dict(momentum=0.9),
    ],
    ids=str,
)
def test_every_setting_against_the_plain_loop(change):
    model = tiny()
    config = dataclasses.replace(PAPER64, **({"steps": 6, "steps_at_scale": {0.5: 3}} | change))
    cases = [(photo(30, 41), [0, 3, 4]), (photo(30, 41, 5), [1, 2, 4]), (photo(13, 9, 6), [2])]
    maker = MapMaker(model, config)
    for max_pairs in (1, 4):
        maker.max_pairs = max_pairs
        results = maker.compute([tensor(p) for p, _ in cases], [labels for _, labels in cases])
        for result, (pixels, labels) in zip(results, cases, strict=True):
            assert_same_maps(result, reference(model, pixels, labels, config))


def test_without_flip_is_a_pair_of_one():
    model, config = tiny(), dataclasses.replace(PAPER64, flip=False, steps=1, scales=(1.0,), steps_at_scale={})
    result = compute_maps(model, [tensor(photo(32, 48))], [[1]], config)[0]
    features = copy.deepcopy(model.features).double()(flip_pair(photo(32, 48), 1.0, MEAN, STD)[:1])
    cam = torch.einsum("k,khw->hw", model.class_weights[1].double(), features[0]).relu()
    upscaled = torch.nn.functional.interpolate(cam[None, None], (32, 48), mode="bilinear")[0, 0]
    scaled = upscaled / model.positive_counts[1]
    assert torch.allclose(result.full[0], scaled / (scaled.max() + 1e-5), atol=1e-12)


def test_same_bits_whatever_the_batch_on_a_cpu():
    model = tiny()
    images = [tensor(photo(30, 41, seed)) for seed in range(4)] + [tensor(photo(22, 60))]
    labels = [[0], [1, 2], [3], [4, 0], [2]]
    together = compute_maps(model, images, labels, PAPER)
    for image, own, result in zip(images, labels, together, strict=True):
        alone = compute_maps(model, [image], [own], PAPER)[0]
        assert torch.equal(alone.full, result.full)
        assert torch.equal(alone.strided, result.strided)


def test_a_label_does_not_depend_on_the_others():
    """Each class starts again from the clean image."""
    model, image = tiny(), tensor(photo(30, 41))
    both = compute_maps(model, [image], [[1, 3]], PAPER)[0]
    alone = compute_maps(model, [image], [[3]], PAPER)[0]
    assert torch.equal(both.full[1], alone.full[0])


def test_climbing_raises_the_score_and_widens_the_map():
    model, image = tiny(), tensor(photo(48, 64))
    config = dataclasses.replace(PAPER, other_classes="none", suppression=0.0)
    result = compute_maps(model, [image], [[1]], config)[0]
    assert (result.full > 0.3).float().mean() >= (result.initial > 0.3).float().mean()
    assert not torch.allclose(result.full, result.initial, atol=1e-2)


def test_sizes_and_extremes():
    model = tiny()
    config = dataclasses.replace(PAPER, steps=2, steps_at_scale={})
    images = [torch.full((3, 1, 1), 77, dtype=torch.uint8), tensor(photo(10, 900)), tensor(photo(33, 47))]
    for image, result in zip(images, compute_maps(model, images, [[0], [1], [2]], config), strict=True):
        height, width = image.shape[1:]
        assert result.full.shape == result.initial.shape == (1, height, width)
        assert result.strided.shape == (1, -(-height // 4), -(-width // 4))
        assert result.full.isfinite().all()


def test_a_class_without_positive_scores_is_flagged_and_zero():
    model = tiny()
    model.class_weights[2] = -model.class_weights[2].abs()
    result = compute_maps(model, [tensor(photo(30, 41))], [[1, 2]], PAPER)[0]
    assert "no_positive_score:2" in result.flags
    assert not any(flag.endswith(":1") for flag in result.flags)
    assert not result.full[1].any()
    assert result.full.isfinite().all()


def test_numbers_that_overflow_are_flagged_and_no_nan_leaves():
    model = tiny()
    model.features[6].weight.data *= 1e30
    model.features[8].weight.data *= 1e30
    result = compute_maps(model, [tensor(photo(30, 41))], [[1]], PAPER)[0]
    assert result.flags[0].startswith("not_finite:1")
    assert not result.full.any()
    assert result.initial.isfinite().all()


def test_changed_weights_are_seen():
    model, image = tiny(), tensor(photo(30, 41))
    before = compute_maps(model, [image], [[1]], PAPER)[0].full
    with torch.no_grad():
        model.features[0].weight.mul_(0.5).add_(0.01)
    assert not torch.equal(before, compute_maps(model, [image], [[1]], PAPER)[0].full)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    model, image = tiny(), tensor(photo(30, 41))
    want = compute_maps(model, [image], [[1]], PAPER)[0].full
    with mode():
        assert torch.equal(compute_maps(model, [image], [[1]], PAPER)[0].full, want)
        assert torch.equal(compute_maps(tiny(), [image.clone()], [[1]], PAPER)[0].full, want)


def test_bf16_network_climbs_an_fp32_image():
    model, image = tiny(), tensor(photo(40, 56))
    exact = compute_maps(model, [image], [[1]], dataclasses.replace(PAPER, steps=1, steps_at_scale={}))[0].full
    config = dataclasses.replace(PAPER, steps=1, steps_at_scale={}, dtype="bf16")
    assert (compute_maps(model, [image], [[1]], config)[0].full - exact).abs().max() < 0.05
    whole = compute_maps(model, [image], [[1]], dataclasses.replace(PAPER, dtype="bf16"))[0]
    assert whole.full.dtype == torch.float32
    assert whole.flags == ()


def test_mixed_is_fp32_forward_and_bf16_gradients():
    model, image = tiny(), tensor(photo(40, 56))
    one, two = ({"steps": n, "scales": (1.0,), "steps_at_scale": {}} for n in (1, 2))
    found = {
        (dtype, settings["steps"]): compute_maps(
            model, [image], [[1]], dataclasses.replace(PAPER, dtype=dtype, **settings)
        )
        for dtype in ("fp32", "mixed")
        for settings in (one, two)
    }
    full = {key: results[0].full for key, results in found.items()}
    assert torch.equal(full["mixed", 1], full["fp32", 1])  # no gradient in it
    difference = (full["mixed", 2] - full["fp32", 2]).abs().max()
    assert 0 < difference < 0.05


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    model, config = tiny(), dataclasses.replace(PAPER, steps=3, steps_at_scale={})
    images, labels = [tensor(photo(30, 41, seed)) for seed in range(5)], [[0]] * 5
    want = compute_maps(model, images, labels, config)
    maker = MapMaker(model, config)
    maker.max_pairs = 64
    climb, tried = maker.climber.climb, []

    def crowded(views, *rest):
        tried.append(len(views))
        if len(views) > 2:
            raise torch.cuda.OutOfMemoryError("planted")
        return climb(views, *rest)

    monkeypatch.setattr(maker.climber, "climb", crowded)
    for result, wanted in zip(maker.compute(images, labels), want, strict=True):
        assert (result.full - wanted.full).abs().max() < 0.05
    assert tried[:3] == [5, 2, 2]
    assert maker.max_pairs == 2, "what was found is remembered"


def test_a_view_too_large_for_any_memory_is_refused_before_it_is_made():
    config = dataclasses.replace(PAPER, scales=(100_000.0,), steps_at_scale={})
    with pytest.raises(RuntimeError, match="scaled by 100000 it is over the limit of 25,000,000 pixels"):
        compute_maps(tiny(), [tensor(photo(30, 41))], [[1]], config)


def test_no_labels_give_no_maps():
    result = compute_maps(tiny(), [tensor(photo(30, 41))], [[]], PAPER)[0]
    assert result.full.shape == (0, 30, 41)
    assert result.strided.shape == (0, 8, 11)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        ([tensor(photo(9, 9)).float()], [[0]], r"images\[0\]: torch.float32 \(3, 9, 9\) came, wanted is a uint8"),
        ([tensor(photo(9, 9))[:1]], [[0]], r"\(1, 9, 9\) came"),
        ([photo(9, 9)], [[0]], "ndarray came"),
        ([tensor(photo(9, 9))[:, :0]], [[0]], "at least one pixel"),
        ([tensor(photo(9, 9))], [[5]], r"labels\[0\]: class 5 came, the head has classes 0 to 4"),
        ([tensor(photo(9, 9))], [[-1]], "class -1 came"),
        ([tensor(photo(9, 9))], [[1, 1]], "each class once"),
        ([tensor(photo(9, 9))], [[1.0]], r"labels\[0\]: 1.0 came, wanted are class indices"),
        ([tensor(photo(9, 9))], [torch.tensor([1, 2])], "wanted are class indices"),
        ([tensor(photo(9, 9))], [], "equally many"),
    ],
)
def test_wrong_arguments_are_named(images, labels, text):
    with pytest.raises(UsageError, match=text):
        compute_maps(tiny(), images, labels, PAPER)
