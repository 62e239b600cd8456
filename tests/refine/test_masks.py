"""Maps to masks: sizes, scores, walk and CRF on pictures whose right answer is plain."""

import pytest
import torch

from advcam_fast import ops
from advcam_fast.refine import REFINE_PRESETS, RefineConfig, mask_of, refined_maps


def picture(height=61, width=83):
    """A bright box on dark ground, with a little noise: the box, and the image."""
    box = torch.zeros(height, width, dtype=torch.bool)
    box[12:44, 20:60] = True
    noise = torch.randint(0, 8, (3, height, width), generator=torch.Generator().manual_seed(0))
    return box, (box * 150 + 50 + noise).to(torch.uint8)


def seed(rows=slice(5, 9), columns=slice(8, 12)):
    """A map at stride 4: without more the middle of the box alone."""
    found = torch.zeros(1, 16, 21)
    found[0, rows, columns] = 1.0
    return found


def boundary(config, rows=16, columns=21):
    """That of the box, for the preset that walks by it; None where the edge is nowhere or not asked for."""
    if config.walk != "boundary":
        return None
    inside = torch.zeros(1, 1, rows, columns)
    inside[..., 3:11, 5:15] = 1
    wide = torch.nn.functional.max_pool2d(inside, 3, 1, 1)
    return (wide - inside)[0, 0]


def iou(mask, box):
    return float((mask & box).sum() / (mask | box).sum())


@pytest.mark.parametrize("preset", REFINE_PRESETS)
def test_every_preset_mends_the_mask(preset):
    """A walk fills the box from its middle; a CRF alone moves edges that are nearly right."""
    box, image = picture()
    config = RefineConfig.preset(preset)
    maps = seed() if config.walk != "none" else seed(slice(4, 11), slice(6, 14))
    alone = mask_of(refined_maps(maps, image, RefineConfig()), image, RefineConfig())
    refined = mask_of(refined_maps(maps, image, config, boundary(config)), image, config)
    assert refined.shape == box.shape
    assert set(refined.unique().tolist()) == {0, 1}
    assert iou(refined > 0, box) > iou(alone > 0, box) + (0.05 if config.walk == "none" else 0.4)


def test_a_walk_is_that_of_the_op_at_stride_4():
    _, image = picture()
    config = RefineConfig(walk="color", power=1.5, radius=4, sigma=9.0, walk_steps=20, restart=0.01)
    maps = torch.rand(2, 16, 21, generator=torch.Generator().manual_seed(1))
    small = torch.nn.functional.interpolate(image[None].float(), (16, 21), mode="area")[0]
    walked = ops.color_walk(maps**1.5, small, 4, 9.0, 20, 0.01)
    large = torch.nn.functional.interpolate(walked[None], scale_factor=4, mode="bilinear")[0, :, :61, :83]
    found = refined_maps(maps, image, config)
    assert torch.allclose(found, large / large.max())
    assert found.max() == 1


def test_a_boundary_walk_is_that_of_the_op():
    _, image = picture()
    config = RefineConfig(walk="boundary", power=1.5, radius=4, beta=3.0, walk_steps=20, restart=0.01)
    draw = torch.Generator().manual_seed(1)
    maps, edge = torch.rand(2, 16, 21, generator=draw), torch.rand(16, 21, generator=draw)
    walked = ops.random_walk(maps**1.5, edge, 4, 3.0, 20, 0.01)
    large = torch.nn.functional.interpolate(walked[None], scale_factor=4, mode="bilinear")[0, :, :61, :83]
    assert torch.allclose(refined_maps(maps, image, config, edge), large / large.max())
    with pytest.raises(ValueError, match="walk: boundary came without a boundary"):
        refined_maps(maps, image, config)


def test_classes_compete_with_each_other_and_the_background():
    _, image = picture()
    scores = torch.zeros(2, 61, 83)
    scores[0, :20], scores[1, 10:30], scores[0, 50:] = 0.6, 0.9, 0.2
    found = mask_of(scores, image, RefineConfig(background=0.25))
    assert (found[:10] == 1).all()
    assert (found[10:30] == 2).all()
    assert (found[30:] == 0).all()
    assert (mask_of(scores, image, RefineConfig(background=0.95)) == 0).all()


@pytest.mark.parametrize("crf", ["hard", "soft"])
def test_the_crf_is_that_of_the_op(crf):
    _, image = picture()
    scores = refined_maps(torch.rand(2, 16, 21, generator=torch.Generator().manual_seed(2)), image, RefineConfig())
    config = RefineConfig(crf=crf, crf_steps=3, crf_confidence=0.6, crf_gaussian=(2, 1), crf_bilateral=(20, 9, 4))
    every = torch.cat([torch.full((1, 61, 83), 0.25), scores])
    hard, soft = ops.hard_unary(every.argmax(0), 3, 0.6), -(every / every.sum(0)).clamp(min=1e-5).log()
    unary = hard if crf == "hard" else soft
    pixels = image.permute(1, 2, 0)[None].contiguous()
    wanted = ops.dense_crf(pixels, unary[None], 3, (2, 1), (20, 9, 4))[0].argmax(0)
    assert torch.equal(mask_of(scores, image, config), wanted)
    assert not torch.equal(wanted, every.argmax(0)), "a CRF that changes nothing proves nothing"


@pytest.mark.parametrize("config", [*REFINE_PRESETS.values()], ids=REFINE_PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (5, 4)])
def test_odd_sizes(size, config):
    height, width = size
    image = torch.full((3, height, width), 99, dtype=torch.uint8)
    maps = torch.ones(1, (height - 1) // 4 + 1, (width - 1) // 4 + 1)
    edge = boundary(config, *maps.shape[1:])
    edge = None if edge is None else edge * 0
    assert (mask_of(refined_maps(maps, image, config, edge), image, config) == 1).all()


@pytest.mark.parametrize("config", [*REFINE_PRESETS.values()], ids=REFINE_PRESETS)
def test_nothing_becomes_background(config):
    _, image = picture()
    for maps in (torch.zeros(2, 16, 21), torch.zeros(0, 16, 21)):
        assert (mask_of(refined_maps(maps, image, config, boundary(config)), image, config) == 0).all()


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        (torch.zeros(1, 16, 20), r"maps of \[1, 16, 20\] came for an image of 83 x 61, wanted is \[1, 16, 21\]"),
        (torch.zeros(16, 21), r"maps of \[16, 21\] came"),
        (torch.full((1, 16, 21), float("nan")), "a NaN or a value that is not in 0 to 1"),
        (torch.full((1, 16, 21), 1.5), "not in 0 to 1"),
        (torch.full((1, 16, 21), -0.5), "not in 0 to 1"),
    ],
)
def test_what_does_not_fit_is_named(maps, text):
    with pytest.raises(ValueError, match=text):
        refined_maps(maps, picture()[1], RefineConfig())
