"""Where a run's images are found again."""

from __future__ import annotations

from advcam_fast.data import Dataset, open_dataset
from advcam_fast.errors import UsageError
from advcam_fast.store import RunFolder


def images_of(run: RunFolder, data: str | None) -> Dataset:
    """The data set of a SPEC, by default that of the run's settings; raises UsageError where neither names one."""
    spec = data or str(run.settings.get("data", ""))
    if not spec or spec == "demo":
        raise UsageError(
            f"{run.path}: it does not say where its images are: add --data csv:FILE, folder:DIR or voc:DIR#split"
        )
    return open_dataset(spec)
