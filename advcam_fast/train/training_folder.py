"""A folder that a training can be killed over: a log in JSON lines, and a checkpoint that is always whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from advcam_fast.errors import StoppedError, UsageError, first_line

_CHECKPOINT, _LOG, _WEIGHTS, _BEST = "checkpoint.pt", "log.jsonl", "weights.safetensors", "best.safetensors"


class TrainingFolder:
    """checkpoint.pt (to go on from), log.jsonl (a line a step), weights.safetensors (what comes out).

    And best.safetensors, where something says which weights are the best.

    Raises UsageError for a folder that holds a training already, unless `resume`, and StoppedError where a file cannot
    be written. The data is on the disk before the rename, so that after a power cut a file that is there is whole.
    """

    def __init__(self, path: str | Path, resume: bool) -> None:
        self.path = Path(path)
        self.checkpoint, self.log, self.weights, self.best = (
            self.path / name for name in (_CHECKPOINT, _LOG, _WEIGHTS, _BEST)
        )
        held = [file.name for file in (self.checkpoint, self.log, self.weights) if file.exists()]
        if held and not resume:
            raise UsageError(f"{self.path} already holds a training ({held[0]}): resume it or choose another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be made: {error.strerror}") from error

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        self._write_whole(self.checkpoint, lambda temporary: torch.save(dict(state), temporary))

    def save_weights(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path | None = None
    ) -> None:
        own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self._write_whole(path or self.weights, lambda temporary: save_file(own, temporary, dict(metadata)))

    def read_checkpoint(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; UsageError if it is of other settings, or not one of ours."""
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            theirs = state["settings"]
        except Exception as error:  # torch.load raises whatever a damaged archive leads it to
            raise UsageError(f"{self.checkpoint}: not a checkpoint of a training: {first_line(error)}") from error
        for key, value in settings.items():
            if theirs.get(key) != value:
                raise UsageError(
                    f"{self.path}: was begun with {key} = {theirs.get(key)!r}, now {value!r}: use the same"
                )
        return dict(state)

    def write_line(self, record: Mapping[str, Any]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def drop_lines_from(self, step: int) -> None:
        """What was logged after the checkpoint will be done, and logged, once more."""
        if not self.log.exists():
            return
        kept = [line for line in self.log.read_text(encoding="utf-8").splitlines() if _step_of(line) < step]
        text = "".join(f"{line}\n" for line in kept)
        self._write_whole(self.log, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _write_whole(self, path: Path, write: Any) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except Exception as error:  # torch and safetensors have their own types for a full disk
            temporary.unlink(missing_ok=True)
            raise StoppedError(f"{path}: cannot be written: {first_line(error)}") from error


def _step_of(line: str) -> float:
    """A line cut off by a kill counts as one to drop."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
