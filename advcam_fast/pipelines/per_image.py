"""The IoU of every image at every threshold, on disk: which of them is wanted shows only at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
from torch import Tensor


class PerImage:
    """Curves of equal length by id; only the ids are in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as this)
        self._ids: list[str] = []
        self._steps = 0

    def add(self, item_id: str, curve: Tensor) -> None:
        """curve: [T], the same T for all."""
        self._ids.append(item_id)
        self._steps = len(curve)
        self._file.write(curve.numpy().astype(np.float32).tobytes())

    def at(self, step: int) -> Iterator[tuple[str, float]]:
        """(id, IoU at that step) of every image, in the order they came in."""
        for number, item_id in enumerate(self._ids):
            self._file.seek(4 * (number * self._steps + step))
            yield item_id, float(np.frombuffer(self._file.read(4), np.float32)[0])
