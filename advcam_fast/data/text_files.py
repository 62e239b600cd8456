"""Text and CSV files that people write: BOM, CRLF and quoting understood, damage named by file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from advcam_fast.errors import UsageError


def read_lines(path: Path) -> list[str]:
    """The stripped lines, blank ones at the end left out; raises UsageError for what is no UTF-8 text file."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, stripped fields) of each CSV row that is not blank; raises UsageError for what is no CSV."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            try:
                for row in rows:
                    fields = [field.strip() for field in row]
                    if any(fields):
                        yield rows.line_num, fields
            except csv.Error as error:
                raise UsageError(f"{path}, line {rows.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> UsageError:
    if isinstance(error, OSError):
        return UsageError(f"{path}: {error.strerror}")
    return UsageError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})")
