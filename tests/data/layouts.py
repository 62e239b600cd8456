"""The published layouts of data sets as small trees, whose images are empty files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save_mask(file: Path, values: list[list[int]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(file)


def save_voc(folder: Path) -> Path:
    box = "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>4</xmax><ymax>3</ymax></bndbox>"
    xml = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in ("2007_000032", "2008_000002")]
    write(
        folder,
        {
            "ImageSets/SegmentationAug/train_aug.txt": "".join(lines),
            "ImageSets/Segmentation/trainaug.txt": "2008_000002\n",
            "ImageSets/Segmentation/train.txt": "2007_000032\n",
            "ImageSets/Main/train.txt": "2008_000002\n",
            "Annotations/2007_000032.xml": xml,
            "Annotations/2008_000002.xml": xml,
            "JPEGImages/2007_000032.jpg": "",
        },
    )
    save_mask(folder / "SegmentationClass/2007_000032.png", [[0, 8, 255]])
    for name in ("2007_000032", "2008_000002"):
        save_mask(folder / f"SegmentationClassAug/{name}.png", [[8, 8, 0]])
    return folder


SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


def coco_content() -> dict[str, Any]:
    crowd = {"size": [6, 8], "counts": [0, 12, 36]}  # the first two columns
    return {
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", "height": 6, "width": 8},
            {"id": 4, "file_name": "000000000004.jpg", "height": 3, "width": 3},
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 1, "name": "person"}],
        "annotations": [
            {
                "image_id": 9,
                "category_id": 17,
                "segmentation": [[2, 2, 4, 2, 4, 3, 2, 3]],
                "area": 2,
                "bbox": [2, 2, 2, 1],
            },
            {"image_id": 9, "category_id": 1, "segmentation": [SQUARE], "area": 12, "bbox": [1, 1, 4, 3], "iscrowd": 0},
            {"image_id": 9, "category_id": 1, "segmentation": crowd, "area": 12, "bbox": [0, 0, 2, 6], "iscrowd": 1},
        ],
    }


def save_coco(folder: Path, content: Any, split: str = "train2017", images: str = "train2017") -> str:
    write(folder, {f"annotations/instances_{split}.json": json.dumps(content), f"{images}/000000000009.jpg": ""})
    return f"coco:{folder}#{split}"


def save_cub(folder: Path) -> Path:
    one, two = "001.Black_footed_Albatross/A_0046_18.jpg", "002.Laysan_Albatross/L_0003.jpg"
    write(
        folder,
        {
            "images.txt": f"1 {one}\n2 {two}\n",
            "image_class_labels.txt": "1 1\n2 2\n",
            "train_test_split.txt": "1 0\n2 1\n",
            "bounding_boxes.txt": "1 60.0 27.0 325.0 304.0\n2 139.0 30.0 153.0 264.0\n",
            "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
            f"images/{one}": "",
        },
    )
    return folder


ANNOTATION = (
    "<annotation><size><width>500</width></size><object><name>n01443537</name><bndbox><xmin>111</xmin><ymin>108</ymin>"
    "<xmax>441</xmax><ymax>193</ymax></bndbox></object></annotation>"
)


def save_imagenet(folder: Path) -> Path:
    images, boxes = "ILSVRC/Data/CLS-LOC", "ILSVRC/Annotations/CLS-LOC"
    write(
        folder,
        {
            "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
            "LOC_val_solution.csv": "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
            "ILSVRC2012_val_00000001,n01440764 10 20 30 40 \n",
            f"{images}/val/ILSVRC2012_val_00000001.JPEG": "",
            f"{images}/train/n01443537/n01443537_2.JPEG": "",
            f"{images}/train/n01443537/n01443537_10.JPEG": "",
            f"{boxes}/train/n01443537/n01443537_2.xml": ANNOTATION,
        },
    )
    return folder
