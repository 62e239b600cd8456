"""The bytes of a map file: an npz that needs no pickle."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advcam_fast.errors import UsageError
from advcam_fast.store.files import StoreError

STORE_DTYPES = {"fp16": np.float16, "fp32": np.float32, "uint8": np.uint8}

_NEEDED = ("classes", "strided", "initial")
_MAPS = ("strided", "initial", "full")

Array = np.ndarray | torch.Tensor


def check_store(store: str) -> None:
    """Raises UsageError unless it is a dtype that maps are stored in."""
    if store not in STORE_DTYPES:
        raise UsageError(f"store {store!r}, wanted {', '.join(STORE_DTYPES)}")


def encode_maps(arrays: Mapping[str, Array], store: str) -> memoryview:
    """Packs `classes` [n] as int64 and `strided`, `initial`, perhaps `full` [n, h, w] in the dtype of `store`.

    Maps are in [0, 1]; uint8 holds round(255 * map). Raises ValueError for other names, shapes or values.
    """
    if not set(_NEEDED) <= set(arrays) <= {"classes", *_MAPS}:
        raise ValueError(f"maps named {', '.join(arrays)}, wanted classes, strided, initial and perhaps full")
    classes = _as_numpy(arrays["classes"])
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise ValueError(f"classes is {classes.dtype} {list(classes.shape)}, wanted integers [n]")
    stored: dict[str, Any] = {"classes": classes.astype(np.int64)}
    for name in _MAPS:
        if name in arrays:
            values = _as_numpy(arrays[name])
            if values.ndim != 3 or len(values) != len(classes):
                raise ValueError(f"{name} is {list(values.shape)}, wanted [{len(classes)}, h, w]")
            low, high = (values.min(), values.max()) if values.size else (0, 0)
            if not (low >= 0 and high <= 1):
                raise ValueError(f"{name} has values from {low:g} to {high:g}, wanted 0 to 1")
            stored[name] = (
                np.rint(values * np.float32(255)).astype(np.uint8)
                if store == "uint8"
                else values.astype(STORE_DTYPES[store])
            )
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    return buffer.getbuffer()


def encoded_bytes(height: int, width: int, maps: int, full: bool, store: str) -> int:
    """The size of what encode_maps makes of an image's maps, without making it."""
    names = ("strided", "initial", "full") if full else ("strided", "initial")
    empty = {"classes": np.zeros(0, np.int64)} | {name: np.zeros((0, 1, 1), np.float32) for name in names}
    around = memoryview(encode_maps(empty, store)).nbytes
    pixels = -(-height // 4) * -(-width // 4) + (len(names) - 1) * height * width
    return around + maps * (8 + pixels * np.dtype(STORE_DTYPES[store]).itemsize)


def decode_maps(path: Path) -> dict[str, torch.Tensor]:
    """Reads a map file: `classes` int64 [n] and the maps fp32 [n, h, w] in [0, 1]; uint8 v is read as v / 255.

    Raises StoreError for a file that is missing or not whole.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in (*_NEEDED, *_MAPS) if name in file or name in _NEEDED}
        maps = {name: _as_fp32(stored[name]) for name in _MAPS if name in stored}
        return {"classes": torch.from_numpy(stored["classes"]), **maps}
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such map file") from error
    except Exception as error:  # damaged bytes make the zip and npy readers raise nearly every type there is
        raise StoreError(f"{path}: not a whole map file ({' '.join(str(error).split())})") from error


def _as_numpy(array: Array) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    return array


def _as_fp32(values: np.ndarray) -> torch.Tensor:
    scaled = values / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)
    return torch.from_numpy(scaled)
