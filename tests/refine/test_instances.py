"""Instances: maps cut by where displacements lead, beside a plain transcription of the same steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refine_pictures import toward_centres

from advcam_fast import ops
from advcam_fast.refine import RefineConfig, instances_of

SIZE, GRID = (61, 83), (16, 21)
IRN = RefineConfig.preset("irn")
PLAIN = replace(IRN, walk="none", power=1.0)


def two_objects() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One map with two bright blocks that touch, the displacement of each to its centre, and an image."""
    maps = torch.zeros(1, *GRID)
    maps[0, 3:11, 2:10], maps[0, 3:11, 10:17] = 0.9, 1.0
    return maps, toward_centres([(7, 5), (7, 13)], GRID), torch.full((3, *SIZE), 90, dtype=torch.uint8)


def test_objects_that_touch_are_told_apart() -> None:
    maps, displacement, image = two_objects()
    found = instances_of(maps, image, PLAIN, None, displacement)
    assert [one.which for one in found] == [0, 0]
    scores = [one.score for one in found]
    assert scores[0] == pytest.approx(0.9, abs=0.02) and scores[1] == 1
    left, right = (one.mask for one in found)
    assert not bool((left & right).any())
    rows, columns = (left.nonzero()[:, axis] for axis in (0, 1))
    assert (int(rows.min()) // 4, int(rows.max()) // 4) == (2, 11)
    assert int(columns.max()) < 41 and int(right.nonzero()[:, 1].min()) >= 38


def naive(
    maps: torch.Tensor, config: RefineConfig, boundary: torch.Tensor, displacement: torch.Tensor
) -> list[tuple[int, float, np.ndarray]]:
    """Every pair of map and cluster at the image's size, all at once, and parts by flood fill."""
    labels = ops.centroid_walk(displacement).labels
    clusters = labels.unique().tolist()
    parts = torch.stack([one * (labels == cluster) for one in maps**config.power for cluster in clusters])
    walked = ops.random_walk(parts, boundary, config.radius, config.beta, config.walk_steps)
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[
        0, :, : SIZE[0], : SIZE[1]
    ]
    large = large / large.max()
    winner = torch.cat([torch.full((1, *SIZE), config.background), large]).argmax(0).numpy()
    found = []
    for number in range(len(parts)):
        mask = winner == number + 1
        for part in flood(mask):
            if part.sum() >= config.least_instance * part.size:
                found.append((number // len(clusters), float((large[number].numpy() * part).max()), part))
    return found


def flood(mask: np.ndarray) -> list[np.ndarray]:
    left, parts = mask.copy(), []
    while left.any():
        part, todo = np.zeros_like(mask), [tuple(np.argwhere(left)[0])]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and left[y, x]:
                left[y, x], part[y, x] = False, True
                todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        parts.append(part)
    return parts


@pytest.mark.parametrize("least", [0.0, 0.02])
def test_equal_to_the_plain_transcription(least: float) -> None:
    draw = torch.Generator().manual_seed(3)
    blobs = F.interpolate(torch.rand(1, 3, 4, 5, generator=draw), GRID, mode="bicubic")[0].clamp(0, 1)
    maps, boundary = blobs / blobs.amax((1, 2), keepdim=True), torch.rand(GRID, generator=draw) * 0.4
    displacement = toward_centres([(3, 3), (12, 6), (7, 17)], GRID) + torch.randn(2, *GRID, generator=draw)
    config = replace(IRN, walk_steps=16, least_instance=least, background=0.3)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    found, wanted = (
        instances_of(maps, image, config, boundary, displacement),
        naive(maps, config, boundary, displacement),
    )
    assert len(wanted) > 4, "few instances prove little"
    assert [one.which for one in found] == [one[0] for one in wanted]
    for ours, (_, score, mask) in zip(found, wanted, strict=True):
        assert ours.score == pytest.approx(score, rel=1e-5)
        assert np.array_equal(ours.mask.numpy(), mask)


def test_small_parts_are_left_out() -> None:
    maps, displacement, image = two_objects()
    every = instances_of(maps, image, replace(PLAIN, least_instance=0.0), None, displacement)
    smaller = min(int(one.mask.sum()) for one in every)
    limit = (smaller + 1) / image[0].numel()
    assert len(instances_of(maps, image, replace(PLAIN, least_instance=limit), None, displacement)) == len(every) - 1


def test_weak_maps_have_instances_and_what_only_equals_the_background_has_none() -> None:
    _, displacement, image = two_objects()
    maps = torch.zeros(2, *GRID)
    maps[0, 3:11, 2:8], maps[1, 3:11, 11:17] = 1.0, 0.4
    weak = instances_of(maps, image, replace(PLAIN, background=0.3), None, displacement)
    assert [(one.which, round(one.score, 6)) for one in weak] == [(0, 1.0), (1, 0.4)]
    maps[1] *= 1.25
    config = replace(PLAIN, background=0.5)
    assert [one.which for one in instances_of(maps, image, config, None, displacement)] == [0]


@pytest.mark.parametrize("count", [0, 1])
def test_maps_of_nothing_have_no_instances(count: int) -> None:
    _, displacement, image = two_objects()
    assert instances_of(torch.zeros(count, *GRID), image, PLAIN, None, displacement) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    grid = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    found = instances_of(torch.ones(1, *grid), image, IRN, torch.zeros(grid), torch.zeros(2, *grid))
    assert [bool(one.mask.all()) for one in found] == [True]


def test_what_does_not_fit_is_named() -> None:
    maps, displacement, image = two_objects()
    with pytest.raises(ValueError, match=r"a displacement of \[2, 16, 20\] came, wanted is \[2, 16, 21\]"):
        instances_of(maps, image, PLAIN, None, displacement[..., :20])
    with pytest.raises(ValueError, match="walk: boundary came without a boundary"):
        instances_of(maps, image, IRN, None, displacement)
    with pytest.raises(ValueError, match=r"maps of \[1, 16, 20\] came"):
        instances_of(maps[..., :20], image, PLAIN, None, displacement)
