import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from advcam_fast.data import ImageError, Item, open_dataset, read_image, read_mask
from advcam_fast.data.dataset import item_ids
from advcam_fast.data.voc import VOC_CLASSES
from advcam_fast.errors import UsageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def summary(spec: str) -> dict[str, tuple[str, ...] | None]:
    dataset = open_dataset(spec)
    assert dataset.spec == spec
    assert len({item.id for item in dataset.items}) == len(dataset.items)
    return {item.id: item.labels for item in dataset.items}


@pytest.mark.parametrize("spec", ["", "photos", "folder:", "csv:", "voc:", "zip:a", "coco", "coco:", ":a"])
def test_other_specs_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="wanted folder:DIR, csv:FILE, webdataset:GLOB, voc:DIR#split, coco:DIR#split"):
        open_dataset(spec)


# folder:


def test_folder_without_tags_is_sorted_and_recursive(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/deep/c.webp", "notes.txt", ".hidden.jpg", ".cache/d.jpg", "no_suffix")
    assert summary(f"folder:{tmp_path}") == {"a": None, "b": None, "sub/deep/c": None}
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.class_names is None
    assert dataset.items[2] == Item("sub/deep/c", tmp_path / "sub" / "deep" / "c.webp")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "gif", "tif", "tiff", "webp", "TIF"])
def test_folder_takes_every_suffix(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a.{suffix}")
    assert summary(f"folder:{tmp_path}") == {"a": None}


def test_subfolders_are_labels_if_every_image_is_directly_in_one(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/2.png", "empty/readme.txt")
    assert summary(f"folder:{tmp_path}") == {"cat/1": ("cat",), "cat/2": ("cat",), "dog/1": ("dog",)}
    assert open_dataset(f"folder:{tmp_path}").class_names == ("cat", "dog")
    touch(tmp_path, "stray.jpg")
    assert set(summary(f"folder:{tmp_path}").values()) == {None}


def test_deeper_folders_are_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg")
    assert summary(f"folder:{tmp_path}") == {"train/cat/1": None, "val/cat/2": None}


def test_folder_with_a_list_is_read_as_csv(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\ncat/1.jpg,tabby\n")
    assert summary(f"folder:{tmp_path}") == {"cat/1": ("tabby",)}


def test_symlinks_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "outside/1.jpg", "data/cat/2.jpg")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    assert set(summary(f"folder:{tmp_path / 'data'}")) == {"cat/2", "dog/1"}


def test_folder_without_images_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no image below .* wanted files ending in .jpg"):
        open_dataset(f"folder:{tmp_path}")
    with pytest.raises(UsageError, match="missing is not a folder"):
        open_dataset(f"folder:{tmp_path / 'missing'}")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("folder:~").items[0].path == tmp_path / "a.jpg"


def test_ids_keep_the_suffix_where_they_would_clash() -> None:
    paths = ["a.jpg", "a.png", "b.jpg", "a.jpg.png", "c/a.jpg"]
    assert item_ids(paths) == ["a.jpg", "a.png", "b", "a.jpg.png", "c/a"]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.from_regex(r"(a|b/a)(\.a|\.b){0,3}", fullmatch=True), unique=True))
def test_ids_are_unique_and_part_of_the_path(paths: list[str]) -> None:
    ids = item_ids(paths)
    assert len(set(ids)) == len(paths)
    assert all(path.startswith(name) for name, path in zip(ids, paths, strict=True))


# csv:


