"""Crops and their order: what is drawn, where it lies, and that it is drawn the same again."""

from __future__ import annotations

import torch
from torch import Tensor

from advcam_fast.train.batches import Batches
from advcam_fast.train.crops import Crops


def plain(image: Tensor) -> Tensor:
    return image.float() + 1  # so that 0 is what lies outside the image


def positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image that says where each pixel was, and labels that say the same, 2 to 254."""
    places = (torch.arange(height * width) % 253 + 2).view(height, width).to(torch.uint8)
    return places.expand(3, -1, -1).contiguous(), places


def test_the_crop_of_an_epochless_place_is_at_the_top_left() -> None:
    image, labels = positions(13, 22)
    crop, coarse = Crops([(image, labels)], plain, 18)[None, 0]
    want = torch.zeros(3, 18, 18)
    want[:, :13] = image[:, :, :18].float() + 1
    assert torch.equal(crop, want)
    assert coarse.shape == (5, 5)  # a cell's pixel is the third, or the last there is
    full = torch.full((18, 18), 255, dtype=torch.uint8)
    full[:13] = labels[:, :18]
    assert torch.equal(coarse, full[[2, 6, 10, 14, 17]][:, [2, 6, 10, 14, 17]])


def test_image_and_labels_move_together() -> None:
    """At scale 1 the labels say which pixel of the image is right below the middle of each cell."""
    seen = set()
    crops = Crops([positions(17, 30)], plain, 24, scales=(1.0, 1.0))
    for epoch in range(40):
        crop, labels = crops[epoch, 0]
        known = labels != 255
        assert torch.equal(crop[0, 2::4, 2::4][known], labels[known].float() + 1)
        assert not crop[0, 2::4, 2::4][~known].any()
        assert (crop > 0).all(0).sum() == 17 * 24  # all rows of the image, cut to the crop's width
        row, column = (crop[0] > 0).nonzero()[0].tolist()
        first, second = crop[0, row, column : column + 2].tolist()
        seen.add((row, int(first), second < first))
    assert {row for row, _, _ in seen} == set(range(8))
    assert len({mirrored for *_, mirrored in seen}) == 2
    assert len({first for _, first, _ in seen}) > 5


def test_scales_are_drawn_between_the_two() -> None:
    image, labels = torch.full((3, 20, 30), 9, dtype=torch.uint8), torch.ones(20, 30, dtype=torch.uint8)
    crops = Crops([(image, labels)], plain, 64, scales=(0.5, 1.5))
    sizes = []
    for epoch in range(60):
        crop, _ = crops[epoch, 0]
        inside = crop[0] > 0
        sizes.append((int(inside.any(1).sum()), int(inside.any(0).sum())))
    heights = [height for height, _ in sizes]
    assert 10 <= min(heights) <= 12 and 28 <= max(heights) <= 30
    assert all(abs(width - 1.5 * height) <= 1 for height, width in sizes)


def test_scaled_labels_stay_on_their_pixels() -> None:
    image, labels = torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)
    image[:, :, 19:], labels[:, 19:] = 200, 3  # never in the middle of a scaled pixel
    for epoch in range(20):
        crop, coarse = Crops([(image, labels)], plain, 32, scales=(0.8, 1.4))[epoch, 0]
        bright, sure = crop[0, 2::4, 2::4] > 101, coarse != 255
        assert torch.equal((coarse == 3)[sure], bright[sure])


def test_a_place_gives_the_same_crop_again() -> None:
    data = [positions(30, 40), positions(30, 40)]
    one, again, other = (Crops(data, plain, 24, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[3, 1], again[3, 1], strict=True))
    for different in (one[4, 1], one[3, 0], other[3, 1]):
        assert not torch.equal(one[3, 1][0], different[0])


def test_batches_take_every_image_once_an_epoch() -> None:
    batches = list(Batches(11, 3, 2, seed=0))
    assert len(batches) == len(Batches(11, 3, 2, seed=0)) == 6
    assert all(len(batch) == 3 for batch in batches)
    orders = [[index for batch in batches for when, index in batch if when == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    for taken in orders:
        assert len(taken) == len(set(taken)) == 9
    assert batches != list(Batches(11, 3, 2, seed=1))


def test_batches_go_on_from_any_step() -> None:
    batches = list(Batches(11, 3, 2, seed=0))
    for first in range(7):
        rest = Batches(11, 3, 2, seed=0, first=first)
        assert list(rest) == list(rest) == batches[first:] and len(rest) == 6 - first


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert [sorted(batch) for batch in Batches(2, 32, 2, seed=0)] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
