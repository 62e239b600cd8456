"""A sample run's report, made in this process."""

import json
from pathlib import Path

from sample_run import SampleRun

from advcam_fast.data import open_dataset
from advcam_fast.pipelines.report import PER_IMAGE_FILE, report_run
from advcam_fast.store import MaskFolder, RunFolder


def make_report(sample: SampleRun, out: Path, with_masks: bool = True) -> list[str]:
    """Why images could not be shown."""
    reasons: list[str] = []
    masks = MaskFolder.read(sample.path / "masks") if with_masks else None
    report_run(
        RunFolder.read(sample.path),
        masks,
        open_dataset(sample.data),
        out,
        lambda now: reasons.append(f"{now.item_id}: {now.reason}") if now.reason else None,
    )
    return reasons


def write_metrics(sample: SampleRun, ious: dict[str, float | None]) -> None:
    """What `evaluate` leaves in a run."""
    curve = {"thresholds": [0.1, 0.2, 0.3], "miou": [0.4, 0.6, 0.5], "by_class": {sample.classes[0]: {"iou": 0.25}}}
    figures = {
        "images": {"evaluated": len(ious)},
        "segmentation": {"advcam": curve, "cam": {**curve, "miou": [0.3] * 3}},
    }
    (sample.path / "metrics.json").write_text(json.dumps(figures))
    (sample.path / PER_IMAGE_FILE).parent.mkdir()
    lines = [json.dumps({"id": item, "iou": iou}) for item, iou in ious.items()]
    (sample.path / PER_IMAGE_FILE).write_text("\n".join(lines) + "\n")
