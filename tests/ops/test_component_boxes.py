from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.library import opcheck

from advcam_fast import ops
from advcam_fast.ops import reference

LEVELS = torch.arange(256)


def of_opencv(foreground):
    """bool [H, W] -> [N, 5]: the common evaluator's boxes, and areas, in the order of cv2.findContours."""
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    height, width = foreground.shape
    found = []
    for contour in cv2.findContours(foreground.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        found.append((x, y, min(x + w, width - 1), min(y + h, height - 1), cv2.contourArea(contour)))
    return np.array(found, np.float64).reshape(-1, 5)


def listed(found):
    """ComponentBoxes -> [N, 5] of each level of each map."""
    rows = torch.cat([found[0].double(), found[1][:, None]], 1).numpy()
    return np.split(rows, found[2][1:-1].numpy())


def check_opencv(maps, levels=LEVELS):
    got = listed(ops.component_boxes(maps, levels))
    for index, rows in enumerate(got):
        image, level = maps[index // len(levels)].numpy(), int(levels[index % len(levels)])
        want = of_opencv(image > level)
        assert np.array_equal(rows, want), f"map {index // len(levels)} > {level}:\n{image}\n{rows}\n{want}"


def noise(shape, seed=0, values=256):
    return torch.randint(0, values, shape, generator=torch.Generator().manual_seed(seed)).byte()


def smooth(batch, size=(224, 224), cells=7, seed=0):
    """Bicubic maps of `cells` random values a side, from 0 to 255."""
    coarse = torch.rand(batch, 1, cells, cells, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size, mode="bicubic")[:, 0]
    low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
    return ((fine - low) / (high - low) * 255).byte()


def various(count, most=20):
    """Small maps of any sides: noise, few values, few pixels above, smooth ones."""
    random = np.random.default_rng(0)
    for seed in range(count):
        height, width = map(int, random.integers(1, most, 2))
        maps = noise((1, height, width), seed, [256, 2, 5, 256][seed % 4])
        if seed % 4 == 1:
            maps *= 200
        yield smooth(1, (height, width), 5, seed) if seed % 4 == 3 else maps


def test_every_image_of_4x4_pixels_is_as_opencv_has_it():
    bits = torch.arange(2**16)[:, None] >> torch.arange(16) & 1
    check_opencv(bits.byte().view(-1, 4, 4), torch.tensor([0]))


def test_small_maps_at_all_levels_are_as_opencv_has_them():
    for maps in various(60):
        check_opencv(maps)


def test_smooth_maps_are_as_opencv_has_them():
    check_opencv(smooth(3), LEVELS[::5])


def test_photos_are_as_opencv_has_them(real_data):
    for path in sorted((real_data / "horses").rglob("*.jpg"))[:2]:
        gray = torch.from_numpy(np.array(Image.open(path).convert("L").resize((80, 60))))
        check_opencv(gray[None], LEVELS[::3])


@pytest.mark.soak
def test_2000_maps_at_all_levels_are_as_opencv_has_them(real_data):
    for maps in various(1900, 28):
        check_opencv(maps)
    for seed in range(50):
        check_opencv(smooth(1, seed=seed))
    for path in sorted((real_data / "horses").rglob("*.jpg"))[:50]:
        check_opencv(torch.from_numpy(np.array(Image.open(path).convert("L").resize((96, 72))))[None])


def test_equals_the_reference():
    for maps in various(60):
        levels = torch.tensor([130, 0, 1, 255, 130, 77])
        for got, want in zip(ops.component_boxes(maps, levels), reference.component_boxes(maps, levels), strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want)


def test_more_runs_than_are_followed_at_once():
    """Combs of 1 to 40 teeth that meet above, below, or nowhere; and wide maps with holes in a row."""
    for teeth in (1, 3, 4, 5, 9, 40):
        comb = torch.zeros(3, 12, 2 * teeth + 3, dtype=torch.uint8)
        comb[:, 2:9, 1 : 2 * teeth : 2] = torch.arange(2, 2 + teeth).byte()
        comb[0, 1], comb[1, 9] = 99, 99
        check_opencv(comb, LEVELS[:100:7])
        check_opencv(100 - comb, LEVELS[:100:7])


def test_a_hole_of_one_pixel():
    ring = torch.zeros(5, 6, dtype=torch.uint8)
    ring[1:4, 1:4], ring[2, 2] = 9, 0
    boxes, areas, offsets = ops.component_boxes(ring[None], [0])
    assert boxes.tolist() == [[1, 1, 4, 4], [1, 1, 4, 4]]  # the component, then its hole
    assert areas.tolist() == [4.0, 2.0]
    assert offsets.tolist() == [0, 2]


def test_of_two_equal_squares_the_later_comes_first_and_boxes_are_clipped():
    squares = torch.zeros(4, 9, dtype=torch.uint8)
    squares[0:2, 0:2] = squares[2:4, 7:9] = 1
    boxes, areas, _ = ops.component_boxes(squares[None], [0])
    assert boxes.tolist() == [[7, 2, 8, 3], [0, 0, 2, 2]]
    assert areas.tolist() == [1.0, 1.0]


def test_levels_in_any_order_and_more_than_once():
    maps = noise((2, 9, 8))
    found = listed(ops.component_boxes(maps, LEVELS))
    chosen = [200, 3, 3, 255, 0, 128]
    for index, rows in enumerate(listed(ops.component_boxes(maps, chosen))):
        assert np.array_equal(rows, found[index // 6 * 256 + chosen[index % 6]])


@pytest.mark.parametrize(
    ("shape", "steps"), [((0, 4, 5), 3), ((2, 0, 5), 3), ((2, 4, 0), 3), ((2, 4, 5), 0), ((1, 1, 1), 3)], ids=str
)
def test_empty_and_one_pixel(shape, steps):
    boxes, areas, offsets = ops.component_boxes(torch.ones(shape, dtype=torch.uint8), torch.arange(steps))
    some = 0 not in (*shape, steps)
    assert boxes.tolist() == [[0, 0, 0, 0]] * some  # one pixel, clipped to the last one
    assert areas.tolist() == [0.0] * some
    assert offsets.tolist() == ([0, 1, 1, 1] if some else [0] * (shape[0] * steps + 1))


def test_non_contiguous():
    maps = noise((2, 9, 12))
    strange = torch.stack([maps, maps], -1).transpose(1, 2)[..., 0].transpose(1, 2)
    assert not strange.is_contiguous()
    for got, want in zip(ops.component_boxes(strange, LEVELS), ops.component_boxes(maps, LEVELS), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_whatever_else_is_in_the_batch_on_any_number_of_threads(threads):
    maps = torch.cat([noise((2, 40, 50)), smooth(2, (40, 50))])
    alone = [rows for image in maps for rows in listed(reference.component_boxes(image[None], LEVELS[::9]))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = listed(ops.component_boxes(maps, LEVELS[::9]))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(got, want) for got, want in zip(together, alone, strict=True))


def test_without_the_kernels_the_reference_does_it(monkeypatch):
    maps = noise((2, 9, 8))
    want = ops.component_boxes(maps, [7, 99])
    monkeypatch.setattr(import_module("advcam_fast.ops.component_boxes"), "backend_of", lambda _: "reference")
    for got, wanted in zip(ops.component_boxes(maps, [7, 99]), want, strict=True):
        assert torch.equal(got, wanted)


def test_opcheck():
    opcheck(torch.ops.advcam_fast.component_boxes.default, (noise((2, 9, 11)), torch.tensor([3, 200])))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_fullgraph(backend):
    """As for torch.nonzero, dynamo is told to capture what has a size of its own."""

    def run(maps):
        boxes, areas, offsets = ops.component_boxes(maps // 2, LEVELS[:60:7])
        return boxes + 1, areas * 2, offsets

    maps = noise((2, 9, 11))
    for got, want in zip(torch.compile(run, fullgraph=True, backend=backend)(maps), run(maps), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("maps", "levels", "error", "text"),
    [
        (torch.zeros(4, 5).byte(), [0], ValueError, r"maps: shape \(4, 5\) came, wanted is \[B, H, W\]"),
        (torch.zeros(1, 4, 5), [0], TypeError, "maps: dtype torch.float32 came, wanted is torch.uint8"),
        (torch.zeros(1, 4, 5).byte(), [[0]], ValueError, r"levels: shape \(1, 1\) came"),
        (torch.zeros(1, 4, 5).byte(), [0.5], TypeError, "levels: dtype torch.float32 came"),
        (torch.zeros(1, 4, 5).byte(), [3, 256], ValueError, "levels: 256 came, wanted is 0 to 255"),
        (torch.zeros(1, 4, 5).byte(), [-1], ValueError, "levels: -1 came, wanted is 0 to 255"),
        (torch.zeros(1, 1, 32768).byte(), [0], ValueError, "maps: shape .* came, wanted .* sides of at most 32767"),
    ],
)
def test_wrong_arguments_are_named(maps, levels, error, text):
    with pytest.raises(error, match=text) as caught:
        ops.component_boxes(maps, levels)
    assert "\n" not in str(caught.value)
