"""report: a run in, one static page with its gallery, curves, timing and configuration out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advcam_fast.data import Dataset, ImageError, TarMember, read_image, read_mask
from advcam_fast.errors import UsageError, first_line
from advcam_fast.pipelines.evaluation_files import PER_IMAGE_FILE
from advcam_fast.pipelines.label import Progress
from advcam_fast.report.chart import Chart, line_chart
from advcam_fast.report.gallery import Gallery
from advcam_fast.report.page import PageFacts, write_page
from advcam_fast.store import MaskFolder, Record, RunFolder, StoreError

MOST_FAILURES = 500
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
_SERIES = {"advcam": "AdvCAM", "cam": "CAM", "masks": "masks"}


def report_run(
    run: RunFolder,
    masks: MaskFolder | None,
    dataset: Dataset,
    out: Path,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Writes the page of a run into a folder, in the place of an older one, and returns its path.

    Images that cannot be shown are reported with why. Raises UsageError for a run without maps and for a folder that
    holds something else or cannot be written.
    """
    if not run.counts()["ok"]:
        raise UsageError(f"{run.path}: no image of this run has maps")
    paths = {item.id: item.path for item in dataset.items}
    total, failures, times = sum(run.counts().values()), [], []
    metrics, ious = _read_metrics(run.path / "metrics.json"), _read_ious(run.path / PER_IMAGE_FILE)
    values = _mask_values(masks)
    with _replaced(out) as folder:
        gallery = Gallery(folder)
        for number, record in enumerate(run.records(), start=1):
            times.append(record.time)
            told = ""
            try:
                _add(gallery, run, masks, record, paths, values, ious)
            except (ImageError, StoreError, ValueError, MemoryError) as error:
                reason = first_line(error)
                told = reason if record.status == "ok" else ""  # of the others the run itself has told
                failures.append((record.id, reason))
            report(Progress(record.id, number, total, told))
        facts = _facts(run, masks, gallery, metrics, times, failures, bool(ious))
        write_page(folder, gallery, facts)
    return out / "index.html"


def _add(
    gallery: Gallery,
    run: RunFolder,
    masks: MaskFolder | None,
    record: Record,
    paths: Mapping[str, Path | TarMember],
    values: Mapping[str, int],
    ious: Mapping[str, float],
) -> None:
    """Raises ValueError, ImageError or StoreError for an image that cannot be shown."""
    if record.status != "ok":
        raise ValueError(record.reason)
    if record.id not in paths:
        raise ValueError("this data set has no image of this id: --data names another")
    maps = run.read_maps(record.id)
    if len(maps["strided"]) != len(record.labels):
        raise ValueError(f"{len(maps['strided'])} maps for {len(record.labels)} labels in its file")
    photo = read_image(paths[record.id])
    size = tuple(photo.shape[1:])
    if record.labels and tuple(maps["initial"].shape[1:]) != size:
        raise ValueError(f"its maps were made of another image: this one is {size[1]} x {size[0]}")
    mask, known = None, []
    if masks is not None and masks.file_path(record.id).is_file():
        mask = read_mask(masks.file_path(record.id))
        known = [values[label] for label in record.labels]
    gallery.add(
        record.id,
        photo,
        record.labels,
        maps["strided"],
        maps["initial"],
        mask=mask,
        values=known,
        flags=record.flags,
        iou=ious.get(record.id),
    )


