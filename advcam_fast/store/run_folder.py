"""The folder of a run: the maps of every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from advcam_fast.store.item_folder import ItemFolder
from advcam_fast.store.maps import Array, check_store, decode_maps, encode_maps

if TYPE_CHECKING:
    from typing_extensions import Self


class RunFolder(ItemFolder):
    """A run on disk: maps/ID.npz beside what ItemFolder keeps."""

    FOLDER, SUFFIX = "maps", ".npz"

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any], *, store: str = "fp16", **options: Any) -> Self:
        """As ItemFolder.open; `store`, the dtype of the maps, must stay what it was: "fp16", "fp32" or "uint8"."""
        check_store(store)
        return super().open(path, {**settings, "store": store}, **options)

    def finish(
        self, item_id: str, arrays: Mapping[str, Array], *, flags: Sequence[str] = (), labels: Sequence[str] = ()
    ) -> None:
        """Stores the maps of an item (see encode_maps) and then records it as ok.

        Raises ValueError for wrong arrays, StoreError if the disk is full: then nothing of the item is left.
        """
        self.finish_encoded(item_id, encode_maps(arrays, self.settings["store"]), flags=flags, labels=labels)

    def finish_encoded(
        self, item_id: str, content: bytes | memoryview, *, flags: Sequence[str] = (), labels: Sequence[str] = ()
    ) -> None:
        """As finish, of maps that encode_maps packed, perhaps in another process."""
        self._finish(item_id, content, flags, labels)

    def read_maps(self, item_id: str) -> dict[str, torch.Tensor]:
        """The maps of an item that is ok: see decode_maps. Raises StoreError if it is not, or its file is damaged."""
        return decode_maps(self._existing(item_id))
