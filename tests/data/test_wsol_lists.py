"""The lists of the common WSOL evaluator, as small trees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import save_mask, write

from advcam_fast.data import ImageError, open_dataset, read_boxes, read_truth
from advcam_fast.data.dataset import Box
from advcam_fast.data.truth import nearest
from advcam_fast.errors import UsageError


def save_wsol(folder: Path, name: str, split: str = "test") -> None:
    lists = f"metadata/{name}/{split}"
    write(
        folder,
        {
            f"{lists}/image_ids.txt": "val/a.JPEG\nval/b.JPEG\n",
            f"{lists}/class_labels.txt": "val/a.JPEG,3\nval/b.JPEG,0\n",
            f"{lists}/image_sizes.txt": "val/a.JPEG,500,300\nval/b.JPEG,8,6\n",
            f"{lists}/localization.txt": "val/a.JPEG,111,108,441,193\nval/a.JPEG,1,2,3,4\nval/b.JPEG,0,0,7,5\n",
            f"dataset/{name}/val/a.JPEG": "",
        },
    )


@pytest.mark.parametrize(("kind", "name"), [("imagenet", "ILSVRC"), ("cub", "CUB")])
def test_wsol_boxes(tmp_path: Path, kind: str, name: str) -> None:
    save_wsol(tmp_path, name)
    dataset = open_dataset(f"{kind}:{tmp_path}#test")
    assert dataset.class_names == ("0", "1", "2", "3")
    item = dataset.items[0]
    assert (item.id, item.path, item.labels) == ("val/a", tmp_path / "dataset" / name / "val/a.JPEG", ("3",))
    assert read_boxes(item, (300, 500)) == (Box("3", 111, 108, 441, 193), Box("3", 1, 2, 3, 4))
    with pytest.raises(ImageError, match="its boxes were drawn at 500 x 300, its maps are 300 x 500"):
        read_boxes(item, (500, 300))


def test_wsol_train_lists_have_no_truth(tmp_path: Path) -> None:
    save_wsol(tmp_path, "CUB", "train")
    (tmp_path / "metadata/CUB/train/localization.txt").unlink()
    assert [item.boxes for item in open_dataset(f"cub:{tmp_path}#train").items] == [(), ()]


@pytest.mark.parametrize("name", ["image_ids", "class_labels", "image_sizes", "localization"])
def test_wsol_says_what_is_missing(tmp_path: Path, name: str) -> None:
    save_wsol(tmp_path, "ILSVRC")
    (tmp_path / f"metadata/ILSVRC/test/{name}.txt").unlink()
    with pytest.raises(UsageError, match=f"lacks metadata/ILSVRC/test/{name}.txt; wanted metadata/ILSVRC/SPLIT/"):
        open_dataset(f"imagenet:{tmp_path}#test")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("image_ids", "\n", "the split is empty"),
        ("image_ids", "../a.JPEG\n", "is not below the list's folder"),
        ("class_labels", "val/a.JPEG,3\n", "it has no line for 'val/b.JPEG' of image_ids.txt"),
        ("class_labels", "val/a.JPEG,cat\nval/b.JPEG,0\n", "line 1: 'cat', wanted is a whole number"),
        ("localization", "val/a.JPEG,1,2,3\n", "line 1: 'val/a.JPEG,1,2,3', wanted a path and 4 more fields"),
        ("localization", "val/c.JPEG,1,2,3,4\n", "line 1: 'val/c.JPEG' has no class label"),
        ("localization", "val/a.JPEG,1,2,3,nan\n", "line 1: 'nan', wanted is a number"),
    ],
)
def test_wsol_names_the_line_that_is_wrong(tmp_path: Path, file: str, text: str, reason: str) -> None:
    save_wsol(tmp_path, "ILSVRC")
    (tmp_path / f"metadata/ILSVRC/test/{file}.txt").write_text(text)
    with pytest.raises(UsageError, match=reason):
        open_dataset(f"imagenet:{tmp_path}#test")


def save_openimages(folder: Path) -> Path:
    lists = folder / "metadata/OpenImages/test"
    write(
        lists,
        {
            "image_ids.txt": "test/01226z/a.jpg\n",
            "class_labels.txt": "test/01226z/a.jpg,1\n",
            "localization.txt": "test/01226z/a.jpg,test/01226z/a_m1.png,test/01226z/a_ignore.png\n"
            "test/01226z/a.jpg,test/01226z/a_m2.png,\n",
        },
    )
    images = folder / "dataset/OpenImages/test/01226z"
    save_mask(images / "a_m1.png", [[255, 0, 0, 0], [0, 0, 0, 0]])
    save_mask(images / "a_m2.png", [[0, 255]])
    save_mask(images / "a_ignore.png", [[255, 0, 0, 255], [255, 0, 0, 0]])
    return lists


def test_openimages_masks_are_united_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    save_openimages(tmp_path)
    (item,) = open_dataset(f"openimages:{tmp_path}#test").items
    assert item.labels == ("1",) and item.mask is not None
    assert read_truth(item, (2, 4)).tolist() == [[2, 0, 2, 2], [255, 0, 2, 2]]
    assert read_truth(item, (4, 8)).tolist() == [[2, 2, 0, 0, 2, 2, 2, 2]] * 2 + [[255, 255, 0, 0, 2, 2, 2, 2]] * 2


def test_openimages_lists_that_are_wrong(tmp_path: Path) -> None:
    lists = save_openimages(tmp_path)
    for text, reason in (
        ("test/01226z/a.jpg,,\n", "wanted a mask, and for the image one mask of what to ignore"),
        (
            "test/01226z/a.jpg,m.png,i.png\ntest/01226z/a.jpg,m2.png,i2.png\n",
            "line 2: wanted a mask, and for the image",
        ),
        ("test/01226z/a.jpg,../../m.png,\n", "is not below the list's folder"),
    ):
        (lists / "localization.txt").write_text(text)
        with pytest.raises(UsageError, match=reason):
            open_dataset(f"openimages:{tmp_path}#test")
    (lists / "localization.txt").unlink()
    with pytest.raises(UsageError, match=r"lacks metadata/OpenImages/test/localization\.txt; wanted"):
        open_dataset(f"openimages:{tmp_path}#test")


def test_nearest_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = generator.integers(1, 700, 2).tolist()
        mask = generator.integers(0, 256, (height, width), dtype=np.uint8)
        for size in ((224, 224), (height * 2 + 1, 37)):
            wanted = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
            assert np.array_equal(nearest(torch.from_numpy(mask), size).numpy(), wanted)
