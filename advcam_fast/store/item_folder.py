"""A folder with one file an item, settings and a manifest, whole at every moment."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from advcam_fast.errors import UsageError
from advcam_fast.store.files import StoreError, file_name, lock, write_whole
from advcam_fast.store.manifest import ManifestPart, Record, read_records
from advcam_fast.store.settings import check_unchanged, plain_settings, read_run_toml, to_toml

if TYPE_CHECKING:
    from typing_extensions import Self

NOT_WHOLE = "its file is not whole"
MAIN = "main"  # the part of a job's first process; those of its others are open only beside it

_LOCK, _SETTINGS, _NEW_SETTINGS = ".lock", "run.toml", ".run.toml.tmp"


@dataclass(frozen=True, slots=True)
class _Writer:
    """What only the process that writes to a run holds."""

    part: ManifestPart
    temporary: Path
    lock: int
    one_at_a_time: threading.Lock

    def close(self) -> None:
        try:
            self.part.close()
            shutil.rmtree(self.temporary, ignore_errors=True)
        finally:
            os.close(self.lock)


class ItemFolder:
    """Work on disk: `open` starts or resumes it for writing, `read` only looks at it.

    An item is finished when it failed, or when the manifest says "ok" and its file is there, whole. One whose file is
    not is to be done again by who writes, and has failed for who only looks. Only ids are kept in memory. `finish` and
    `fail` may be called from several threads.
    """

    FOLDER = ""  # of the items' files, within this one
    SUFFIX = ""

    def __init__(self, path: Path, verify: bool, writer: _Writer | None) -> None:
        self.path = path
        self.settings, self.info = read_run_toml(path / _SETTINGS)
        self._writer = writer
        self._ok: set[str] = set()
        self._failed: set[str] = set()
        self._not_whole: set[str] = set()  # only looked at
        self._to_retry: set[str] = set()
        self.reload(verify)

    def reload(self, verify: bool = False) -> None:
        """Reads the manifest again: what other processes have finished since. Of an item the last line counts."""
        self._ok, self._failed, self._not_whole = set(), set(), set()
        for record in self._lines():
            for known in (self._ok, self._failed, self._not_whole):
                known.discard(record.id)
            if record.status == "failed":
                self._failed.add(record.id)
            elif self._is_whole(record, verify):
                self._ok.add(record.id)
            elif self._writer is None:
                self._not_whole.add(record.id)

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = True,
        retry_failed: bool = False,
        verify: bool = False,
        part: str = MAIN,
        info: Mapping[str, Any] | None = None,
    ) -> Self:
        """Starts in a new or empty folder, or goes on with what is there.

        `settings` must equal those it was started with; `info` (versions, the command) is noted at the start and not
        compared. `part` names this worker's manifest: several processes may share a folder if each has its own, "main"
        (the first) is refused while any other is open.
        `verify` reads every item's file and compares its SHA-256, where otherwise its size decides. Failed items count
        as finished unless `retry_failed`.

        Raises UsageError if settings changed, another process writes this part, the folder holds something else or
        cannot be written, or it holds a run and `resume` is false; StoreError if the disk is full.
        """
        if not re.fullmatch("[A-Za-z0-9_-]+", part):
            raise UsageError(f"part {part!r}, wanted letters, digits, _ and -")
        if "info" in settings:
            raise ValueError("settings holds 'info', the name of the table that is not compared")
        folder = Path(path)
        wanted = plain_settings(settings)
        try:
            writer = _begin(folder, wanted, plain_settings(info or {}), resume, part, folder / cls.FOLDER)
        except OSError as error:
            kind = StoreError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UsageError
            raise kind(f"{folder}: no run can be written here: {error.filename}: {error.strerror}") from error
        try:
            run = cls(folder, verify, writer)
        except BaseException:
            writer.close()
            raise
        if retry_failed:
            run.redo(run._failed)
        return run

    @classmethod
    def read(cls, path: str | Path, *, verify: bool = False) -> Self:
        """Opens it to look at, even while it is being written; raises UsageError if it is no such folder."""
        return cls(Path(path), verify, None)

    def done_ids(self) -> frozenset[str]:
        """Ids that need no more work."""
        return frozenset((self._ok | self._failed) - self._to_retry)

    def redo(self, item_ids: Iterable[str]) -> None:
        """Finished items that count as not done; what is there of them stays until they are done again."""
        self._to_retry |= (self._ok | self._failed).intersection(item_ids)

    def counts(self) -> dict[str, int]:
        """How many items are finished: {"ok": ..., "failed": ...}."""
        return {"ok": len(self._ok), "failed": len(self._failed) + len(self._not_whole)}

    def records(self) -> Iterator[Record]:
        """The record of every finished item, in the manifest's order; of an item done again, its last one."""
        last = {record.id: n for n, record in enumerate(self._lines()) if self._status(record.id)}
        for n, record in enumerate(self._lines()):
            if last.get(record.id) == n:
                status = self._status(record.id)
                yield record if record.status == status else replace(record, status="failed", reason=status)

    def fail(self, item_id: str, reason: str, *, labels: Sequence[str] = ()) -> None:
        """Records that an item failed, and why; a file that it had before is removed."""
        self.file_path(item_id).unlink(missing_ok=True)
        self._append(Record(item_id, "failed", time.time(), " ".join(reason.split()), (), tuple(labels)))

    def file_path(self, item_id: str) -> Path:
        """Where the file of an item is, or would be."""
        return self.path / self.FOLDER / f"{file_name(item_id, self.SUFFIX)}{self.SUFFIX}"

    def _finish(self, item_id: str, content: bytes | memoryview, flags: Sequence[str], labels: Sequence[str]) -> None:
        """Stores an item's file and then records it as ok. StoreError if the disk is full: nothing of it is left."""
        temporary = self._writing().temporary / f"{os.getpid()}-{threading.get_ident()}"
        write_whole(self.file_path(item_id), content, temporary)
        digest, size = hashlib.sha256(content).hexdigest(), memoryview(content).nbytes
        self._append(Record(item_id, "ok", time.time(), "", tuple(flags), tuple(labels), digest, size))

    def _existing(self, item_id: str) -> Path:
        """The file of an item that is ok; raises StoreError if it is not."""
        if item_id not in self._ok:
            raise StoreError(f"{self.path}: {item_id!r} has no file: {self._status(item_id) or 'not done'}")
        return self.file_path(item_id)

    def close(self) -> None:
        """Brings the manifest to the disk and lets another process write."""
        if self._writer:
            writer, self._writer = self._writer, None
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, record: Record) -> None:
        writer = self._writing()
        with writer.one_at_a_time:
            writer.part.append(record)
            gained, lost = (self._ok, self._failed) if record.status == "ok" else (self._failed, self._ok)
            gained.add(record.id)
            lost.discard(record.id)
            self._to_retry.discard(record.id)

    def _writing(self) -> _Writer:
        if self._writer is None:
            raise RuntimeError(f"{self.path} is not open for writing")
        return self._writer

    def _lines(self) -> Iterator[Record]:
        """Of all parts, in the order of time: an item that one part has may be done again by another."""
        parts = map(read_records, sorted((self.path / "manifest").glob("*.jsonl")))
        return heapq.merge(*parts, key=lambda record: record.time)

    def _status(self, item_id: str) -> str:
        if item_id in self._not_whole:
            return NOT_WHOLE
        return "ok" if item_id in self._ok else "failed" if item_id in self._failed else ""

    def _is_whole(self, record: Record, verify: bool) -> bool:
        path = self.file_path(record.id)
        try:
            if path.stat().st_size != record.size:
                return False
            return not verify or hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        except OSError:
            return False


