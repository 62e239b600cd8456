"""Box and pixel measures against the common evaluator, written plainly with OpenCV."""

from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")

from metrics import plain_evaluator as plain  # noqa: E402

from advcam_fast.data import open_dataset, read_image  # noqa: E402
from advcam_fast.metrics.bootstrap import draw_weights  # noqa: E402
from advcam_fast.metrics.localization import (  # noqa: E402
    LEVELS,
    BoxMeter,
    PixelMeter,
    box_overlaps,
    normalised,
    overlaps_by_level,
    pixel_histograms,
    scaled_box,
    score_map,
    threshold_of,
)


def smooth(generator: np.random.Generator, coarse: int, height: int, width: int) -> np.ndarray:
    noise = generator.random((coarse, coarse), dtype=np.float32)
    return np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def random_boxes(generator: np.random.Generator, count: int, height: int, width: int) -> list[list[int]]:
    xs, ys = (np.sort(generator.integers(0, side, (count, 2)), 1) for side in (width, height))
    return [[x0, y0, x1, y1] for (x0, x1), (y0, y1) in zip(xs.tolist(), ys.tolist(), strict=True)]


def box_figures(maps: list[np.ndarray], truths: list[list[list[int]]]) -> dict[str, float]:
    meter = BoxMeter()
    for number, (scores, truth) in enumerate(zip(maps, truths, strict=True)):
        meter.add(number, overlaps_by_level(torch.from_numpy(scores), truth))
    summary = meter.summary(draw_weights(len(maps), 20), None)
    return {name: summary[name]["value"] for name in ("MaxBoxAcc", "MaxBoxAccV2")}


@pytest.mark.parametrize("coarse", [3, 7, 20])
def test_box_accuracies_are_the_evaluators(coarse: int) -> None:
    generator = np.random.default_rng(coarse)
    sizes = generator.integers(40, 500, (8, 2)).tolist()
    maps = [plain.score_map(smooth(generator, coarse, *size)) for size in sizes]
    maps[3] = np.zeros_like(maps[3])  # without a contour
    maps[4] = maps[4] * np.float32(0.999)  # the greatest level is not 255
    maps[4][0, 0] = 1
    truths = [
        [plain.scaled(box, *size) for box in random_boxes(generator, 1 + number % 3, *size)]
        for number, size in enumerate(sizes)
    ]
    truths[3].append([0, 0, 0, 1])  # half of it is what stands for nothing found
    for number, map_ in enumerate(maps[:3]):  # boxes that are found
        boxes, largest = plain.boxes_at(map_, 0.4)
        truths[number][0] = boxes[largest if number < 2 else -1]
    wanted = plain.box_accuracies(maps, truths)
    assert box_figures(maps, truths) == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted["MaxBoxAcc"] < 1


def test_raccoons(real_data: Path) -> None:
    dataset = open_dataset(f"csv:{real_data / 'raccoons/boxes.csv'}")
    maps, truths = [], []
    for item in dataset.items[:12]:
        image = read_image(item.path)
        size = int(image.shape[1]), int(image.shape[2])
        heat = image.float().mean(0).numpy() / 255  # any map of a photograph will do
        maps.append(plain.score_map(cv2.blur(heat, (25, 25))))
        assert isinstance(item.boxes, tuple)
        truths.append([plain.scaled(box[1:], *size) for box in item.boxes])
        assert [list(scaled_box(box[1:], *size)) for box in item.boxes] == truths[-1]
    assert box_figures(maps, truths) == pytest.approx(plain.box_accuracies(maps, truths), abs=1e-12)
    masks = []
    for boxes in truths:
        mask = np.zeros((224, 224), np.uint8)
        for x0, y0, x1, y1 in boxes:
            mask[y0 : y1 + 1, x0 : x1 + 1] = 1
        mask[:, 200:] = 255
        masks.append(mask)
    assert pixel_figure(maps, masks) == pytest.approx(plain.pixel_average_precision(maps, masks), abs=1e-12)


