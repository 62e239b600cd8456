"""The command line: `advcam-fast VERB`, one module a verb.

Exit codes: 0 done, 2 bad usage, 3 some images failed, 1 could not go on, 130 stopped.
"""

from __future__ import annotations

import os
import sys

from advcam_fast.cli import (  # noqa: F401  (each adds its verb)
    bench,
    demo,
    doctor,
    evaluate,
    export,
    label,
    refine,
    report,
    run,
    train_affinity,
    train_classifier,
    train_segmenter,
)
from advcam_fast.cli.app import app
from advcam_fast.cli.console import say
from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.store import StoreError


def main() -> None:
    try:
        app()
    except (UsageError, StoppedError, StoreError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
        where = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        say(f"error: {where}{' '.join(reason.splitlines())}", style="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)
