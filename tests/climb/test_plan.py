"""Batches that fit in memory, and views that are made while others are climbed."""

import dataclasses

import pytest
import torch
from networks import photo, tensor, tiny

from advcam_fast import ClimbConfig
from advcam_fast.climb import MapMaker, maps
from advcam_fast.climb.plan import View
from advcam_fast.climb.views import Views

CONFIG = dataclasses.replace(
    ClimbConfig.preset("voc-cvpr2021"), steps=2, scales=(1.0,), steps_at_scale={}, dtype="fp64"
)
IMAGES = [tensor(photo(30, 41, seed)) for seed in range(5)]


def pair_bytes(maker, height=30, width=41):
    return int(maps.KEPT_BY_KERNELS * maker.climber.features.bytes_per_pixel * 2 * height * width)


def test_a_batch_is_what_fits_in_memory(monkeypatch):
    maker = MapMaker(tiny(), CONFIG, max_pairs=64)
    want = maker.compute(IMAGES, [[0, 1]] * 5)
    free = 4 * pair_bytes(maker) + 8
    monkeypatch.setattr(maps, "available_bytes", lambda device: free)
    climb, seen = maker.climber.climb, []
    monkeypatch.setattr(maker.climber, "climb", lambda *given: seen.append((len(given[0]), given[3])) or climb(*given))
    for result, wanted in zip(maker.compute(IMAGES, [[0, 1]] * 5), want, strict=True):
        assert torch.allclose(result.full, wanted.full, atol=1e-9)
    assert seen == [(2, 4), (2, 4), (1, 4)]  # two images of two labels each make four pairs
    assert maker.max_pairs == 64, "memory may be there again"


def test_too_little_memory_for_one_pair_says_how_much_is_needed(monkeypatch):
    maker = MapMaker(tiny(), CONFIG)
    need = pair_bytes(maker, 400, 1000)
    monkeypatch.setattr(maps, "available_bytes", lambda device: need // 3)
    text = rf"to climb it at 1000 x 400 takes about {need / 1e9:.1f} GB, {need / 3e9:.1f} GB are free"
    with pytest.raises(MemoryError, match=text):
        maker.compute([tensor(photo(400, 1000))], [[1]])
    assert need > 5e7, "a message of 0.0 GB would say nothing"
    assert maker.compute(IMAGES[:1], [[1]])[0].full.any()


def test_where_memory_is_not_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(maps, "available_bytes", lambda device: None)
    assert MapMaker(tiny(), CONFIG, max_pairs=2).compute(IMAGES[:1], [[1]])[0].full.any()


def test_views_made_ahead_are_those_made_on_demand():
    config = ClimbConfig.preset("general")
    order = [View(image, scale) for image in range(3) for scale in range(3)]
    with Views(IMAGES, config, order) as ahead, Views(IMAGES, config) as on_demand:
        for view in [*order, order[0]]:
            assert torch.equal(ahead.resized(view), on_demand.resized(view))
            assert ahead.resized(view).shape[1:] == on_demand.size(view)


def test_a_view_that_cannot_be_made_ahead_is_told_where_it_is_wanted():
    config = dataclasses.replace(CONFIG, scales=(1.0, 1e6))
    with Views(IMAGES, config, [View(0, 1), View(0, 0)]) as views:
        assert views.resized(View(0, 0)).shape == (3, 30, 41)
        with pytest.raises(RuntimeError, match="over the limit of 25,000,000 pixels"):
            views.resized(View(0, 1))
