"""A file inside a tar shard, read where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class TarMember:
    """`size` bytes at `offset` of an uncompressed tar file: what an image's path is where shards are not unpacked.

    It has those parts of a path that readers of images use.
    """

    tar: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.member).suffix

    def read_bytes(self) -> bytes:
        """Raises OSError where the shard cannot be read, ValueError where it ends too early."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"the shard is cut off: {len(content)} of {self.size} bytes are there")
        return content

    def __str__(self) -> str:
        return f"{self.tar}:{self.member}"
