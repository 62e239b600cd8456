"""Counts, curves, sizes, boundaries and intervals of segmentation against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from advcam_fast.errors import UsageError
from advcam_fast.metrics.bootstrap import GROUPS, GroupSums, draw_weights, known_interval
from advcam_fast.metrics.boundary import band_width, boundary_counts, eroded
from advcam_fast.metrics.foreground_iou import bootstrap_best, interval
from advcam_fast.metrics.segmentation import SIZES, SegmentationMeter, count_maps, count_mask

CLASSES = 5
NAMES = [f"c{number}" for number in range(CLASSES)]
THRESHOLDS = torch.tensor([0.0, 0.2, 0.45, 0.9], dtype=torch.float64)


def example(seed: int, height: int = 37, width: int = 50) -> tuple[Tensor, list[int], Tensor]:
    """Maps of 0 to 3 classes, and a truth of blocks with ignored pixels and perhaps other classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(CLASSES, generator=generator)[: seed % 4].tolist()
    maps = torch.rand(len(classes), height, width, generator=generator)
    maps = torch.round(maps * 10) / 10 if seed % 2 else maps  # ties between maps and with thresholds
    blocks = torch.randint(-2, CLASSES + 2, (4, 5), generator=generator)
    truth = blocks.repeat_interleave(10, 0).repeat_interleave(10, 1)[:height, :width]
    truth = torch.where(truth == CLASSES + 1, 255, truth.clamp(min=0))
    return maps, classes, truth.to(torch.uint8)


def predicted(maps: Tensor, classes: list[int], threshold: float) -> np.ndarray:
    labels = np.zeros(maps.shape[1:], np.int64)
    best = np.full(maps.shape[1:], np.float32(threshold))
    for map_, c in zip(maps.numpy(), classes, strict=True):
        labels, best = np.where(map_ > best, c + 1, labels), np.maximum(best, map_)
    return labels


def plain_counts(labels: np.ndarray, truth: np.ndarray, value: int) -> list[int]:
    known = truth != 255
    a, b = (labels == value) & known, (truth == value) & known
    return [int((a & b).sum()), int(a.sum()), int(b.sum())]


