"""The folder of masks that a run's maps were turned into."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from advcam_fast.data import read_mask, voc_palette
from advcam_fast.store.item_folder import ItemFolder

MOST_CLASSES = 254  # 0 is the background, 255 ignored


class MaskFolder(ItemFolder):
    """Masks on disk: ID.png beside what ItemFolder keeps, in the palette and the values of PASCAL VOC."""

    SUFFIX = ".png"

    def finish(
        self, item_id: str, mask: torch.Tensor, *, flags: Sequence[str] = (), labels: Sequence[str] = ()
    ) -> None:
        """Stores a mask, uint8 [H, W]: 0 background, v > 0 class v - 1, 255 ignored; and then records it as ok.

        Raises ValueError for another tensor, StoreError if the disk is full: then nothing of the item is left.
        """
        self._finish(item_id, encode_mask(mask), flags, labels)

    def mask_file(self, item_id: str) -> Path:
        """The file of an item that is ok, whole; raises StoreError if it is not."""
        return self._existing(item_id)

    def read_mask(self, item_id: str) -> torch.Tensor:
        """The mask of an item that is ok: uint8 [H, W]. Raises StoreError, or ImageError for a damaged file."""
        return read_mask(self.mask_file(item_id))


def encode_mask(mask: torch.Tensor) -> bytes:
    """The bytes of a palette PNG."""
    if mask.dtype != torch.uint8 or mask.ndim != 2 or mask.numel() == 0:
        raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}, wanted torch.uint8 [H, W]")
    image = Image.fromarray(mask.cpu().numpy(), mode="P")
    image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
