"""The files of the released AdvCAM and IRN code: a pickled dictionary in an .npy. Written only, never read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from advcam_fast.data.images import enlarged
from advcam_fast.export.item import ExportItem


class ReleasedExport:
    """NAME.npy: keys, int64 [n]; cam, float32 [n, (H-1)//4+1, (W-1)//4+1]; high_res [n, H, W].

    keys are the numbers of the classes in the classifier's head, those of the data where it was trained on them.
    As in that code keys and cam are torch tensors and high_res is an array. Where the run has no maps of full size
    (`label --full`), high_res is cam enlarged.
    """

    NEEDS_MASKS = False

    def __init__(self, folder: Path, classes: Sequence[str], copy_images: bool) -> None:
        self._folder = folder

    def add(self, item: ExportItem) -> None:
        cam = item.maps["strided"]
        whole = item.maps["full"] if "full" in item.maps else _enlarged(cam, item.picture.size)
        file = self._folder / f"{item.name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(released_file(item.maps["classes"], cam, whole))

    def close(self) -> None:
        return


def released_file(keys: Tensor, cam: Tensor, high_res: Tensor) -> bytes:
    """The content of such a file, of tensors on a CPU."""
    # Clones: of a view the whole storage would be pickled.
    content = {"keys": keys.clone(), "cam": cam.clone(), "high_res": high_res.numpy()}
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if len(maps) == 0:
        return maps.new_zeros(0, *size)
    large = enlarged(maps, size)
    return large / (large.amax((1, 2), keepdim=True) + 1e-5)
