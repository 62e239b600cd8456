"""What the command line turns into exit codes 1 and 2, and errors in one line."""

from __future__ import annotations


class UsageError(ValueError):
    """A bad option, specification or weights file: one line that says what was given and what is possible."""


class StoppedError(RuntimeError):
    """The run cannot go on, and nothing that was asked for is at fault: exit code 1."""


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that some libraries put under it."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