def write_list(folder: Path, text: str, classes: str | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_bytes(text.encode())
    if classes is not None:
        (folder / "classes.txt").write_bytes(classes.encode())
    return f"csv:{folder / 'list.csv'}"


def test_csv_labels_masks_and_other_columns(tmp_path: Path) -> None:
    spec = write_list(
        tmp_path, "mask,image,id,labels\nm/1.png,i/1.jpg,7,dog; cat\n,i/2.jpg,8,\n,./i//3.jpg,9,dog;dog\n"
    )
    dataset = open_dataset(spec)
    assert dataset.class_names == ("cat", "dog")
    assert list(dataset.items) == [
        Item("i/1", tmp_path / "i/1.jpg", ("dog", "cat"), tmp_path / "m/1.png"),
        Item("i/2", tmp_path / "i/2.jpg", ()),
        Item("i/3", tmp_path / "i/3.jpg", ("dog",)),
    ]


def test_csv_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    spec = write_list(tmp_path, '\ufeffimage,labels\r\n"a, ""b"".jpg","tench, Tinca;cat"\r\n\r\n,\r\nü.jpg,cat')
    assert summary(spec) == {'a, "b"': ("tench, Tinca", "cat"), "ü": ("cat",)}


def test_csv_with_classes_takes_names_and_indices(tmp_path: Path) -> None:
    spec = write_list(
        tmp_path, "image,labels\n1.jpg,2;Potted plant\n2.jpg,cat;1\n", "\ufeffcat\r\npotted_plant\r\ndog\r\n\n"
    )
    assert summary(spec) == {"1": ("dog", "potted_plant"), "2": ("cat", "potted_plant")}
    assert open_dataset(spec).class_names == ("cat", "potted_plant", "dog")


def test_csv_without_classes_sorts_numbers_as_numbers(tmp_path: Path) -> None:
    assert open_dataset(write_list(tmp_path, "image,labels\n1.jpg,10;9\n2.jpg,100\n")).class_names == ("9", "10", "100")


def test_csv_merges_rows_of_one_image(tmp_path: Path) -> None:
    spec = write_list(tmp_path, "image,labels,mask\na.jpg,cat,\n./a.jpg,dog,m.png\na.jpg,cat,m.png\nb.jpg,,\n")
    assert summary(spec) == {"a": ("cat", "dog"), "b": ()}
    assert open_dataset(spec).items[0].mask == tmp_path / "m.png"


def test_csv_names_an_unknown_class(tmp_path: Path) -> None:
    spec = write_list(tmp_path, "image,labels\n1.jpg,cat;hors\n2.jpg,unicorn\n", "cat\nhorse\n")
    with pytest.raises(UsageError, match=r"2 labels are not in .*classes.txt: 'hors' \(close: 'horse'\), 'unicorn'"):
        open_dataset(spec)


def test_a_listed_image_that_is_missing_fails_when_read(tmp_path: Path) -> None:
    item = open_dataset(write_list(tmp_path, "image,labels\nnone.jpg,cat\n")).items[0]
    with pytest.raises(ImageError, match=r"none\.jpg: No such file"):
        read_image(item.path)


@pytest.mark.parametrize(
    ("text", "classes", "reason"),
    [
        ("", None, "the file is empty, wanted the columns"),
        ("\n\n", None, "the file is empty, wanted the columns"),
        ("image,labels\n", None, "the list names no image"),
        ("image\na.jpg\n", None, r"columns 'image', wanted image,labels\[,mask\]"),
        ("image;labels\na.jpg;cat\n", None, "columns 'image;labels'"),
        ("image,labels,labels\n", None, "once each"),
        ("image,labels\na.jpg,tench, Tinca\n", None, "line 2: 3 fields under 2 columns"),
        ("image,labels\na.jpg\n", None, "line 2: 1 fields under 2 columns"),
        ("image,labels\na.jpg,cat\n,dog\n", None, "line 3: no image is named"),
        ('image,labels\n"a.jpg,cat\n', None, "line 2: unexpected end of data"),
        ("image,labels,mask\na.jpg,,1.png\na.jpg,,2.png\n", None, "line 3: a.jpg has two masks, 1.png and 2.png"),
        ("image,labels\na.jpg,2\n", "cat\ndog\n", "class index 2 is outside .*classes.txt: 2 classes, counted from 0"),
        ("image,labels\na.jpg,0\n", "cat\n\ndog\n", "classes.txt, line 2: no name"),
        ("image,labels\na.jpg,0\n", "cat\ndog\ncat\n", "classes.txt, line 3: class 'cat' again"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(tmp_path: Path, text: str, classes: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        open_dataset(write_list(tmp_path, text, classes))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"image,labels\n\xff\xfe.jpg,cat\n")
    with pytest.raises(UsageError, match=r"list\.csv: not UTF-8 .* at byte"):
        open_dataset(f"csv:{tmp_path / 'list.csv'}")
    spec = write_list(tmp_path, "image,labels\na.jpg,0\n")
    (tmp_path / "classes.txt").write_bytes(b"cat\n\xff\n")
    with pytest.raises(UsageError, match=r"classes\.txt: not UTF-8"):
        open_dataset(spec)
    with pytest.raises(UsageError, match=r"none\.csv: No such file"):
        open_dataset(f"csv:{tmp_path / 'none.csv'}")
    with pytest.raises(UsageError, match="Is a directory"):
        open_dataset(f"csv:{tmp_path}")


@pytest.mark.parametrize("bad", ["../a.jpg", "i/../../a.jpg", "i/../a.jpg", "/etc/a.jpg", "//a.jpg", "a\0.jpg"])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_paths_may_not_leave_the_lists_folder(tmp_path: Path, bad: str, column: str) -> None:
    row = f"{bad},cat," if column == "image" else f"a.jpg,cat,{bad}"
    with pytest.raises(UsageError, match=r"line 2: (path .* is not below the list's folder|line contains NUL)"):
        open_dataset(write_list(tmp_path / "data", f"image,labels,mask\n{row}\n"))


def test_symlinks_may_not_leave_the_lists_folder(tmp_path: Path) -> None:
    touch(tmp_path, "outside/secret.jpg", "data/real/a.jpg", "data2/a.jpg")
    data = tmp_path / "data"
    (data / "folder").symlink_to(tmp_path / "outside")
    (data / "file.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (data / "sibling.jpg").symlink_to(tmp_path / "data2" / "a.jpg")
    (data / "inner").symlink_to(data / "real")
    for bad in ("folder/secret.jpg", "folder/none.jpg", "file.jpg", "sibling.jpg"):
        with pytest.raises(UsageError, match="out of the list's folder"):
            open_dataset(write_list(data, f"image,labels\n{bad},cat\n"))
    assert summary(write_list(data, "image,labels\ninner/a.jpg,cat\n")) == {"inner/a": ("cat",)}
    (tmp_path / "link").symlink_to(data)
    assert summary(f"csv:{tmp_path / 'link' / 'list.csv'}") == {"inner/a": ("cat",)}


def test_a_long_list_opens_fast(tmp_path: Path) -> None:
    rows = "".join(f"i/{n}.jpg,{n % 50}\n" for n in range(20000))
    dataset = open_dataset(write_list(tmp_path, "image,labels\n" + rows))
    assert len(dataset.items) == 20000 and dataset.items[19999].labels == ("49",)


# voc:


def annotation(*objects: str, inner: str = "") -> str:
    body = "".join(f"<object><name>{name}</name><difficult>1</difficult>{inner}</object>" for name in objects)
    return f"<annotation><filename>x.jpg</filename>{body}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    part = "<part><name>head</name></part>"
    touch(tmp_path, "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png")
    for folder in ("Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations/2007_000032.xml").write_text(annotation("person", "aeroplane", "person", inner=part))
    (tmp_path / "Annotations/2007_000033.xml").write_text(annotation())
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000032\r\n2007_000033\r\n")
    (tmp_path / "ImageSets/Main/train.txt").write_text("2007_000033\n")
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("2007_000033\n")
    return tmp_path


def test_voc_labels_masks_and_classes(voc: Path) -> None:
    dataset = open_dataset(f"voc:{voc}#train")
    assert dataset.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    mask = voc / "SegmentationClass/2007_000032.png"
    assert list(dataset.items) == [
        Item("2007_000032", voc / "JPEGImages/2007_000032.jpg", ("aeroplane", "person"), mask),
        Item("2007_000033", voc / "JPEGImages/2007_000033.jpg", ()),
    ]
    assert set(summary(f"voc:{voc}#trainval")) == {"2007_000033"}


def test_voc_in_a_folder_with_a_hash_in_its_name(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "a#b").symlink_to(voc)
    assert len(open_dataset(f"voc:{tmp_path / 'a#b'}#train").items) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("<annotation>", "no element found"),
        (annotation("unicorn"), "object 'unicorn' is none of the 20 VOC classes"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "document type declaration"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type declaration"),
    ],
)
def test_a_broken_annotation_is_a_problem_of_its_item_only(voc: Path, content: str | None, reason: str) -> None:
    file = voc / "Annotations/2007_000033.xml"
    file.unlink() if content is None else file.write_text(content)
    good, bad = open_dataset(f"voc:{voc}#train").items
    assert good.problem is None and bad.labels is None
    assert bad.problem is not None and bad.problem.startswith("annotation Annotations/2007_000033.xml: ")
    assert reason in bad.problem and "\n" not in bad.problem


def test_an_annotation_in_utf16_cannot_hide_entities(voc: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'
    (voc / "Annotations/2007_000033.xml").write_bytes(text.encode("utf-16"))
    assert open_dataset(f"voc:{voc}#train").items[1].problem is not None


def test_voc_labels_are_in_voc_order(voc: Path) -> None:
    (voc / "Annotations/2007_000033.xml").write_text(annotation(*reversed(VOC_CLASSES)))
    assert open_dataset(f"voc:{voc}#train").items[1].labels == VOC_CLASSES


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations", "SegmentationClass"])
def test_voc_lists_what_the_layout_lacks(voc: Path, part: str) -> None:
    os.rename(voc / part, voc / "elsewhere")
    with pytest.raises(UsageError, match=f"lacks {part}; wanted JPEGImages, Annotations, SegmentationClass"):
        open_dataset(f"voc:{voc}#train")


def test_a_main_split_needs_no_masks(voc: Path) -> None:
    os.rename(voc / "SegmentationClass", voc / "elsewhere")
    assert open_dataset(f"voc:{voc}#trainval").items[0].mask is None


def test_voc_split_errors(voc: Path, tmp_path: Path) -> None:
    lists = " or ".join(f"ImageSets/{folder}/nope.txt" for folder in ("Segmentation", "SegmentationAug", "Main"))
    wanted = f"lacks {lists}; there are train, trainval"
    with pytest.raises(UsageError, match=wanted):
        open_dataset(f"voc:{voc}#nope")
    with pytest.raises(UsageError, match="there is no list at all"):
        open_dataset(f"voc:{tmp_path / 'nothing'}#train")
    for spec in (f"voc:{voc}", f"voc:{voc}#", "voc:#train"):
        with pytest.raises(UsageError, match="wanted voc:DIR#split"):
            open_dataset(spec)
    with pytest.raises(UsageError, match="wanted a name such as train"):
        open_dataset(f"voc:{voc}#../Main/train")
    for bad in ("../secret", "a/b", "2007_000032 1", ".."):
        (voc / "ImageSets/Main/bad.txt").write_text(f"2007_000032\n{bad}\n")
        with pytest.raises(UsageError, match="wanted one image name without folder and suffix a line"):
            open_dataset(f"voc:{voc}#bad")
    (voc / "ImageSets/Main/bad.txt").write_text("\n")
    with pytest.raises(UsageError, match="the split is empty"):
        open_dataset(f"voc:{voc}#bad")


def test_a_palette_mask_of_voc_is_read_as_indices(voc: Path) -> None:
    image = Image.new("P", (3, 2), 15)
    image.putpalette([i * 7 % 256 for i in range(768)], "RGB")
    image.save(voc / "SegmentationClass/2007_000032.png")
    mask = open_dataset(f"voc:{voc}#train").items[0].mask
    assert mask is not None and read_mask(mask).unique().tolist() == [15]


# real photographs


@pytest.mark.parametrize("name", ["coco_train", "horses"])
def test_shared_lists_open_and_their_masks_fit_the_images(real_data: Path, name: str) -> None:
    dataset = open_dataset(f"folder:{real_data / name}")
    assert len(dataset.items) == {"coco_train": 100, "horses": 200}[name]
    assert dataset.class_names is not None
    for item in dataset.items[::20]:
        assert item.mask is not None and item.labels is not None
        mask = read_mask(item.mask)
        assert mask.shape == read_image(item.path).shape[1:]
        present = {dataset.class_names[value - 1] for value in mask.unique().tolist() if value not in (0, 255)}
        assert present == set(item.labels)
        assert not PurePosixPath(item.id).suffix
