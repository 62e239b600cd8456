"""What a classifier in training sees: sizes, places, and the same again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf
from train.classifier_toy import CONFIG, Squares

from advcam_fast.train import RECIPES, ClassifierConfig
from advcam_fast.train.classifier_views import Views, by_shape, stacked

VOC = dataclasses.replace(RECIPES["voc-cvpr2021"], crop=64, sizes=(40, 80), test_side=24)


class Slope:
    """One image whose green is its row, its red its column, its blue full."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int, /) -> tuple[Tensor, list[int]]:
        image = torch.full((3, 60, 90), 255, dtype=torch.uint8)
        image[0], image[1] = torch.arange(90), torch.arange(60)[:, None]
        return image, [0, 2]


def plain(image: Tensor) -> Tensor:
    return image.float()


@pytest.mark.parametrize("view", ["long-side", "random-area", "square"])
def test_a_place_gives_the_same_view_again(view: str) -> None:
    sizes = (0.4, 1.0) if view == "random-area" else (40.0, 80.0)
    config = dataclasses.replace(CONFIG, view=view, sizes=sizes, crop=40)
    one, again = Views(Squares(), plain, 3, config), Views(Squares(), plain, 3, config)
    before = torch.random.get_rng_state()
    first = one[2, 5]
    assert torch.equal(torch.random.get_rng_state(), before)  # no number of the process is used up
    torch.rand(3)
    assert torch.equal(first.image, again[2, 5].image) and first.image.shape == (3, 40, 40)
    other = Views(Squares(), plain, 3, dataclasses.replace(config, seed=1))
    for different in (one[3, 5], other[2, 5]):
        assert not torch.equal(first.image, different.image)


def test_long_sides_are_drawn_and_the_rest_is_the_mean_colour() -> None:
    views, widths, mirrored = Views(Slope(), plain, 3, VOC), [], 0
    for epoch in range(60):
        view = views[epoch, 0]
        assert view.classes.tolist() == [1, 0, 1] and view.image.shape == (3, 64, 64)
        there = view.image[2] > 200
        assert not view.image[:, ~there].any()
        widths.append(int(there.any(0).sum()))
        columns = view.image[0][there.any(1)][0][there.any(0)]
        mirrored += int(columns[0] > columns[-1])
    assert min(widths) < 45 and max(widths) == 64  # of long sides 40 to 80, cut at 64
    assert 15 < mirrored < 45


def test_sides_of_the_paper_are_drawn_from_320_to_640() -> None:
    views = Views(Slope(), plain, 3, dataclasses.replace(RECIPES["voc-cvpr2021"], crop=640))
    widths = [int((views[epoch, 0].image[2] > 200).any(0).sum()) for epoch in range(40)]
    assert 320 <= min(widths) < 345 and 615 < max(widths) <= 640


def test_a_whole_image_is_judged_at_its_own_shape() -> None:
    assert Views(Slope(), plain, 3, VOC)[None, 0].image.shape == (3, 24, 36)
    square = dataclasses.replace(RECIPES["cub-wsol"], test_side=24)
    view = Views(Slope(), plain, 3, square)[None, 0].image
    expected = tvf.resize(Slope()[0][0], [24, 24], tvf.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(view, expected.float())


def test_color_changes_no_place() -> None:
    config = dataclasses.replace(VOC, color=True, mirror=False)
    plain_views, colored = (Views(Slope(), plain, 3, dataclasses.replace(config, color=on)) for on in (False, True))
    for epoch in range(5):
        one, other = plain_views[epoch, 0].image, colored[epoch, 0].image
        assert not torch.equal(one, other)
        assert torch.equal(one[2] > 0, other.amax(0) > 0)


def test_an_image_that_cannot_be_read_weighs_nothing() -> None:
    views = Views(Squares(broken=4), plain, 3, CONFIG)
    batch = stacked([views[0, 3], views[0, 4]])
    assert batch.weights.tolist() == [1, 0] and batch.problems == {4: "4.png: the file is empty"}
    assert batch.images.shape == (2, 3, 24, 24) and not batch.images[1].any() and not batch.classes[1].any()


def test_sizes_are_kept_apart() -> None:
    views = Views(Squares(6), plain, 3, dataclasses.replace(CONFIG, test_side=36))
    groups = by_shape([views[None, index] for index in range(6)])
    assert sorted(index for group in groups for index in group.indices) == list(range(6))
    assert len({group.images.shape[2:] for group in groups}) == len(groups) > 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"view": "center"}, "view: center came, wanted is long-side or random-area or square"),
        ({"sizes": (320.0, 640.0)}, "sizes: .* wanted is two numbers above 0 to 1, the smaller one first, for random"),
        ({"sizes": (0.9, 0.2)}, "the smaller one first"),
        ({"rate": 0.0}, "rate: 0.0 came, wanted is above 0"),
        ({"ema": 1.0}, "ema: 1.0 came, wanted is 0 to below 1"),
        ({"frozen_stages": 6}, "frozen_stages: 6 came, wanted is 0 to 5"),
        ({"batch": 0}, "batch: 0 came, wanted is 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClassifierConfig(**change)  # type: ignore[arg-type]


def test_the_rates() -> None:
    voc, steps = RECIPES["voc-cvpr2021"], 100
    assert [voc.share(step, steps, 20) for step in (0, 50, 99)] == pytest.approx([1, 0.5**0.9, 0.01**0.9])
    modern = dataclasses.replace(ClassifierConfig(), warm_up=0.1)
    shares = [modern.share(step, steps, 5) for step in range(steps)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1 and shares[55] == pytest.approx(0.5) and 0 < shares[99] < 0.001
    cub = RECIPES["cub-wsol"]
    assert [cub.share(step, 500, 10) for step in (0, 149, 150, 300)] == pytest.approx([1, 1, 0.1, 0.01])