def pixel_figure(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    meter = PixelMeter()
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        meter.add(number, pixel_histograms(torch.from_numpy(scores), torch.from_numpy(mask)))
    return meter.summary(draw_weights(len(maps), 20))["PxAP"]["value"]


def test_pixel_average_precision_is_the_evaluators() -> None:
    generator = np.random.default_rng(0)
    maps = [plain.score_map(smooth(generator, 9, 60, 80)) for _ in range(6)]
    maps[2] = np.zeros_like(maps[2])
    maps[3] = np.round(maps[3] * 1000).astype(np.float32) / 1000  # at the edges of the bins
    masks = [(map_ + 0.3 * generator.random(map_.shape) > 0.7).astype(np.uint8) for map_ in maps]
    for mask in masks[::2]:
        mask[:40] = 255
    masks[1][:] = 0
    wanted = plain.pixel_average_precision(maps, masks)
    assert 0.1 < wanted < 0.99
    assert pixel_figure(maps, masks) == pytest.approx(wanted, abs=1e-12)


def test_score_maps_are_opencvs_within_rounding() -> None:
    generator = np.random.default_rng(1)
    for height, width in ((500, 375), (94, 125), (224, 224), (7, 7), (1, 30), (640, 31)):
        cam = smooth(generator, 6, height, width)
        ours = score_map(torch.from_numpy(cam)).numpy()
        assert ours.dtype == np.float32 and ours.max() == 1 and ours.min() == 0
        assert np.abs(ours - plain.score_map(cam)).max() < 2e-6
    assert not score_map(torch.full((20, 30), 0.5)).any()
    assert not normalised(torch.tensor([[0.0, float("nan")]])).any()


def test_overlaps_are_inclusive() -> None:
    generator = np.random.default_rng(2)
    one, other = random_boxes(generator, 40, 30, 30), random_boxes(generator, 30, 30, 30)
    found = box_overlaps(torch.tensor(one), torch.tensor(other))
    assert found.tolist() == [[plain.overlap(a, b) for b in other] for a in one]


def test_levels_stand_for_the_evaluators_thresholds() -> None:
    assert sorted({int(t * 255) for t in plain.THRESHOLDS}) == list(range(LEVELS))
    for level in range(LEVELS):
        assert int(threshold_of(level) * 255) == level
        assert int((threshold_of(level) - 0.001) * 255) < level or level == 0


def test_top_k_wants_class_and_box_right() -> None:
    scores = torch.zeros(224, 224)
    scores[20:60, 30:90] = 1
    right = overlaps_by_level(scores, [[30, 20, 89, 59]])
    wrong = overlaps_by_level(scores, [[150, 150, 200, 200]])
    meter = BoxMeter()
    for number, (overlaps, rank) in enumerate([(right, 0), (right, 3), (right, 5), (wrong, 0), (None, None)]):
        meter.add(number, overlaps, rank)
    summary = meter.summary(draw_weights(5, 50), predicted=5)
    assert (summary["counted"], summary["without_map"]) == (5, 1)
    assert summary["Top-1 Loc"]["value"] == 1 / 5
    assert summary["Top-5 Loc"]["value"] == 2 / 5
    assert "MaxBoxAcc" not in summary, "not every image has a map of its true class"
    assert "Top-5 Loc" not in meter.summary(draw_weights(5, 50), predicted=1)
    given = meter.summary(draw_weights(5, 50), None)
    assert given["MaxBoxAcc"] == given["GT-known Loc"] | {"curve": given["MaxBoxAcc"]["curve"]}
    assert given["MaxBoxAcc"]["value"] == 3 / 5 == given["MaxBoxAcc"]["curve"][0]


def test_no_true_pixel_is_told() -> None:
    meter = PixelMeter()
    meter.add(0, pixel_histograms(torch.rand(5, 5), torch.zeros(5, 5, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="no pixel of the set is foreground"):
        meter.summary(draw_weights(1, 5))
