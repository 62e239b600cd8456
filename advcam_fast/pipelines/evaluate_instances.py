"""Average precision of the instances of a run, where the data outlines its own."""

from __future__ import annotations

from pathlib import Path

from advcam_fast.data import Dataset, ImageError
from advcam_fast.data.coco import CocoInstances
from advcam_fast.errors import first_line
from advcam_fast.metrics.instance_ap import Instance, instance_ap
from advcam_fast.pipelines.judged_run import JudgedRun
from advcam_fast.pipelines.refine import instances_beside
from advcam_fast.store import InstanceFolder, StoreError


def instance_figures(
    run: JudgedRun, dataset: Dataset, masks: Path | None
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """COCO's figures of the instances beside the masks, and (id, reason) of the images that have none to judge.

    Both empty where the run has no instances or the data no outlines.
    """
    folder = instances_beside(masks or run.path / "masks")
    outlined = [(item, item.mask) for item in dataset.items if isinstance(item.mask, CocoInstances)]
    if not outlined or not (folder / "run.toml").is_file():
        return {}, []
    found, failures = InstanceFolder.read(folder), []
    pairs = []
    for item, truth in outlined:
        try:
            pairs.append((_true(truth), _stored(found, item.id, run, truth)))
        except (ImageError, StoreError) as error:
            failures.append((item.id, first_line(error)))
    return instance_ap(pairs) if pairs else {}, failures


def _true(image: CocoInstances) -> list[Instance]:
    return [Instance(one.category, image.encoded(one), crowd=one.crowd) for one in image.instances]


def _stored(folder: InstanceFolder, item_id: str, run: JudgedRun, truth: CocoInstances) -> list[Instance]:
    content = folder.read_instances(item_id)
    if (content["height"], content["width"]) != (truth.height, truth.width):
        came = f"{content['width']} x {content['height']}"
        raise ImageError(f"its instances are of {came}, its annotation is of {truth.width} x {truth.height}")
    return [Instance(run.class_of(one["label"]), one["segmentation"], one["score"]) for one in content["instances"]]
