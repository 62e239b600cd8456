"""The folder of instances that a run's maps were turned into, and one COCO file of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask

from advcam_fast.store.files import StoreError, write_whole
from advcam_fast.store.item_folder import ItemFolder


class StoredInstance(NamedTuple):
    """An object: the name of its class, how sure it is (0 to 1), and its pixels, bool [H, W]."""

    label: str
    score: float
    mask: torch.Tensor


class InstanceFolder(ItemFolder):
    """Instances on disk: ID.json beside what ItemFolder keeps.

    {"height": H, "width": W, "instances": [{"label", "score", "bbox": [x, y, w, h], "area", "segmentation": COCO's
    compressed RLE}]}, areas and boxes in pixels.
    """

    SUFFIX = ".json"

    def finish(
        self,
        item_id: str,
        size: tuple[int, int],
        instances: Sequence[StoredInstance],
        *,
        flags: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> None:
        """Stores the instances of an item of size (H, W), and then records it as ok.

        Raises ValueError for masks of another size, StoreError if the disk is full: then nothing of the item is left.
        """
        content = {"height": size[0], "width": size[1], "instances": [_encoded(each, size) for each in instances]}
        self._finish(item_id, json.dumps(content, separators=(",", ":")).encode(), flags, labels)

    def read_instances(self, item_id: str) -> dict[str, Any]:
        """The content of an item's file. Raises StoreError if it is not ok, or its file is damaged."""
        path = self._existing(item_id)
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            return content
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: not a whole instance file ({' '.join(str(error).split())})") from error

    def write_coco(self, file: Path, classes: Sequence[str], file_names: Mapping[str, str]) -> int:
        """Writes all instances as one COCO data set with scores, which pycocotools reads; their number.

        Category v is classes[v - 1]; images are numbered from 1 in the order of their ids. file_names: of the images,
        by id. An id comes back in "id_in_run".
        """
        category = {name: number for number, name in enumerate(classes, start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, item_id in enumerate(sorted(record.id for record in self.records() if record.status == "ok"), 1):
            content = self.read_instances(item_id)
            images.append(
                {
                    "id": number,
                    "file_name": file_names.get(item_id, item_id),
                    "height": content["height"],
                    "width": content["width"],
                    "id_in_run": item_id,
                }
            )
            for found in content["instances"]:
                own = {key: found[key] for key in ("segmentation", "bbox", "area", "score")}
                place = {"id": len(annotations) + 1, "image_id": number, "category_id": category[found["label"]]}
                annotations.append({**place, **own, "iscrowd": 0})
        data = {
            "info": {"description": "instances of advcam_fast"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in category.items()],
        }
        write_whole(file, json.dumps(data).encode(), file.with_name(f".{file.name}.tmp"))
        return len(annotations)


def _encoded(instance: StoredInstance, size: tuple[int, int]) -> dict[str, Any]:
    mask = instance.mask
    if mask.dtype != torch.bool or tuple(mask.shape) != size:
        raise ValueError(f"an instance is {mask.dtype} {list(mask.shape)}, wanted torch.bool {list(size)}")
    code = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {
        "label": instance.label,
        "score": instance.score,
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": int(coco_mask.area(code)),
        "segmentation": {"size": list(size), "counts": code["counts"].decode()},
    }
