"""The published folder layouts: what of them is missing, and paths from lists that may not leave the folder."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from advcam_fast.errors import UsageError


def check_layout(spec: str, directory: Path, parts: Sequence[str], layout: str | None = None) -> None:
    """Raises UsageError naming every file, or folder (ending in /), that `directory` lacks, and the layout wanted."""
    lacking = [
        part.rstrip("/")
        for part in parts
        if not ((directory / part).is_dir() if part.endswith("/") else (directory / part).is_file())
    ]
    if lacking:
        wanted = layout or ", ".join(part.rstrip("/") for part in parts)
        raise UsageError(f"data {spec!r}: {directory} lacks {', '.join(lacking)}; wanted {wanted}")


class Root:
    """The folder that the paths of a list may not leave."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._folders: dict[str, str] = {}  # the real path of each: a list has many files in few folders

    def inside(self, text: str, where: str) -> str:
        """The path without needless parts; raises UsageError if it is empty or leads out of the folder."""
        if not text:
            raise UsageError(f"{where}: no image is named")
        if text.startswith("/") or ".." in text.split("/") or "\0" in text:
            raise UsageError(f"{where}: path {text!r} is not below the list's folder")
        path = posixpath.normpath(text)
        folder, name = posixpath.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._real(folder, text, where)
        if os.path.islink(os.path.join(self._folders[folder], name)):
            self._real(path, text, where)
        return path

    def _real(self, path: str, text: str, where: str) -> str:
        real = os.path.realpath(os.path.join(self._root, path))
        if os.path.commonpath([self._root, real]) != self._root:
            raise UsageError(f"{where}: path {text!r} leads to {real}, out of the list's folder")
        return real
