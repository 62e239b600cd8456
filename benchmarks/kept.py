"""Results of single images that a stopped run of a benchmark goes on from."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from advcam_fast.store.files import write_whole

T = TypeVar("T")


class Kept(Generic[T]):
    """Tensors, or dictionaries of them, by name in one file of a folder, one a `key`; folder None: nothing is kept.

    What is there is taken as it is: a folder belongs to one state of the code.
    """

    def __init__(self, folder: Path | None, key: Any) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = None if folder is None else folder / f"{digest[:32]}.pt"
        self.found: dict[str, T] = {}
        if self.path is not None and self.path.exists():
            self.found = torch.load(self.path, weights_only=True)

    def get(self, name: str, make: Callable[[], T]) -> T:
        """What has that name, made and kept where there is none."""
        if name not in self.found:
            self.found[name] = make()
            if self.path is not None:
                content = io.BytesIO()
                torch.save(self.found, content)
                write_whole(self.path, content.getbuffer(), self.path.with_suffix(f".{os.getpid()}"))
        return self.found[name]
