"""manifest/PART.jsonl: one line for each finished item, only ever appended to."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from advcam_fast.store.files import StoreError


@dataclass(frozen=True, slots=True)
class Record:
    """How one item ended: `status` "ok" with the size and SHA-256 of its map file, or "failed" with a reason."""

    id: str
    status: str
    time: float  # seconds since 1970
    reason: str = ""
    flags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sha256: str = ""
    size: int = 0

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """Raises ValueError for a line that is no record."""
        try:
            fields = json.loads(line)
            record = cls(**fields | {"flags": tuple(fields["flags"]), "labels": tuple(fields["labels"])})
        except (TypeError, KeyError) as error:
            raise ValueError("no record") from error
        if not isinstance(record.id, str) or record.status not in ("ok", "failed"):
            raise ValueError("no record")
        return record


def read_records(file: Path) -> Iterator[Record]:
    """Yields the records of a part; a last line without its end was cut off by a kill and does not count.

    Other lines that are no records (a power cut can leave such) are left out with a warning: their items are redone.
    """
    damaged = 0
    with open(file, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    record = Record.parse(line)
                except ValueError:
                    damaged += 1
                else:
                    yield record
    if damaged:
        warnings.warn(f"{file}: {damaged} damaged lines left out; their items count as not done", stacklevel=2)


class ManifestPart:
    """The part that one worker appends to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._descriptor, self._end_of_last_line())

    def append(self, record: Record) -> None:
        """Adds a whole line or, raising StoreError when the disk is full, nothing."""
        size = os.fstat(self._descriptor).st_size
        rest = record.line()
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException as error:
            os.ftruncate(self._descriptor, size)
            if isinstance(error, OSError):
                raise StoreError(f"{self._file}: cannot be written: {error.strerror}") from error
            raise

    def close(self) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _end_of_last_line(self) -> int:
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - 65536)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0
