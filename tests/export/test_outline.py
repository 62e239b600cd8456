"""Polygons cover exactly the pixels of their mask, by the two rasterizers that tools use."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from advcam_fast.export.outline import joined, polygons

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def rasterized(paths: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    runs = coco_mask.frPyObjects([path.flatten().tolist() for path in paths], *shape)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


@settings(max_examples=300, deadline=None)
@given(mask=MASKS)
def test_parts_and_holes_are_exact(mask: np.ndarray) -> None:
    paths = polygons(mask)
    if not mask.any():
        assert paths == []
        return
    assert (rasterized(paths, mask.shape) == mask).all()
    assert (rasterized([joined(paths)], mask.shape) == mask).all()


def test_one_path_a_part_and_only_corners() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:5] = True
    mask[2, 2] = False
    mask[5, 5] = True  # touches by a corner
    ring, dot = polygons(mask)
    assert len(ring) == 4 + 4 + 2  # the outline, the hole, and the cut there and back
    assert dot.tolist() == [[6, 5], [6, 6], [5, 6], [5, 5]]


def test_a_hole_at_a_corner_of_the_outline_needs_no_cut() -> None:
    (ring,) = polygons(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool))
    assert len(ring) == 10 and ring.tolist().count([2, 2]) == 2


def test_the_even_odd_rule_agrees() -> None:
    scale = 8
    mask = np.random.default_rng(3).random((20, 25)) < 0.6
    picture = Image.new("L", (25 * scale, 20 * scale))
    for path in polygons(mask):
        one = Image.new("L", picture.size)
        ImageDraw.Draw(one).polygon([tuple(point) for point in (path * scale).tolist()], fill=1)
        picture = Image.fromarray(np.asarray(picture) | np.asarray(one))
    assert (np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale].astype(bool) == mask).all()
