"""The XML annotations that VOC and ImageNet share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from advcam_fast.data.dataset import Box
from advcam_fast.data.images import ImageError

Corners = tuple[float, float, float, float]


def read_objects(file: Path) -> list[tuple[str, Corners | None]]:
    """Name and corners (xmin, ymin, xmax, ymax; None without) of each object of an annotation, as they are written.

    Raises ValueError with the reason for a file that is missing or broken.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "<!" in text.replace("<!--", ""):  # a document type could declare entities that expand without end
            raise ValueError("a document type declaration or CDATA, wanted plain XML")
        root = ElementTree.fromstring(text)
    except OSError as error:
        raise ValueError(error.strerror) from error
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    return [
        ((entry.findtext("name") or "").strip(), _corners(entry.find("bndbox"))) for entry in root.findall("object")
    ]


def _corners(box: ElementTree.Element | None) -> Corners | None:
    if box is None:
        return None
    texts = [box.findtext(name) or "" for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not (0 <= x0 <= x1 < math.inf and 0 <= y0 <= y1 < math.inf):
        raise ValueError(f"box {', '.join(texts)}, wanted are numbers with xmin <= xmax and ymin <= ymax")
    return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class AnnotatedBoxes:
    """The boxes of an annotation file, all of one class."""

    file: Path
    label: str

    def read(self) -> tuple[Box, ...]:
        try:
            return tuple(Box(self.label, *corners) for _, corners in read_objects(self.file) if corners)
        except ValueError as error:
            raise ImageError(f"annotation {self.file}: {error}") from error
