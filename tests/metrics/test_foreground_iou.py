import pytest
import torch

from advcam_fast.metrics.foreground_iou import best_threshold, bootstrap_best, interval, iou_curve

THRESHOLDS = torch.arange(0.05, 0.95, 0.05)


def naive(heat, truth, foreground, thresholds):
    curve = []
    for t in thresholds:
        keep = truth != 255
        predicted, inside = (heat > t) & keep, (truth == foreground) & keep
        union = (predicted | inside).sum()
        curve.append(float((predicted & inside).sum() / union) if union else 0.0)
    return torch.tensor(curve, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_naive_loop(seed):
    torch.manual_seed(seed)
    heat = torch.rand(17, 23)
    heat[:3] = THRESHOLDS[seed % len(THRESHOLDS)]  # ties: not above
    truth = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(0, 4, (17, 23))]
    shuffled = THRESHOLDS[torch.randperm(len(THRESHOLDS))]
    got = iou_curve(heat, truth, 1, shuffled)
    assert torch.allclose(got, naive(heat, truth, 1, shuffled), atol=1e-6)


def test_nothing_there_is_zero():
    assert not iou_curve(torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.uint8), 1, THRESHOLDS).any()


def test_one_threshold_for_the_set():
    curves = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.6]])
    best = best_threshold(curves, torch.tensor([0.2, 0.3, 0.4]))
    assert best.value == pytest.approx(0.55)
    assert best.threshold == pytest.approx(0.4)


def test_bootstrap_is_paired():
    torch.manual_seed(0)
    base = torch.rand(50, 1, 4)
    samples = bootstrap_best(torch.cat([base, base + 0.1], 1), samples=200)
    low, high = interval(samples[:, 1] - samples[:, 0])
    assert low == pytest.approx(0.1, abs=1e-6)
    assert high == pytest.approx(0.1, abs=1e-6)
    low, high = interval(samples[:, 0])
    assert low < high


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="one size"):
        iou_curve(torch.zeros(4, 4), torch.zeros(4, 5, dtype=torch.uint8), 1, THRESHOLDS)
