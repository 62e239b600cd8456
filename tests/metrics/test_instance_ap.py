import pytest
import torch
from torch import Tensor

from advcam_fast.metrics.instance_ap import Instance, encoded, instance_ap


def square(x: int, y: int, side: int) -> Tensor:
    mask = torch.zeros(200, 200, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def instance(category: int, x: int, y: int, side: int, score: float = 0.0, crowd: bool = False) -> Instance:
    return Instance(category, encoded(square(x, y, side)), score, crowd)


def test_what_is_found_exactly_has_an_ap_of_one() -> None:
    truth = [instance(0, 10, 10, 20), instance(1, 100, 100, 50)]
    found = [one._replace(score=0.5) for one in truth]
    result = instance_ap([(truth, found), ([], [])])
    assert {name: result[name] for name in ("AP", "AP50", "AP75", "AP small", "AP medium")} == dict.fromkeys(
        ("AP", "AP50", "AP75", "AP small", "AP medium"), pytest.approx(1)
    )
    assert result["AP large"] == -1, "there is none"


def test_a_square_that_is_off_counts_at_the_thresholds_it_reaches() -> None:
    # 40 x 40, shifted by 6: 34 · 40 of 46 · 40, an IoU of .739: right at .50 .55 .60 .65 .70
    result = instance_ap([([instance(3, 20, 20, 40)], [instance(3, 26, 20, 40, 0.9)])])
    assert (result["AP"], result["AP50"], result["AP75"]) == (pytest.approx(0.5), pytest.approx(1), 0)


def test_classes_scores_and_crowds() -> None:
    truth, right = [instance(0, 20, 20, 40)], instance(0, 20, 20, 40, 0.3)
    assert instance_ap([(truth, [right._replace(category=1)])])["AP"] == 0
    below = instance_ap([(truth, [right, instance(0, 120, 120, 40, 0.2)])])["AP"]
    above = instance_ap([(truth, [right, instance(0, 120, 120, 40, 0.4)])])["AP"]
    assert (below, above) == (pytest.approx(1), pytest.approx(0.5))
    crowd = [*truth, instance(0, 110, 110, 60, crowd=True)]
    assert instance_ap([(crowd, [right, instance(0, 120, 120, 40, 0.4)])])["AP"] == pytest.approx(1)


def test_nothing_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert instance_ap([([instance(0, 20, 20, 40)], [])])["AP"] == 0
    assert capsys.readouterr().out == "", "pycocotools' own talk is no output of ours"
