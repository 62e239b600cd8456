"""Weights files: tensors by name, read without ever running code from the file."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advcam_fast.errors import UsageError, first_line
from advcam_fast.models.cam_model import first_nonfinite

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds; `source` names it in error messages."""

    source: str
    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a .safetensors file


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a .safetensors file, or a torch file with weights_only=True.

    Class names: metadata key "class_names" (a JSON list) of a .safetensors file, key "class_names" beside
    "state_dict" in a torch file. A prefix "module." on every key (data-parallel training) is taken off.
    Raises UsageError for a file that is missing, is no checkpoint, needs code to be run, or holds NaN or infinities.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file; give a file, or 'none' for random weights")
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        tensors, names, metadata = _read_safetensors(path)
    else:
        tensors, names = _read_torch(path)
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    if (bad := first_nonfinite(tensors)) is not None:
        raise UsageError(f"weights {path}: {bad} holds NaN or infinite values")
    return Checkpoint(str(path), tensors, _checked_names(path, names), metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], object, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"weights {path}: not a safetensors file: {first_line(error)}") from error
    if not tensors:
        raise UsageError(f"weights {path}: holds no tensors")
    names = metadata.get("class_names")
    try:
        return tensors, None if names is None else json.loads(names), metadata
    except json.JSONDecodeError as error:
        raise UsageError(f"weights {path}: metadata class_names is not JSON: {first_line(error)}") from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own text advises to run the file's code
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds a pickled {found[1]}" if found else "not a torch weights file, or a plain pickle"
        advice = "pickled code is never run: save model.state_dict(), or a .safetensors file"
        raise UsageError(f"weights {path}: {what}; {advice}") from error
    except Exception as error:  # torch.load raises whatever a damaged archive leads it to
        raise UsageError(f"weights {path}: not a weights file that torch can read: {first_line(error)}") from error
    names = content.get("class_names") if isinstance(content, dict) else None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UsageError(f"weights {path}: holds a {type(content).__name__}, not a state dict of tensors by name")
    tensors = {key: value for key, value in content.items() if key != "class_names"}
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UsageError(f"weights {path}: {key!r} is a {type(value).__name__}; wanted tensors by name only")
    return tensors, names


def _checked_names(path: Path, names: object) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"weights {path}: class_names is {str(names)[:60]!r}; wanted a list of strings")
    return tuple(names)
