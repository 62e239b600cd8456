"""Pictures of maps: colour overlays, and sheets that put photo, CAM and AdvCAM side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TURBO = matplotlib.colormaps["turbo"]
_LABEL_HEIGHT = 26


def overlay(photo: np.ndarray, heat: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """The photo under its map: uint8 [H, W, 3] and [H, W] in 0 to 1 -> uint8 [H, W, 3].

    Where the map is 0 the photo shows in grey, where it is 1 the colour (turbo: blue to red) covers `strength` of it.
    """
    grey = photo.astype(np.float32).mean(2, keepdims=True).repeat(3, 2)
    colour = _TURBO(heat)[..., :3].astype(np.float32) * 255
    share = (strength * np.clip(heat * 3, 0, 1))[..., None]
    return np.rint(grey * (1 - share) + colour * share).astype(np.uint8)


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str], height: int = 240) -> Image.Image:
    """One row a (name, pictures of equal size), under a line of titles; every picture scaled to `height` pixels."""
    if not rows:
        raise ValueError("a sheet needs at least one row")
    scaled = [(name, [_scaled(picture, height) for picture in pictures]) for name, pictures in rows]
    widths = [max(pictures[column].width for _, pictures in scaled) for column in range(len(titles))]
    font = ImageFont.load_default(16)
    gap = 6
    page = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) + 1), (height + _LABEL_HEIGHT) * len(rows) + gap), "white"
    )
    draw = ImageDraw.Draw(page)
    for row, (name, pictures) in enumerate(scaled):
        x, y = gap, row * (height + _LABEL_HEIGHT)
        for title, width, picture in zip(titles, widths, pictures, strict=True):
            text = f"{name}: {title}" if title == titles[0] else title
            draw.text((x + 2, y + 4), text, fill="black", font=font)
            page.paste(picture, (x, y + _LABEL_HEIGHT))
            x += width + gap
    return page


def _scaled(picture: np.ndarray, height: int) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
