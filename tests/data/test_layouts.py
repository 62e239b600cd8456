"""The published layouts of COCO, CUB, ImageNet, OpenImages and VOC's augmented lists, as small trees."""

import os
from pathlib import Path

import pytest
from layouts import ANNOTATION, coco_content, save_coco, save_cub, save_imagenet, save_voc, write

from advcam_fast.data import Dataset, ImageError, open_dataset, read_boxes, read_truth
from advcam_fast.data.coco import CocoInstances
from advcam_fast.data.dataset import Box
from advcam_fast.errors import UsageError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return save_voc(tmp_path)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    return save_cub(tmp_path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return save_imagenet(tmp_path)


def ids(dataset: Dataset) -> list[str]:
    return [item.id for item in dataset.items]


# voc:


def test_voc_augmented_lists_and_masks(voc: Path) -> None:
    augmented = open_dataset(f"voc:{voc}#train_aug")
    assert ids(augmented) == ["2007_000032", "2008_000002"]
    assert [item.mask for item in augmented.items] == [
        voc / "SegmentationClassAug" / f"{name}.png" for name in ids(augmented)
    ]
    assert open_dataset(f"voc:{voc}#trainaug").items[0].mask == voc / "SegmentationClassAug/2008_000002.png"
    plain = open_dataset(f"voc:{voc}#train").items[0]
    assert read_truth(plain, (1, 3)).tolist() == [[0, 8, 255]]
    assert plain.boxes == (Box("cat", 0, 1.5, 3, 2),), "VOC counts its pixels from 1"
    with pytest.raises(ImageError, match="its mask is 3 x 1, its maps are 4 x 1"):
        read_truth(plain, (1, 4))


def test_voc_augmented_lists_say_what_is_missing(voc: Path) -> None:
    os.rename(voc / "SegmentationClassAug", voc / "elsewhere")
    with pytest.raises(UsageError, match="lacks SegmentationClassAug; wanted JPEGImages, Annotations"):
        open_dataset(f"voc:{voc}#train_aug")
    list_ = voc / "ImageSets/SegmentationAug/train_aug.txt"
    for bad in (
        "/JPEGImages/a.jpg /SegmentationClassAug/b.png",
        "/JPEGImages/../a.jpg /SegmentationClassAug/../a.png",
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg /SegmentationClass/b.png",
    ):
        list_.write_text(f"{bad}\n")
        with pytest.raises(UsageError, match="wanted one image name without folder and suffix a line, or /JPEGImages"):
            open_dataset(f"voc:{voc}#train_aug")


# coco:


@pytest.mark.parametrize(
    ("split", "images"), [("train2017", "train2017"), ("val2014", "val2014"), ("val2017", "images/val2017")]
)
def test_coco_tags_boxes_and_painted_masks(tmp_path: Path, split: str, images: str) -> None:
    dataset = open_dataset(save_coco(tmp_path, coco_content(), split, images))
    assert dataset.class_names == ("person", "cat"), "in the order of their ids"
    first, second = dataset.items
    assert (first.id, first.path, first.labels) == (
        "000000000009",
        tmp_path / images / "000000000009.jpg",
        ("person", "cat"),
    )
    assert first.boxes == (Box("cat", 2, 2, 4, 3), Box("person", 1, 1, 5, 4)), "the crowd has none"
    assert read_truth(first, (6, 8)).tolist() == [
        [255, 255, 0, 0, 0, 0, 0, 0],
        [255, 1, 1, 1, 1, 0, 0, 0],
        [255, 1, 2, 2, 1, 0, 0, 0],
        [255, 1, 1, 1, 1, 0, 0, 0],
        [255, 255, 0, 0, 0, 0, 0, 0],
        [255, 255, 0, 0, 0, 0, 0, 0],
    ]
    assert second.labels == () and not read_truth(second, (3, 3)).any()
    assert isinstance(first.mask, CocoInstances) and [one.crowd for one in first.mask.instances] == [False, False, True]
    with pytest.raises(ImageError, match="its mask is 8 x 6, its maps are 6 x 8"):
        read_truth(first, (8, 6))


def test_coco_outlines_that_are_none_fail_their_image_only(tmp_path: Path) -> None:
    content = coco_content()
    for bad in ("abc", {"size": [2, 2], "counts": [4]}, [["a"] * 6]):
        content["annotations"][1]["segmentation"] = bad
        dataset = open_dataset(save_coco(tmp_path, content))
        with pytest.raises(ImageError, match="its annotation cannot be drawn") as caught:
            read_truth(dataset.items[0], (6, 8))
        assert "\n" not in str(caught.value)
    content["annotations"][1]["segmentation"] = []
    assert read_truth(open_dataset(save_coco(tmp_path, content)).items[0], (6, 8)).unique().tolist() == [0, 2, 255]


def test_coco_says_what_is_missing_or_damaged(tmp_path: Path) -> None:
    spec = save_coco(tmp_path, coco_content())
    with pytest.raises(
        UsageError, match=r"lacks annotations/instances_val2017.json; wanted annotations/instances_SPLIT"
    ):
        open_dataset(f"coco:{tmp_path}#val2017")
    os.rename(tmp_path / "train2017", tmp_path / "photos")
    with pytest.raises(UsageError, match="lacks train2017/ and images/train2017/; wanted annotations/inst"):
        open_dataset(spec)
    for content, reason in (
        ({"images": []}, "no COCO annotations: KeyError"),
        ([], "no COCO annotations: TypeError"),
        (coco_content() | {"categories": []}, "no COCO annotations: KeyError"),
        (coco_content() | {"images": [], "annotations": []}, "the split is empty"),
    ):
        with pytest.raises(UsageError, match=reason):
            open_dataset(save_coco(tmp_path, content))
    content = coco_content()
    content["images"][0]["file_name"] = "../secret.jpg"
    with pytest.raises(UsageError, match="is not below the list's folder"):
        open_dataset(save_coco(tmp_path, content))
    (tmp_path / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(UsageError, match="no COCO annotations: JSONDecodeError"):
        open_dataset(spec)


# cub:


def test_cub_splits_classes_and_boxes(cub: Path) -> None:
    dataset = open_dataset(f"cub:{cub}#test")
    assert dataset.class_names == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    (item,) = dataset.items
    assert item.id == "001.Black_footed_Albatross/A_0046_18"
    assert item.path == cub / "images" / f"{item.id}.jpg"
    assert item.boxes == (Box("001.Black_footed_Albatross", 60, 27, 385, 331),), "as in the evaluator's lists"
    assert ids(open_dataset(f"cub:{cub}#train")) == ["002.Laysan_Albatross/L_0003"]


@pytest.mark.parametrize(
    "name", ["images", "image_class_labels", "train_test_split", "bounding_boxes", "classes", "images/"]
)
def test_cub_says_what_is_missing(cub: Path, name: str) -> None:
    path = cub / (name if name.endswith("/") else f"{name}.txt")
    os.rename(path, cub / "elsewhere")
    with pytest.raises(UsageError, match=f"lacks {path.name}; wanted images.txt, image_class_labels.txt"):
        open_dataset(f"cub:{cub}#test")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("bounding_boxes.txt", "1 1 2 3\n2 1 2 3 4\n", "box '1 2 3', wanted x y width height"),
        ("bounding_boxes.txt", "2 1 2 3 4\n", "it has no line for image 1 of images.txt"),
        ("image_class_labels.txt", "1 7\n2 2\n", "class 7 is not in classes.txt"),
        ("images.txt", "1 ../a.jpg\n2 b.jpg\n", "is not below the list's folder"),
        ("images.txt", "one\n", "line 1: 'one', wanted a number"),
        ("train_test_split.txt", "1 1\n2 1\n", "the split test is empty"),
    ],
)
def test_cub_names_the_file_that_is_wrong(cub: Path, file: str, text: str, reason: str) -> None:
    (cub / file).write_text(text)
    with pytest.raises(UsageError, match=reason):
        open_dataset(f"cub:{cub}#test")


