"""The images of a report: thumbnails, and maps in scripts that a page loads from disk as from a server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

THUMBNAIL = 480  # pixels of the longer side
FILES_A_FOLDER = 1000


class Gallery:
    """Writes data/NNN/NNNNNN.js with the maps and thumbs/NNN/NNNNNN.jpg of each image; rows for the page's index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._classes: dict[str, int] = {}
        self._flags: dict[str, int] = {}
        self.rows: list[list[Any]] = []

    def add(
        self,
        item_id: str,
        photo: Tensor,
        labels: Sequence[str],
        strided: Tensor,
        initial: Tensor,
        mask: Tensor | None = None,
        values: Sequence[int] = (),
        flags: Sequence[str] = (),
        iou: float | None = None,
    ) -> None:
        """photo: uint8 [3, H, W]; strided [n, h, w] and initial [n, H, W] in 0 to 1; mask: uint8 [H, W].

        values: of the mask, for each label. flags: of the manifest.
        """
        height, width = photo.shape[1:]
        shrink = min(1.0, THUMBNAIL / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        first = F.interpolate(initial[None], strided.shape[1:], mode="area")[0] if len(initial) else initial
        number = len(self.rows)
        maps = {
            "cam": [_png(_bytes(heat)) for heat in first],
            "advcam": [_png(_bytes(heat)) for heat in strided],
            "mask": None
            if mask is None
            else _png(np.asarray(Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST))),
            "values": list(values),
        }
        place = f"{number // FILES_A_FOLDER:03d}/{number:06d}"
        self._write(f"data/{place}.js", f"advcamItem({number}, {script_json(maps)});\n".encode())
        buffer = io.BytesIO()
        pixels = Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())
        pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=3).save(buffer, "JPEG", quality=82)
        self._write(f"thumbs/{place}.jpg", buffer.getvalue())
        classes = [self._classes.setdefault(label, len(self._classes)) for label in labels]
        noted = [self._flags.setdefault(flag, len(self._flags)) for flag in flags]
        scores = [round(focus(heat), 3) for heat in strided]
        self.rows.append([item_id, width, height, classes, scores, noted, None if iou is None else round(iou, 4)])

    def index(self, has_masks: bool) -> str:
        """The script that tells the page of all images."""
        colours = matplotlib.colormaps["turbo"](np.arange(256))[:, :3]
        facts = {
            "rows": self.rows,
            "classes": list(self._classes),
            "flags": list(self._flags),
            "masks": has_masks,
            "colours": np.rint(255 * colours).astype(int).flatten().tolist(),
            "perFolder": FILES_A_FOLDER,
        }
        return f"window.advcamIndex = {script_json(facts)};\n"

    def class_counts(self) -> list[tuple[str, int]]:
        """Every class with the number of its images, the most frequent first."""
        counts = dict.fromkeys(range(len(self._classes)), 0)
        for row in self.rows:
            for number in row[3]:
                counts[number] += 1
        names = list(self._classes)
        return sorted(
            ((names[number], count) for number, count in counts.items()), key=lambda pair: (-pair[1], pair[0])
        )

    def _write(self, name: str, content: bytes) -> None:
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def focus(heat: Tensor) -> float:
    """The share of a map's sum that lies above half of its maximum: 0 to 1, large for a map of one clear place."""
    total = float(heat.sum())
    return float(heat[heat > heat.amax() / 2].sum()) / total if total > 0 else 0.0


def script_json(value: Any) -> str:
    """JSON that neither ends a script element nor opens a comment in it, whatever the names in it are."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: line separators are escaped with the rest
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bytes(heat: Tensor) -> np.ndarray:
    return (heat.clamp(0, 1) * 255).round().byte().numpy()


def _png(values: np.ndarray) -> str:
    """Base64 of a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(values, mode="L").save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
