"""The images of one call at the scales they are climbed at."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from advcam_fast.climb.config import ClimbConfig
from advcam_fast.climb.plan import View, scaled_size
from advcam_fast.data.images import resize_image
from advcam_fast.models.ragged import Size

LARGEST_VIEW = 25_000_000  # pixels: beyond, a flip pair needs tens of gigabytes, and the system would end the run


class Views:
    """Resized when they are asked for, or ahead of that in a thread, in memory that a GPU copies from by itself.

    ahead: the views that will be asked for, in that order. Use as a context: its end waits for the thread.
    """

    def __init__(self, images: Sequence[Tensor], config: ClimbConfig, ahead: Sequence[View] = ()) -> None:
        self.images, self.config = images, config
        self._pool = ThreadPoolExecutor(1) if ahead else None
        self._coming: dict[View, Future[Tensor]] = {}
        if self._pool is not None:
            self._coming = {view: self._pool.submit(self._pinned, view) for view in ahead}

    def __enter__(self) -> Views:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def size(self, view: View) -> Size:
        """Rows and columns; raises RuntimeError for a view that no memory would hold."""
        height, width = self.images[view.image].shape[1:]
        factor = self._factor(view)
        if height * width * factor**2 > LARGEST_VIEW:
            raise RuntimeError(f"scaled by {factor:g} it is over the limit of {LARGEST_VIEW:,} pixels")
        return scaled_size(height, width, factor)

    def resized(self, view: View) -> Tensor:
        """uint8 [3, H, W]."""
        if view in self._coming:  # kept: after an out-of-memory error it is asked for again
            return self._coming[view].result()
        return resize_image(self.images[view.image], self._factor(view))

    def _pinned(self, view: View) -> Tensor:
        self.size(view)
        made = resize_image(self.images[view.image], self._factor(view))
        return made.pin_memory() if torch.cuda.is_available() and made.device.type == "cpu" else made

    def _factor(self, view: View) -> float:
        return self.config.factor(self.config.scales[view.scale], *self.images[view.image].shape[1:])