def _facts(
    run: RunFolder,
    masks: MaskFolder | None,
    gallery: Gallery,
    metrics: Mapping[str, Any],
    times: Sequence[float],
    failures: Sequence[tuple[str, str]],
    has_iou: bool,
) -> PageFacts:
    counts, classes = run.counts(), gallery.class_counts()
    segmentation = metrics.get("segmentation", {})
    by_class = segmentation.get("advcam", {}).get("by_class", {})
    tables = [("Configuration", _flat(run.settings)), ("Made by", _flat(run.info))]
    tables += (
        [("Masks", _flat({key: masks.settings[key] for key in masks.settings if key != "classes"}))] if masks else []
    )
    tables.append(("Metrics", _flat(_scalars(metrics))))
    climb, model = run.settings.get("climb", {}), run.settings.get("model", {})
    seconds = max(times) - min(times)
    summary = [
        ("Images", f"{counts['ok']:,} with maps" + (f", {counts['failed']:,} without" if counts["failed"] else "")),
        ("Classes", f"{len(classes):,}"),
        ("Preset", str(climb.get("preset", ""))),
        ("Model", str(model.get("name", "")) if isinstance(model, Mapping) else str(model)),
        ("First to last image", _duration(seconds)),
        ("Finished", time.strftime("%Y-%m-%d %H:%M", time.localtime(max(times)))),
    ]
    return PageFacts(
        title=f"{run.path.resolve().name}: AdvCAM maps",
        summary=[(name, value) for name, value in summary if value],
        charts=_charts(segmentation, times),
        tables=[(name, rows) for name, rows in tables if rows],
        classes=[(name, f"{count:,}", _number(by_class.get(name, {}).get("iou"))) for name, count in classes],
        failures=failures[:MOST_FAILURES],
        failures_left_out=max(0, len(failures) - MOST_FAILURES),
        has_masks=masks is not None,
        has_iou=has_iou,
    )


def _charts(segmentation: Mapping[str, Any], times: Sequence[float]) -> list[Chart]:
    """mIoU over thresholds where it was measured, and how the run went on."""
    charts = []
    curves = {
        name: list(zip(part["thresholds"], part["miou"], strict=True))
        for key, name in _SERIES.items()
        if len((part := segmentation.get(key, {})).get("thresholds", ())) > 1
    }
    if curves:
        charts.append(
            line_chart("mIoU by threshold", "threshold", "mIoU", curves, lambda x, y: f"best {y:.3f} at {x:.2f}")
        )
    if len(times) > 1:
        begin, span = min(times), max(times) - min(times)
        unit, size = next((name, size) for name, size in _UNITS if span >= 3 * size or size == 1)
        done = [((at - begin) / size, float(number)) for number, at in enumerate(sorted(times), start=1)]
        pace = f"{(len(times) - 1) / max(span, 1e-9):.2f} images/s"
        charts.append(line_chart("Timing", unit, "images done", {"done": done}, lambda x, y: pace))
    return charts


def _mask_values(masks: MaskFolder | None) -> dict[str, int]:
    classes = masks.settings.get("classes", []) if masks is not None else []
    return {str(name): number for number, name in enumerate(classes, start=1)}


def _read_metrics(file: Path) -> dict[str, Any]:
    """The figures of `evaluate`; empty where it has not run."""
    if not file.is_file():
        return {}
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: no JSON: {first_line(error)}") from error
    return figures if isinstance(figures, dict) else {}


def _read_ious(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        return {str(row["id"]): float(row["iou"]) for row in rows if row["iou"] is not None}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file}: wanted is a line of id and iou an image: {first_line(error)}") from error


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of an older report at the end, or is gone."""
    if out.exists() and not (out / "data" / "index.js").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is no report and not empty: remove it or choose another --out")
    new, old = (out.with_name(f".{out.name}.{kind}") for kind in ("tmp", "old"))
    try:
        for folder in (new, old):
            if folder.exists():
                shutil.rmtree(folder)  # of a report that was killed
        new.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{out}: no report can be written here: {error.filename}: {error.strerror}") from error
    try:
        yield new
        if out.exists():
            out.replace(old)
        new.replace(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{prefix}{key}", text))
    return rows


def _scalars(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures without curves, lists of failures and tables by class, which have their own places."""
    kept = {key: _scalars(value) if isinstance(value, Mapping) else value for key, value in figures.items()}
    return {
        key: value
        for key, value in kept.items()
        if key not in ("failures", "by_class") and not (isinstance(value, list) and len(value) > 4)
    }


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
