"""A run's images, masks and objects as samples of FiftyOne, with no file in between."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from advcam_fast.data import TarMember, open_dataset
from advcam_fast.errors import UsageError, first_line
from advcam_fast.export import ExportItem, fiftyone
from advcam_fast.pipelines.export import UNFIT, ExportSource, read_item
from advcam_fast.pipelines.refine import images_of
from advcam_fast.store import RunFolder


def samples(run: str | Path, data: str | None = None, masks: str | Path | None = None) -> Iterator[Any]:
    """A fiftyone.Sample of every finished image of a run, its fields as `plain_samples` has them.

        dataset = fiftyone.Dataset("photos")
        dataset.add_samples(samples("run"))

    labels are Classifications, mask a Segmentation, objects Detections with their scores and masks, advcam a Heatmap.
    Raises UsageError as `plain_samples`, and where FiftyOne is not installed.
    """
    try:
        import fiftyone as fo
    except ImportError as error:
        raise UsageError("FiftyOne is not installed: pip install fiftyone, or use plain_samples") from error
    for row in plain_samples(run, data, masks):
        yield fo.Sample(
            filepath=row["filepath"],
            tags=row["tags"],
            labels=fo.Classifications(classifications=[fo.Classification(label=name) for name in row["labels"]]),
            mask=fo.Segmentation(mask=row["mask"]),
            objects=fo.Detections(detections=[fo.Detection(**found) for found in row["objects"]]),
            advcam=fo.Heatmap(map=row["advcam"], range=[0, 1]),
        )


def plain_samples(
    run: str | Path, data: str | None = None, masks: str | Path | None = None
) -> Iterator[dict[str, Any]]:
    """The same as plain values, without FiftyOne.

    filepath; tags: the image's flags; labels: names; mask: uint8 [H, W], whose values `mask_targets` names; objects:
    label, confidence, bounding_box (x, y, width and height, as shares of the image's) and mask, bool [h, w] of that
    box; advcam: float32 [(H-1)//4+1, (W-1)//4+1], the largest of the image's maps, 0 to 1. data, masks: as of
    `export`, where the run does not know. An image that cannot be is warned of and left out.
    Raises UsageError for a run without masks, or of images in shards, which are no files.
    """
    source = _source(run, masks)
    paths = {item.id: item.path for item in open_dataset(images_of(source.run, data)).items}
    if any(isinstance(path, TarMember) for path in paths.values()):
        raise UsageError(f"{run}: its images lie in shards, wanted are files: export --to fiftyone writes them")
    for record in source.run.records():
        try:
            item = read_item(source, record, paths)
        except UNFIT as error:
            warnings.warn(f"{record.id}: {first_line(error)}", stacklevel=2)
            continue
        yield _plain(item, source.classes)


def mask_targets(run: str | Path, masks: str | Path | None = None) -> dict[int, str]:
    """Value of a mask -> class, for `dataset.default_mask_targets`."""
    classes = _source(run, masks).classes
    return fiftyone.mask_targets(classes)


def _source(run: str | Path, masks: str | Path | None) -> ExportSource:
    return ExportSource.read(RunFolder.read(run), Path(masks or Path(run) / "masks"), ["fiftyone"])


def _plain(item: ExportItem, classes: tuple[str, ...]) -> dict[str, Any]:
    height, width = item.picture.size
    maps = item.maps["strided"].float().numpy()
    return {
        "filepath": str(item.picture.path.resolve()),
        "tags": list(item.flags),
        "labels": list(item.labels),
        "mask": item.mask,
        "objects": [
            {
                "label": classes[found.category],
                "confidence": found.score,
                "bounding_box": [side / whole for side, whole in zip(found.box, (width, height) * 2, strict=True)],
                "mask": found.pixels,
            }
            for found in item.objects
        ],
        "advcam": maps.max(0, initial=0) if len(maps) else np.zeros(maps.shape[1:], np.float32),
    }
