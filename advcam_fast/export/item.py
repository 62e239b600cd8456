"""What every format is given of an image."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from advcam_fast.data import TarMember, image_header, read_image
from advcam_fast.export.objects import MaskObject

_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the formats take it: an upright JPEG or PNG file, or such content made of another."""

    path: Path
    suffix: str  # .jpg, .jpeg or .png, as the content is
    size: tuple[int, int]  # height, width
    anew: bytes | None  # the content, where it is no file of its own

    @classmethod
    def read(cls, source: Path | TarMember) -> Picture:
        """Images of other kinds, and those that EXIF turns, which not every reader heeds, become upright PNGs.

        Those of a shard are copied out of it. Raises ImageError for a file that is none.
        """
        path = source.tar / source.member if isinstance(source, TarMember) else source
        header = image_header(source)
        if header.format in _SUFFIXES and not header.turned:
            known = _SUFFIXES[header.format]
            suffix = path.suffix if path.suffix.lower() in known else known[0]
            packed = source.read_bytes() if isinstance(source, TarMember) else None
            return cls(path, suffix, (header.height, header.width), packed)
        buffer = io.BytesIO()
        Image.fromarray(read_image(source).permute(1, 2, 0).numpy()).save(buffer, "PNG")
        return cls(path, ".png", (header.height, header.width), buffer.getvalue())

    def content(self) -> bytes:
        return self.path.read_bytes() if self.anew is None else self.anew

    def place(self, folder: Path, name: str, copy: bool) -> str:
        """Puts it into a folder, as a link unless `copy` or made anew; the path below the folder."""
        target = folder / f"{name}{self.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.anew is not None:
            target.write_bytes(self.anew)
        elif copy:
            shutil.copyfile(self.path, target)
        else:
            target.symlink_to(self.path.resolve())
        return target.relative_to(folder).as_posix()


@dataclass(frozen=True, slots=True)
class ExportItem:
    """An image with maps and, where the run has masks, its mask and objects."""

    id: str
    name: str  # relative path without suffix
    picture: Picture
    labels: tuple[str, ...]
    flags: tuple[str, ...]
    maps: Mapping[str, Tensor]  # as RunFolder.read_maps gives them
    mask: np.ndarray | None  # uint8 [H, W]
    mask_file: bytes  # of the same, a palette PNG
    objects: tuple[MaskObject, ...]


def well_formed(text: str) -> str:
    """Text that UTF-8 holds: file names may hold bytes that are none."""
    return text.encode(errors="backslashreplace").decode()
