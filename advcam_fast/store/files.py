"""Whole files or none: atomic writing, file names for item ids, and the lock of a writer."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from advcam_fast.errors import UsageError

_LONGEST_PART = 200  # file systems end at 255 bytes; the suffix needs some of them
_LONGEST_NAME = 1000


class StoreError(RuntimeError):
    """A run folder that could not be written or read: one line with the file and the reason."""


def write_whole(path: Path, content: bytes | memoryview, temporary: Path) -> None:
    """Writes a file under a temporary name of the same file system, then renames it: never seen half-written.

    The content is on the disk before the name is, so that after a power cut a file that is there is whole. Raises
    StoreError, for instance when the disk is full, and leaves nothing behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def file_name(item_id: str, suffix: str = ".npz") -> str:
    """A relative path without suffix for any id: inside its folder, different for different ids, plain ASCII.

    Each part between slashes is percent-encoded. No part is empty, starts with a dot or, as a folder, ends in the
    suffix; parts over 200 and names over 1000 characters end in ~ and the first 32 digits of their SHA-256 instead.
    """
    *folders, last = map(_encoded, item_id.split("/"))
    folders = [f"{folder[: -len(suffix)]}%2E{suffix[1:]}" if folder.endswith(suffix) else folder for folder in folders]
    name = "/".join(map(_shortened, [*folders, last]))
    return name if len(name) <= _LONGEST_NAME else _digested(_encoded(item_id))


def _encoded(part: str) -> str:
    text = quote(part, safe="", errors="surrogatepass").replace("~", "%7E")
    text = "%2E" + text[1:] if text.startswith(".") else text
    return text or "%"


def _shortened(part: str) -> str:
    return part if len(part) <= _LONGEST_PART else _digested(part)


def _digested(text: str) -> str:
    return f"{text[:100]}~{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def lock(path: Path, wait: bool = False) -> int:
    """Locks a file for this process and returns its descriptor; the kernel unlocks it when the process ends.

    Raises UsageError if another process holds it, unless `wait`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(f"{path.parent}: another process is writing here (it holds {path.name})") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
