import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from advcam_fast.data import ImageError, image_header, read_image, read_mask, resize_image
from advcam_fast.data.images import _resize_on_device

# [H, W, 3]: four flat quarters, so that lossy formats keep their colours
QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24] = (200, 30, 30)
QUARTERS[:16, 24:] = (30, 200, 30)
QUARTERS[16:, :24] = (30, 30, 200)
QUARTERS[16:, 24:] = (240, 240, 240)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.dim() == 3 and image.shape[0] == 3 and image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_is_exact_and_channels_come_in_order(tmp_path: Path) -> None:
    array = noise(7, 5)
    assert np.array_equal(pixels(save(tmp_path / "a.png", Image.fromarray(array))), array)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "gif", "tif", "tiff", "webp", "ppm"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    got = pixels(save(tmp_path / f"a.{suffix}", Image.fromarray(QUARTERS)))
    assert np.abs(got.astype(int) - QUARTERS)[4::8, 4::8].max() <= 12


def test_grey_and_one_bit(tmp_path: Path) -> None:
    grey = noise(6, 9)[..., 0]
    assert np.array_equal(pixels(save(tmp_path / "l.png", Image.fromarray(grey))), np.dstack([grey] * 3))
    bits = grey > 127
    got = pixels(save(tmp_path / "1.png", Image.fromarray(bits)))
    assert np.array_equal(got, np.dstack([bits * np.uint8(255)] * 3))


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255], "RGB")
    path = save(tmp_path / "p.png", image)
    assert Image.open(path).mode == "P"
    assert pixels(path).tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 0, 0]]]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]], np.uint8)
    want = [[[10, 20, 30], [255, 255, 255], [127, 177, 227]]]
    assert np.abs(pixels(save(tmp_path / "rgba.png", Image.fromarray(rgba))).astype(int) - want).max() <= 1
    grey = np.array([[[40, 255], [40, 0]]], np.uint8)
    got = pixels(save(tmp_path / "la.png", Image.fromarray(grey)))
    assert got.tolist() == [[[40] * 3, [255] * 3]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_transparency_is_laid_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 8, 7, 0, 255, 0], "RGB")
    path = save(tmp_path / "p.png", image, transparency=transparency)
    assert pixels(path).tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_transparent_colour_of_grey_and_rgb_is_laid_on_white(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert pixels(save(tmp_path / "l.png", grey, transparency=7)).tolist() == [[[255] * 3, [8] * 3]]
    colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    got = pixels(save(tmp_path / "rgb.png", colour, transparency=(4, 5, 6)))
    assert got.tolist() == [[[1, 2, 3], [255] * 3]]
    deep = Image.fromarray(np.array([[700, 25700]], np.uint16))
    assert pixels(save(tmp_path / "i16.png", deep, transparency=700)).tolist() == [[[255] * 3, [100] * 3]]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for suffix in ("jpg", "tif"):
        red = pixels(save(tmp_path / f"a.{suffix}", image))[8, 8].astype(int)
        assert np.abs(red - (255, 0, 0)).max() <= 5


SIXTEEN = np.array([[0, 1, 128, 129, 255, 256], [257, 385, 386, 32896, 65406, 65535]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(SIXTEEN))
    assert np.array_equal(pixels(path)[..., 0], [[0, 0, 0, 1, 1, 1], [1, 1, 2, 128, 254, 255]])


def test_big_endian_and_integer_tiff(tmp_path: Path) -> None:
    want = np.round(SIXTEEN / 257)
    big = Image.frombytes("I;16B", (6, 2), SIXTEEN.astype(">u2").tobytes())
    assert np.array_equal(pixels(save(tmp_path / "b.tif", big))[..., 1], want)
    path = save(tmp_path / "i.tif", Image.fromarray(SIXTEEN.astype(np.int32)))
    assert Image.open(path).mode == "I"
    assert np.array_equal(pixels(path)[..., 2], want)
    with pytest.raises(ImageError, match="pixel values from -1 to 5, wanted 0 to 65535"):
        read_image(save(tmp_path / "n.tif", Image.fromarray(np.array([[-1, 5]], np.int32))))


@pytest.mark.parametrize(
    ("values", "want"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 99.6, 255.0], [0, 100, 255]), ([0.0, 257.0, 65535.0], [0, 1, 255])],
)
def test_float_grey_is_scaled_by_the_range_that_holds_it(tmp_path: Path, values: list[float], want: list[int]) -> None:
    path = save(tmp_path / "f.tif", Image.fromarray(np.array([values], np.float32)))
    assert Image.open(path).mode == "F"
    assert pixels(path)[0, :, 0].tolist() == want


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 65536.0])
def test_float_grey_out_of_range_is_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ImageError, match="wanted 0 to 65535"):
        read_image(save(tmp_path / "f.tif", Image.fromarray(np.array([[0.5, bad]], np.float32))))


# how a camera held that way has stored the upright picture (EXIF 2.3, Orientation)
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_undone(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](QUARTERS)))
    got = pixels(save(tmp_path / f"a.{suffix}", stored, exif=exif))
    assert got.shape == QUARTERS.shape
    assert np.abs(got.astype(int) - QUARTERS)[4::8, 4::8].max() <= 12


DAMAGE_IS_WARNED_OF = pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Tag data larger|Truncated File)")


