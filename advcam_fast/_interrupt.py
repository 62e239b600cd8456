"""Ctrl-C while a program of ours is still importing: one line instead of a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType


def quiet_while_starting() -> None:
    """Shortens what an interrupt of `advcam-fast` or `python -m advcam_fast` says; other programs are left alone.

    Python then still ends by the signal, which a shell shows as 130.
    """
    given = sys.orig_argv[1:]
    ours = "advcam_fast" in given[given.index("-m") + 1 :][:1] if "-m" in given else False
    if ours or Path(sys.argv[0]).name == "advcam-fast":
        sys.excepthook = _one_line


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before it began", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


quiet_while_starting()
