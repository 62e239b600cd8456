"""Images of different sizes in one batch: each has the maps of its own run."""

import dataclasses

import pytest
import torch
from networks import photo, tensor, tiny

from advcam_fast import ClimbConfig, load_model
from advcam_fast.bench.networks import random_model
from advcam_fast.climb import MapMaker
from advcam_fast.climb.canvas import Canvas
from advcam_fast.climb.plan import MOST_WASTE, plan_batches, scaled_size

PAPER64 = dataclasses.replace(
    ClimbConfig.preset("voc-cvpr2021"), dtype="fp64", steps=4, scales=(0.5, 1.0), steps_at_scale={0.5: 3}
)
SIZES = [(96, 128), (99, 125), (97, 131), (100, 121), (96, 128)]


def cases(model):
    images = [tensor(photo(*size, seed)) for seed, size in enumerate(SIZES)]
    return images, [[1, 3] if seed < 4 else [2, 0] for seed in range(len(SIZES))]


def assert_same(model, config, limit=1e-10):
    images, labels = cases(model)
    maker = MapMaker(model, config, max_pairs=16)
    assert maker.climber.features.ragged
    seen = []
    climb = maker.climber.climb
    maker.climber.climb = lambda views, *rest: seen.append({tuple(v.shape) for v in views}) or climb(views, *rest)
    together = maker.compute(images, labels)
    assert max(len(sizes) for sizes in seen) > 2, "no batch had several sizes: this proves nothing"
    alone = MapMaker(model, config)
    for image, own, result in zip(images, labels, together, strict=True):
        want = alone.compute([image], [own])[0]
        assert result.flags == want.flags
        for name in ("strided", "full", "initial"):
            got, wanted = getattr(result, name), getattr(want, name)
            assert got.shape == wanted.shape
            error = (got - wanted).abs().max() / wanted.abs().max()
            assert error <= limit, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(score="mean"),
        dict(flip=False),
        dict(momentum=0.9),
        dict(other_classes="present"),
        dict(other_classes="none", score="mean", suppression=0.0),
        dict(steps=1, steps_at_scale={}),
    ],
    ids=str,
)
def test_whole_climbs_are_those_of_every_image_alone(change):
    assert_same(tiny(), dataclasses.replace(PAPER64, **change))


def test_squeeze_and_excitation():
    assert_same(random_model("regnet_y_400mf"), dataclasses.replace(PAPER64, steps=3, scales=(1.0,), steps_at_scale={}))


def test_what_surrounds_an_image_takes_no_part():
    """A dark photo: zeros around it would be its brightest pixels, and the limit of the climb."""
    model = tiny()
    images = [tensor(photo(*size, seed)) // 4 for seed, size in enumerate(SIZES[:3])]
    config = dataclasses.replace(PAPER64, step_size=2.0)
    together = MapMaker(model, config, max_pairs=8).compute(images, [[1]] * 3)
    for image, result in zip(images, together, strict=True):
        alone = MapMaker(model, config).compute([image], [[1]])[0]
        assert torch.allclose(result.full, alone.full, atol=1e-9)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "mixed"])
def test_every_dtype_takes_them(dtype):
    """oneDNN and its layouts, behind a maximum over windows."""
    config = dataclasses.replace(PAPER64, dtype=dtype, steps=3, scales=(1.0,), steps_at_scale={})
    model = random_model("resnet18")
    images = [tensor(photo(23, 31)), tensor(photo(22, 29, 1))]
    results = MapMaker(model, config, max_pairs=4).compute(images, [[1], [1]])
    assert all(result.full.any() and result.flags == () for result in results)


def test_float32_batches_differ_by_rounding_alone():
    model, config = tiny(), dataclasses.replace(PAPER64, dtype="fp32", steps=2, steps_at_scale={})
    images, labels = cases(model)
    together = MapMaker(model, config, max_pairs=16).compute(images, labels)
    for image, own, result in zip(images, labels, together, strict=True):
        alone = MapMaker(model, config).compute([image], [own])[0]
        assert (result.full - alone.full).abs().max() < 1e-4


