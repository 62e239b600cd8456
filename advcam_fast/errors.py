"""The one exception the command line turns into exit code 2."""


class UsageError(ValueError):
    """A bad option, specification or weights file: one line that says what was given and what is possible."""
