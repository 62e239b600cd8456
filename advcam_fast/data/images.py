"""Decodes and resizes on the CPU: any image file to RGB, the right way up."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from advcam_fast.data.tar_member import TarMember

MAX_PIXELS = 100_000_000

# Named one by one: among Pillow's other readers are some that run outside programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])


class ImageError(ValueError):
    """A file that cannot be used as an image or mask: one line with the file and the reason."""


class ImageHeader(NamedTuple):
    """What an image file says of itself: its size once it is upright, Pillow's format name, whether EXIF turns it."""

    height: int
    width: int
    format: str
    turned: bool


def image_header(path: str | Path | TarMember, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Reads an image's header, and pixels only of PNGs without EXIF; raises ImageError as read_image does."""
    with _opened(path, max_pixels) as image:
        turn = _turn(image)
        width, height = image.size
        if turn in _SIDEWAYS:
            width, height = height, width
        return ImageHeader(height, width, "JPEG" if image.format == "MPO" else str(image.format), turn is not None)


def read_image(path: str | Path | TarMember, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decodes an image of any mode into RGB, turned the right way up by its EXIF orientation.

    Transparency is laid on white, CMYK is converted, 16-bit grey v becomes round(v / 257), of an animation the first
    frame is taken. Floating-point grey is read as [0, 1], [0, 255] or [0, 65535], the first that holds its maximum.

    Shape: uint8 [3, H, W], 0 to 255. Raises ImageError for a file that is missing, empty, truncated, no image, of
    unusable pixel values, or of more than `max_pixels` pixels (found in the header, before anything is decoded).
    """
    with _upright(path, max_pixels) as image:
        pixels = np.array(_to_rgb(image))  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path | TarMember, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decodes a class mask: palette indices, grey values, or 0 and 1 of a 1-bit image, never colours.

    Shape: uint8 [H, W]; 0 background, v > 0 class v - 1, 255 ignored. Raises ImageError as read_image does, and for
    an RGB mask or values above 255.
    """
    with _upright(path, max_pixels) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise ValueError(f"a mask of mode {image.mode}, wanted palette or grey")
        values = np.array(image)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"mask values from {values.min()} to {values.max()}, wanted 0 to 255")
    return torch.from_numpy(values.astype(np.uint8))


def resize_image(image: torch.Tensor, scale: float) -> torch.Tensor:
    """Resizes by Pillow's antialiased bicubic, as the released code does, to round-half-to-even(side * scale).

    Shape: uint8 [3, H, W] -> uint8 [3, h, w], sides at least 1; the image itself where no side changes. Bit-exact
    with Pillow on the CPU; elsewhere the same filter on that device, within 1 level of it.
    """
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, wanted torch.uint8 [3, H, W]")
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    if (height, width) == image.shape[1:]:
        return image
    if image.device.type != "cpu":
        return _resize_on_device(image, height, width)
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = np.array(pixels.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps at stride 4 of an image at its size (H, W), bilinear and cropped: [M, h, w] -> [M, H, W]."""
    large = torch.nn.functional.interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    return large[:, : size[0], : size[1]]


def _resize_on_device(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    values = image[None].float()
    for size in ((image.shape[1], width), (height, width)):  # Pillow too rounds to 8 bits between its two passes
        values = torch.nn.functional.interpolate(values, size, mode="bicubic", antialias=True)
        values = (values + 0.5).floor().clamp(0, 255)
    return values[0].to(torch.uint8)


@contextmanager
def _upright(path: str | Path | TarMember, max_pixels: int) -> Iterator[Image.Image]:
    """Opens, checks, decodes and turns an image; every failure, the caller's block included, becomes ImageError."""
    with _opened(path, max_pixels) as image:
        image.load()
        turn = _turn(image)
        yield image if turn is None else image.transpose(turn)


@contextmanager
def _opened(path: str | Path | TarMember, max_pixels: int) -> Iterator[Image.Image]:
    """Opens and checks an image; every failure, the caller's block included, becomes ImageError."""
    try:
        with Image.open(_source(path), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} is over the limit of {max_pixels:,} pixels")
            yield image
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a JPEG, PNG, GIF, BMP, TIFF, WebP or PPM image") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly every type there is
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error)
        raise ImageError(f"{path}: {' '.join(reason.split())}") from error


def _source(path: str | Path | TarMember) -> str | Path | io.BytesIO:
    if isinstance(path, TarMember):
        size = path.size
    else:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        size = status.st_size
    if size == 0:
        raise ValueError("the file is empty")
    return io.BytesIO(path.read_bytes()) if isinstance(path, TarMember) else path


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the rotation; the pixels are whole
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit_grey(image)).convert("RGB")
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay).convert("RGB")
    return image.convert("RGB")


def _eight_bit_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)  # [H, W]
    low, high = values.min(), values.max()
    top = next((top for top in (1, 255) if high <= top), 65535) if image.mode == "F" else 65535
    if not 0 <= low <= high <= top:
        raise ValueError(f"pixel values from {low:g} to {high:g}, wanted 0 to 65535")
    grey = np.rint(values * 255 / top)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey.astype(np.uint8)