@DAMAGE_IS_WARNED_OF
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, suffix: str, exif: bytes) -> None:
    got = pixels(save(tmp_path / f"a.{suffix}", Image.fromarray(QUARTERS), exif=exif))
    assert got.shape == QUARTERS.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_knows_the_size_that_is_read(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (7, 4)).save(tmp_path / "x.dat", "JPEG", exif=exif)
    header = image_header(tmp_path / "x.dat")
    assert (header.height, header.width) == tuple(read_image(tmp_path / "x.dat").shape[1:])
    assert (header.format, header.turned) == ("JPEG", orientation != 1)
    (tmp_path / "y.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match="not a JPEG"):
        image_header(tmp_path / "y.jpg")


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert Image.open(path).n_frames == 3
        assert np.abs(pixels(path)[0, 0].astype(int) - (255, 0, 0)).max() <= 5


def test_smallest_and_longest(tmp_path: Path) -> None:
    assert pixels(save(tmp_path / "1.png", Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]
    assert pixels(save(tmp_path / "long.png", Image.new("L", (20000, 10)))).shape == (10, 20000, 3)


def refused(path: Path, reason: str) -> None:
    for read in (read_image, read_mask):
        with pytest.raises(ImageError, match=reason) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_empty_foreign_and_irregular_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.jpg", "No such file")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "the file is empty")
    (tmp_path / "text.jpg").write_text("not an image")
    refused(tmp_path / "text.jpg", "not a JPEG, PNG")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "text.jpg" / "a.jpg", "Not a directory")
    refused(Path("a\0b.jpg"), "null")


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(QUARTERS).save(path, format="EPS")
    refused(path, "not a JPEG, PNG")


@DAMAGE_IS_WARNED_OF
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "ppm"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    whole = save(tmp_path / f"a.{suffix}", Image.fromarray(noise(64, 64))).read_bytes()
    for length in (1, 10, len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@DAMAGE_IS_WARNED_OF
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp"])
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"a.{suffix}", Image.fromarray(noise(24, 24))).read_bytes()
    random = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(damaged)
        try:
            read_image(path, max_pixels=10_000_000)
        except ImageError as error:
            assert "\n" not in str(error)


def claimed_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(claimed_png(9000, 11112))
    with pytest.warns(Image.DecompressionBombWarning):
        refused(bomb, r"9000 x 11112 is over the limit of 100,000,000 pixels")
    bomb.write_bytes(claimed_png(60000, 60000))
    refused(bomb, "bomb|limit")
    small = save(tmp_path / "small.png", Image.new("RGB", (10, 10)))
    assert read_image(small, max_pixels=100).shape == (3, 10, 10)
    with pytest.raises(ImageError, match="10 x 10 is over the limit of 99 pixels"):
        read_image(small, max_pixels=99)


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0, 0.013])
def test_resize_is_pillows_bicubic(scale: float) -> None:
    array = noise(37, 61)
    height, width = max(1, round(37 * scale)), max(1, round(61 * scale))
    want = np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    got = resize_image(torch.from_numpy(array).permute(2, 0, 1), scale)
    assert got.dtype == torch.uint8 and got.is_contiguous()
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([0.01, 0.25, 0.5, 1.0, 1.5, 2.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resized_sides_round_half_to_even_and_are_never_zero(height: int, width: int, scale: float) -> None:
    got = resize_image(torch.zeros(3, height, width, dtype=torch.uint8), scale)
    exact = [Fraction(side) * Fraction(str(scale)) for side in (height, width)]
    assert list(got.shape[1:]) == [max(1, round(side)) for side in exact]


def test_resize_rounds_375_to_188_and_365_to_182() -> None:
    assert resize_image(torch.zeros(3, 375, 365, dtype=torch.uint8), 0.5).shape == (3, 188, 182)


def test_resize_to_the_same_size_changes_nothing() -> None:
    image = torch.from_numpy(noise(5, 9)).permute(2, 0, 1)
    assert torch.equal(resize_image(image, 1.0), image)


def test_resize_on_a_device_uses_the_same_filter() -> None:
    image = torch.from_numpy(noise(40, 64)).permute(2, 0, 1)
    for scale in (0.5, 1.5, 2.0):
        want = resize_image(image, scale).int()
        got = _resize_on_device(image, *want.shape[1:]).int()
        assert (got - want).abs().max() <= 1


def test_resize_refuses_other_tensors() -> None:
    with pytest.raises(ValueError, match=r"torch.float32 \[3, 4, 4\], wanted torch.uint8 \[3, H, W\]"):
        resize_image(torch.zeros(3, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"\[4, 4, 3\]"):
        resize_image(torch.zeros(4, 4, 3, dtype=torch.uint8), 0.5)


def test_masks_are_indices_not_colours(tmp_path: Path) -> None:
    values = np.array([[0, 1, 20], [255, 2, 0]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([i * 7 % 256 for i in range(768)], "RGB")
    for name, image in (
        ("p", palette),
        ("l", Image.fromarray(values)),
        ("i", Image.fromarray(values.astype(np.uint16))),
    ):
        mask = read_mask(save(tmp_path / f"{name}.png", image))
        assert mask.dtype == torch.uint8
        assert mask.tolist() == values.tolist()
    bits = read_mask(save(tmp_path / "1.png", Image.fromarray(values == 1)))
    assert bits.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_masks_of_colours_or_large_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a mask of mode RGB, wanted palette or grey"):
        read_mask(save(tmp_path / "rgb.png", Image.fromarray(QUARTERS)))
    with pytest.raises(ImageError, match="mask values from 0 to 65535, wanted 0 to 255"):
        read_mask(save(tmp_path / "i.png", Image.fromarray(SIXTEEN)))


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", Image.new("P", (4, 4)), save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read_image(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_bytes_after_the_image_do_not_matter(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(QUARTERS).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue() + b"trailing bytes of a camera")
    assert pixels(path).shape == QUARTERS.shape
