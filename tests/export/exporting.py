"""A sample run, exported in this process."""

from pathlib import Path

from sample_run import SampleRun

from advcam_fast.data import open_dataset
from advcam_fast.pipelines.export import ExportSource, export_run
from advcam_fast.store import RunFolder


def export(sample: SampleRun, out: Path, *formats: str, copy_images: bool = False) -> list[str]:
    """Why items were left out."""
    reasons: list[str] = []
    source = ExportSource.read(RunFolder.read(sample.path), sample.path / "masks", formats)
    export_run(
        source,
        open_dataset(sample.data),
        formats,
        out,
        copy_images=copy_images,
        report=lambda now: reasons.append(f"{now.item_id}: {now.reason}") if now.reason else None,
    )
    return reasons