def plain_band(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a pixel outside of it, or of the image, within the width of the band."""
    height, width = mask.shape
    reach = max(1, round(0.02 * math.hypot(height, width)))
    padded = np.pad(mask, reach)
    inner = np.ones_like(mask)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            inner &= padded[dy : dy + height, dx : dx + width]
    return mask & ~inner


@pytest.mark.parametrize("seed", range(12))
def test_counts_of_an_image_are_the_plain_ones(seed: int) -> None:
    maps, classes, truth = example(seed)
    counts = count_maps(maps, classes, truth, THRESHOLDS)
    there = {0, *(c + 1 for c in classes), *truth.unique().tolist()} - {255}
    assert set(counts.classes.tolist()) == there
    plain = truth.numpy()
    for step, threshold in enumerate(THRESHOLDS.tolist()):
        labels = predicted(maps, classes, threshold)
        for at, value in enumerate(counts.classes.tolist()):
            assert counts.pixels[step, :, at].tolist() == plain_counts(labels, plain, value)
            if value:
                bands = [plain_band((own == value) & (plain != 255)) for own in (labels, plain)]
                wanted = [int((bands[0] & bands[1]).sum()), int(bands[0].sum()), int(bands[1].sum())]
                assert counts.boundary[step, :, at].tolist() == wanted
        assert not counts.boundary[step, :, 0].any()


def test_sizes_and_objects() -> None:
    truth = torch.zeros(100, 100, dtype=torch.uint8)
    truth.view(-1)[:400] = 1  # 4.0 % of what is known, then 6.25 % and 25 %
    truth.view(-1)[400:1000] = 2
    truth.view(-1)[1000:3500] = 3
    maps = torch.stack([(truth == 1).float(), (truth == 2).float() * (torch.arange(10000).view(100, 100) % 2)])
    counts = count_maps(maps, [0, 1], truth, THRESHOLDS)
    assert [SIZES[size] for size in counts.sizes.tolist()] == ["small", "medium", "large"]
    assert counts.ious[:, 1].tolist() == [1, 0.5, 0]
    truth.view(-1)[4000:] = 255
    assert [SIZES[size] for size in count_maps(maps, [0, 1], truth, THRESHOLDS).sizes.tolist()] == [
        "medium",
        "medium",
        "large",
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_counts_as_the_maps_it_is_made_of(seed: int) -> None:
    maps, classes, truth = example(seed)
    threshold = torch.tensor([0.45], dtype=torch.float64)
    mask = torch.from_numpy(predicted(maps, classes, 0.45)).to(torch.uint8)
    of_maps, of_mask = count_maps(maps, classes, truth, threshold), count_mask(mask, truth)
    totals = []
    for counts in (of_maps, of_mask):
        meter = SegmentationMeter([0.45], NAMES)
        meter.add(0, counts)
        totals.append((meter.pixels.total, meter.boundary.total, meter.ious.total))
    assert all(torch.equal(one, other) for one, other in zip(*totals, strict=True))
    mask[:5] = 255
    empty = torch.where(mask == 255, 0, mask).to(torch.uint8)
    assert torch.equal(count_mask(mask, truth).pixels, count_mask(empty, truth).pixels)


def test_the_set_has_one_confusion_and_the_best_threshold() -> None:
    meter = SegmentationMeter(THRESHOLDS.tolist(), NAMES)
    examples = [example(seed) for seed in range(9)]
    for number, (maps, classes, truth) in enumerate(examples):
        meter.add(number, count_maps(maps, classes, truth, THRESHOLDS))
    curve = []
    for threshold in THRESHOLDS.tolist():
        sums = np.zeros((CLASSES + 1, 3))
        for maps, classes, truth in examples:
            labels = predicted(maps, classes, threshold)
            sums += [plain_counts(labels, truth.numpy(), value) for value in range(CLASSES + 1)]
        hits, one, other = sums.T
        curve.append((hits / (one + other - hits)).mean())
    assert meter.curve().tolist() == pytest.approx(curve, abs=1e-12)
    weights = draw_weights(len(examples))
    summary = meter.summary(weights, {"some": THRESHOLDS.tolist()[2:], "ours": None})
    assert summary["best"]["ours"]["miou"] == pytest.approx(max(curve), abs=1e-12)
    assert summary["best"]["ours"]["threshold"] == THRESHOLDS[int(np.argmax(curve))]
    assert summary["best"]["some"]["miou"] == pytest.approx(max(curve[2:]), abs=1e-12)
    low, high = summary["best"]["ours"]["interval"]
    assert low < max(curve) < high


def test_a_class_that_is_nowhere_does_not_count() -> None:
    meter = SegmentationMeter([0.5], NAMES)
    truth = torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8)
    meter.add(0, count_maps(torch.tensor([[[0.0, 1], [0, 0]]]), [0], truth, torch.tensor([0.5], dtype=torch.float64)))
    summary = meter.summary(draw_weights(1), {"ours": None})
    assert meter.curve().tolist() == pytest.approx([(2 / 3 + 1 / 2) / 2])
    assert summary["by_class"]["c0"] == {"iou": 0.5, "interval": (0.5, 0.5), "precision": 1.0, "recall": 0.5}
    assert summary["by_class"]["c1"] == {"iou": None, "interval": None, "precision": None, "recall": None}


def test_classes_and_boundaries_have_the_interval_of_their_samples() -> None:
    images = [example(seed) for seed in range(1, 12)]
    counts = [count_maps(maps, classes, truth, THRESHOLDS) for maps, classes, truth in images]
    meter = SegmentationMeter(THRESHOLDS.tolist(), NAMES)
    for number, own in enumerate(counts):
        meter.add(number, own)
    weights = draw_weights(len(images), 60)
    summary = meter.summary(weights, {"ours": None})
    at = THRESHOLDS.tolist().index(summary["best"]["ours"]["threshold"])
    pixels, boundary = [], []
    for drawn in weights:  # each sample by itself
        sample = np.zeros((2, 3, CLASSES + 1))
        for often, own in zip(drawn.tolist(), counts, strict=True):
            sample[:, :, own.classes] += often * np.stack([own.pixels[at], own.boundary[at]])
        with np.errstate(invalid="ignore"):
            ious = sample[:, 0] / (sample[:, 1] + sample[:, 2] - sample[:, 0])
        pixels.append(ious[0])
        boundary.append(np.nanmean(ious[1, 1:]))
    assert summary["boundary_interval"] == pytest.approx(np.quantile(boundary, (0.025, 0.975)))
    for name, samples in zip(["background", *NAMES], np.transpose(pixels), strict=True):
        wanted = np.nanquantile(samples, (0.025, 0.975))
        assert summary["by_class"][name]["interval"] == pytest.approx(wanted)
        assert wanted[0] < wanted[1]


def test_no_known_pixel_is_told() -> None:
    meter = SegmentationMeter([0.5], NAMES)
    threshold = torch.tensor([0.5], dtype=torch.float64)
    meter.add(0, count_maps(torch.rand(1, 4, 5), [0], torch.full((4, 5), 255, dtype=torch.uint8), threshold))
    with pytest.raises(UsageError, match="every pixel of the true masks is 255"):
        meter.summary(draw_weights(1, 5), {"ours": None})


@pytest.mark.parametrize(("height", "width"), [(30, 41), (5, 3), (1, 1), (1, 60), (64, 64)])
@pytest.mark.parametrize("reach", [1, 2, 5, 12])
def test_erosion_is_the_least_of_the_square(height: int, width: int, reach: int) -> None:
    levels = torch.randint(0, 9, (height, width), generator=torch.Generator().manual_seed(reach), dtype=torch.uint8)
    padded = np.pad(levels.numpy(), reach)
    wanted = [[padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1].min() for x in range(width)] for y in range(height)]
    assert eroded(levels, reach).tolist() == wanted


def test_bands_are_those_of_the_published_code() -> None:
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    for height, width in ((60, 90), (375, 500), (9, 9)):
        coarse = generator.random((2, 8, 8), dtype=np.float32)
        one, other = (cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5 for noise in coarse)
        bands = []
        for mask in (one, other):
            padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
            inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=band_width(height, width))
            bands.append(mask & (inner[1:-1, 1:-1] == 0))
        wanted = [(bands[0] & bands[1]).sum(), bands[0].sum(), bands[1].sum()]
        assert boundary_counts(torch.from_numpy(one).int(), torch.from_numpy(other), 1).tolist() == [wanted]


# intervals


def test_up_to_256_images_the_bootstrap_is_over_images() -> None:
    values = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = GroupSums((), torch.float64)
    for number, value in enumerate(values):
        sums.of(number).add_(value)
    samples = sums.resampled(draw_weights(200, 4000)) / 200
    wanted = bootstrap_best(values[:, None], 4000)
    assert float(samples.mean()) == pytest.approx(float(wanted.mean()), abs=2e-3)
    assert float(samples.std()) == pytest.approx(float(wanted.std()), rel=0.05)


def test_beyond_the_groups_hold_what_the_images_would_say() -> None:
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums, counts = GroupSums((), torch.float64), GroupSums(())
    for number, value in enumerate(values):
        sums.of(number).add_(value)
        counts.of(number).add_(1)
    weights = draw_weights(5000, 4000)
    assert weights.shape == (4000, GROUPS) and bool((weights.sum(1) == GROUPS).all())
    samples = sums.resampled(weights) / counts.resampled(weights)
    assert float(samples.std()) == pytest.approx(float(values.std()) / math.sqrt(5000), rel=0.15)
    assert float(sums.total) == pytest.approx(float(values.sum()))


def test_intervals_leave_out_samples_without_a_value() -> None:
    samples = torch.tensor([float("nan"), 0.0, 1.0, 0.5], dtype=torch.float64)
    assert known_interval(samples) == interval(samples[1:])
    assert known_interval(samples[:1]) is None
