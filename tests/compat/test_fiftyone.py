"""A run's samples for FiftyOne: as plain values, and in a data set of the real package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_run import IMAGES, SampleRun, item_id, make_run

import advcam_fast as af
from advcam_fast.compat.fiftyone import mask_targets, plain_samples, samples
from advcam_fast.store import RunFolder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleRun:
    return make_run(tmp_path_factory.mktemp("sample"))


def painted(objects: list[dict[str, Any]], classes: list[str], size: tuple[int, int]) -> np.ndarray:
    """The mask of objects whose boxes are shares of the image."""
    mask = np.zeros(size, np.uint8)
    for found in objects:
        left, top, width, height = np.array(found["bounding_box"]) * [size[1], size[0], size[1], size[0]]
        pixels, y, x = found["mask"], round(top), round(left)
        assert pixels.shape == (round(height), round(width)) and 0 < found["confidence"] <= 1
        mask[y : y + len(pixels), x : x + pixels.shape[1]][pixels] = 1 + classes.index(found["label"])
    return mask


def check(rows: list[dict[str, Any]], sample: SampleRun) -> None:
    assert [Path(row["filepath"]).stem for row in rows] == [Path(file).stem for file, _, _ in IMAGES]
    for row, (file, labels, (width, height)) in zip(rows, IMAGES, strict=True):
        wanted = sample.masks[item_id(file)]
        assert Path(row["filepath"]).is_file() and row["labels"] == list(labels)
        assert (row["mask"] == wanted).all()
        assert (painted(row["objects"], sample.classes, wanted.shape) == wanted).all()
        maps = RunFolder.read(sample.path).read_maps(item_id(file))["strided"].numpy()
        assert row["advcam"].shape == ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
        assert (row["advcam"] == maps.max(0, initial=0)).all()


def test_plain_samples_hold_the_run(sample: SampleRun) -> None:
    check(list(plain_samples(sample.path)), sample)
    assert mask_targets(sample.path) == {0: "background", **dict(enumerate(sample.classes, 1)), 255: "ignored"}


def rows_of(made: list[Any]) -> list[dict[str, Any]]:
    """Samples as plain_samples has them."""
    return [
        {
            "filepath": one.filepath,
            "labels": [label.label for label in one.labels.classifications],
            "mask": one.mask.mask,
            "objects": [found.to_dict() | {"mask": found.mask} for found in one.objects.detections],
            "advcam": one.advcam.map,
        }
        for one in made
    ]


def test_samples_of_fiftyone_hold_the_run(sample: SampleRun) -> None:
    pytest.importorskip("fiftyone")
    check(rows_of(list(samples(sample.path))), sample)


def test_a_data_set_of_fiftyone_holds_the_run(sample: SampleRun, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    fiftyone.config.database_dir = str(tmp_path)
    try:
        dataset = fiftyone.Dataset("advcam_fast", overwrite=True)
    except fiftyone.core.service.ServiceListenTimeout:
        pytest.skip("FiftyOne's data base does not start here: it needs mongod")
    dataset.default_mask_targets = mask_targets(sample.path)
    dataset.add_samples(list(samples(sample.path)))
    check(rows_of(list(dataset)), sample)
    assert dataset.distinct("labels.classifications.label") == sorted(sample.classes)
    assert dataset.default_mask_targets[1] == sample.classes[0]


def test_what_cannot_be_is_told(sample: SampleRun, tmp_path: Path) -> None:
    with pytest.raises(af.UsageError, match="no masks, which fiftyone needs: run refine first"):
        next(plain_samples(sample.path, masks=tmp_path))
    small = make_run(tmp_path, IMAGES[:3])
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="a: .*not a JPEG"):
        rows = list(plain_samples(small.path))
    assert [Path(row["filepath"]).stem for row in rows] == ["c d", "turned"]