def _begin(
    folder: Path, settings: dict[str, Any], info: dict[str, Any], resume: bool, part: str, files: Path
) -> _Writer:
    folder.mkdir(parents=True, exist_ok=True)
    starting = lock(folder / _LOCK, wait=True)  # several workers may start in the same moment
    try:
        _settle(folder, settings, info, resume)
        temporary = files / f".tmp-{part}"
        (folder / "manifest").mkdir(exist_ok=True)
        if part == MAIN:
            for other in sorted((folder / "manifest").glob("*.lock")):
                os.close(lock(other))
        held = lock(folder / "manifest" / f"{part}.lock")
    finally:
        os.close(starting)
    try:
        for left in files.glob(".tmp-*") if part == MAIN else [temporary]:
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        return _Writer(ManifestPart(folder / "manifest" / f"{part}.jsonl"), temporary, held, threading.Lock())
    except BaseException:
        os.close(held)
        raise


def _settle(folder: Path, settings: dict[str, Any], info: dict[str, Any], resume: bool) -> None:
    file = folder / _SETTINGS
    if file.exists():
        if not resume:
            raise UsageError(f"{folder} already holds a run: resume it or choose another folder")
        check_unchanged(file, read_run_toml(file)[0], settings)
        return
    foreign = sorted({path.name for path in folder.iterdir()} - {_LOCK, _NEW_SETTINGS})
    if foreign:
        raise UsageError(f"{folder} is no run folder and not empty (it holds {foreign[0]!r}): choose another folder")
    write_whole(file, to_toml({**settings, "info": info}).encode(), folder / _NEW_SETTINGS)