def test_cub_has_two_splits(cub: Path) -> None:
    with pytest.raises(UsageError, match="split 'val', CUB-200-2011 has train and test"):
        open_dataset(f"cub:{cub}#val")


# imagenet:


def test_imagenet_val_and_train(imagenet: Path) -> None:
    val = open_dataset(f"imagenet:{imagenet}#val")
    assert val.class_names == ("0", "1")
    assert [(item.id, item.labels) for item in val.items] == [
        ("ILSVRC2012_val_00000001", ("0",)),
        ("ILSVRC2012_val_00000002", ("1",)),
    ]
    assert val.items[0].path == imagenet / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG"
    assert val.items[1].boxes == (Box("1", 1, 2, 3, 4), Box("1", 5, 6, 7, 8))
    train = open_dataset(f"imagenet:{imagenet}#train")
    assert ids(train) == ["n01443537/n01443537_10", "n01443537/n01443537_2"]
    assert [read_boxes(item, (9, 9)) for item in train.items] == [(), (Box("1", 111, 108, 441, 193),)]


def test_a_broken_imagenet_annotation_fails_its_image_only(imagenet: Path) -> None:
    file = imagenet / "ILSVRC/Annotations/CLS-LOC/train/n01443537/n01443537_2.xml"
    for text, reason in (("<a", "unclosed token"), (ANNOTATION.replace("441", "x"), "wanted are numbers with xmin")):
        file.write_text(text)
        with pytest.raises(ImageError, match=reason):
            read_boxes(open_dataset(f"imagenet:{imagenet}#train").items[1], (9, 9))