def test_canvases_of_some_pairs_hold_the_images_of_all():
    """The labels of a batch may be climbed in parts, on the images that were laid out for all."""
    model, config = tiny(), dataclasses.replace(PAPER64, scales=(1.0,))
    images, labels = cases(model)
    whole = MapMaker(model, config, max_pairs=16).climber.climb(images, torch.tensor(labels), 4, 64)
    parts = MapMaker(model, config, max_pairs=16).climber.climb(images, torch.tensor(labels), 4, 3)
    for view in range(len(images)):
        assert torch.allclose(whole.of(view).total, parts.of(view).total, atol=1e-10)
        height, width = SIZES[view]
        assert whole.of(view).total.shape == (2, -(-height // 4), -(-width // 4))


def test_a_network_that_mixes_positions_is_given_one_size_at_a_time():
    model = tiny()
    model.features.add_module("norm", torch.nn.GroupNorm(4, 24))
    model.features.add_module("last", torch.nn.ReLU())
    images, labels = cases(model)
    config = dataclasses.replace(PAPER64, steps=2, steps_at_scale={})
    maker = MapMaker(model, config, max_pairs=16)
    assert "one size at a time: the folded network's value among other sizes differs" in maker.executor
    for image, own, result in zip(images, labels, maker.compute(images, labels), strict=True):
        assert torch.allclose(result.full, MapMaker(model, config).compute([image], [own])[0].full, atol=1e-9)


def test_mirror_images_are_compared_with_the_image():
    """aligned and returned: a mirrored plane goes to the right edge and back, and is zero elsewhere."""
    model = tiny()
    features = MapMaker(model, PAPER64, max_pairs=2).climber.features
    canvas = Canvas(features, [(20, 28), (24, 20)], 2, torch.device("cpu"))
    assert canvas.map_sizes == ((5, 7), (6, 5))
    planes = torch.arange(4 * 3 * 6 * 8.0).view(4, 3, 6, 8) + 1
    moved = canvas.aligned(planes)
    assert torch.equal(moved[0, :, :5, :7], planes[0, :, :5, :7])
    assert torch.equal(moved[1, :, :5, 1:], planes[1, :, :5, :7])
    assert torch.equal(moved[3, :, :6, 3:], planes[3, :, :6, :5])
    assert not moved[0, :, 5:].any()
    assert not moved[3, :, :, :3].any()
    back = canvas.returned(moved)
    for item, (height, width) in enumerate([(5, 7), (5, 7), (6, 5), (6, 5)]):
        assert torch.equal(back[item, :, :height, :width], planes[item, :, :height, :width])
        assert not back[item, :, height:].any()
        assert not back[item, :, :, width:].any()


def test_batches_waste_little_and_hold_every_view_once():
    generator = torch.Generator().manual_seed(0)
    sizes = [tuple(torch.randint(300, 500, (2,), generator=generator).tolist()) for _ in range(60)]
    config = ClimbConfig.preset("general")
    counts = [1 + index % 2 for index in range(60)]
    batches = plan_batches(sizes, counts, config, ragged=True)
    views = [view for batch in batches for view in batch.views]
    assert len(set(views)) == len(views) == 60 * len(config.scales)
    assert len(batches) < len(plan_batches(sizes, counts, config)) / 3
    for batch in batches:
        own = [
            scaled_size(*sizes[view.image], config.factor(config.scales[view.scale], *sizes[view.image]))
            for view in batch.views
        ]
        canvas = max(size[0] for size in own) * max(size[1] for size in own)
        assert sum(height * width for height, width in own) >= (1 - MOST_WASTE) * canvas * len(own)
        assert len({counts[view.image] for view in batch.views}) == 1


def test_efficientnet_lite0_with_tensorflows_padding():
    pytest.importorskip("timm", reason="the network is timm's")
    assert_same(load_model("efficientnet_lite0"), dataclasses.replace(PAPER64, steps=2, scales=(1.0,)))