@pytest.mark.parametrize("part", ["LOC_synset_mapping.txt", "LOC_val_solution.csv", "ILSVRC/Data/CLS-LOC/val"])
def test_imagenet_says_what_is_missing(imagenet: Path, part: str) -> None:
    os.rename(imagenet / part, imagenet / "elsewhere")
    with pytest.raises(UsageError, match=f"lacks {part}; wanted LOC_synset_mapping.txt, ILSVRC/Data"):
        open_dataset(f"imagenet:{imagenet}#val")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("LOC_val_solution.csv", "a,n01440764 1 2 3\n", "wanted a WordNet id of LOC_synset_mapping.txt and four"),
        ("LOC_val_solution.csv", "a,n99999999 1 2 3 4\n", "line 1: 'n99999999 1 2 3 4', wanted a WordNet id"),
        ("LOC_val_solution.csv", "../a,n01440764 1 2 3 4\n", "wanted the columns ImageId,PredictionString"),
        ("LOC_synset_mapping.txt", "tench\n", "line 1: 'tench', wanted one new WordNet id"),
    ],
)
def test_imagenet_names_the_line_that_is_wrong(imagenet: Path, file: str, text: str, reason: str) -> None:
    (imagenet / file).write_text(text)
    with pytest.raises(UsageError, match=reason):
        open_dataset(f"imagenet:{imagenet}#val")


def test_imagenet_has_two_splits(imagenet: Path) -> None:
    with pytest.raises(UsageError, match="split 'test', ILSVRC has train and val"):
        open_dataset(f"imagenet:{imagenet}#test")


# csv: with boxes


def test_csv_boxes_of_one_image_are_merged(tmp_path: Path) -> None:
    rows = "a.jpg,cat,1,2,3,4\na.jpg,dog,5,6,7,8\nb.jpg,,,,,\n"
    write(tmp_path, {"boxes.csv": f"image,label,xmin,ymin,xmax,ymax\n{rows}"})
    first, second = open_dataset(f"csv:{tmp_path / 'boxes.csv'}").items
    assert first.labels == ("cat", "dog") and second.boxes == ()
    assert first.boxes == (Box("cat", 1, 2, 3, 4), Box("dog", 5, 6, 7, 8))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,labels,xmin\n", "wanted image,labels"),
        ("image,labels,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,0,4\n", "line 2: box 1,2,0,4, wanted are numbers"),
        ("image,labels,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,,4\n", "line 2: box 1,2,,4, wanted are numbers"),
        ("image,labels,xmin,ymin,xmax,ymax\na.jpg,cat;dog,1,2,3,4\n", "line 2: a box of 2 labels, wanted is one"),
        ("image,labels,label\na.jpg,cat,cat\n", "once each"),
    ],
)
def test_csv_boxes_that_are_wrong(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path, {"boxes.csv": text})
    with pytest.raises(UsageError, match=reason):
        open_dataset(f"csv:{tmp_path / 'boxes.csv'}")


def test_the_raccoons_boxes_are_read(real_data: Path) -> None:
    dataset = open_dataset(f"csv:{real_data / 'raccoons/boxes.csv'}")
    assert (len(dataset.items), sum(len(read_boxes(item, (1, 1))) for item in dataset.items)) == (100, 107)
    assert dataset.items[0].boxes == (Box("raccoon", 81, 88, 522, 408),)
