"""webdataset: shards, written by hand and by the library of that name."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcam_fast.data import ImageError, TarMember, image_header, open_dataset, read_image, read_mask
from advcam_fast.errors import UsageError


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (7, 5)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_shard(file: Path, *members: tuple[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return file


def labels(spec: str) -> dict[str, tuple[str, ...] | None]:
    return {item.id: item.labels for item in open_dataset(spec).items}


def test_samples_their_tags_and_masks(tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(mask, "PNG")
    (tmp_path / "classes.txt").write_text("cat\ndog\nred fox\n")
    write_shard(
        tmp_path / "a-1.tar",
        ("n/2.txt", b"red fox; cat\n"),
        ("n/2.JPG", picture(2, "JPEG")),
        ("n/2.mask.png", mask.getvalue()),
        ("x.cls", b"1"),
        ("x.png", picture(3)),
        ("only.json", b'["cat"]'),
        (".hidden.png", picture()),
    )
    write_shard(
        tmp_path / "a-0.tar",
        ("./0.png", picture(0)),
        ("./0.json", json.dumps({"id": "of the run", "labels": ["dog", 0, "dog"]}).encode()),
        ("1.webp", picture(1, "WEBP")),
        ("1.json", b'{"caption": "no labels here"}'),
        ("1.txt", "\ufeffcat".encode()),
    )
    dataset = open_dataset(f"webdataset:{tmp_path}/a-*.tar")
    assert {item.id: item.labels for item in dataset.items} == {
        "0": ("dog", "cat"),
        "1": ("cat",),
        "n/2": ("red fox", "cat"),
        "x": ("dog",),
    }
    assert [item.id for item in dataset.items] == ["0", "1", "n/2", "x"], "in the order of the shards"
    assert dataset.class_names == ("cat", "dog", "red fox")
    for item, content in zip(
        dataset.items, (picture(0), picture(1, "WEBP"), picture(2, "JPEG"), picture(3)), strict=True
    ):
        file = tmp_path / "unpacked"
        file.write_bytes(content)
        assert torch.equal(read_image(item.path), read_image(file))
        assert image_header(item.path)[:2] == (7, 5)
    assert dataset.items[2].mask is not None and read_mask(dataset.items[2].mask).tolist() == [[0, 1, 255]]
    assert dataset.items[2].path.name == "2.JPG" and dataset.items[0].mask is None


def test_without_tags_there_are_no_labels(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", ("a.png", picture()))
    dataset = open_dataset(f"webdataset:{tmp_path}/*.tar")
    assert dataset.class_names is None and dataset.items[0].labels is None


def test_a_key_in_two_shards_has_the_shards_name_before_it(tmp_path: Path) -> None:
    for shard in ("0", "1"):
        write_shard(tmp_path / f"{shard}.tar", ("a.png", picture()), (f"b{shard}.png", picture()))
    assert list(labels(f"webdataset:{tmp_path}/*.tar")) == ["0/a", "b0", "1/a", "b1"]
    write_shard(tmp_path / "sub" / "0.tar", ("a.png", picture()))
    with pytest.raises(UsageError, match="1 samples come twice, for instance '0/a'"):
        open_dataset(f"webdataset:{tmp_path}/**/*.tar")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", b"{", "Expecting property name"),
        ("a.json", b'{"labels": [["cat"]]}', "wanted names or indices of classes"),
        ("a.json", b'{"labels": true}', "wanted names or indices of classes"),
        ("a.txt", b"\xff", "invalid start byte"),
    ],
)
def test_tags_that_cannot_be_read_are_a_problem_of_their_item(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    write_shard(tmp_path / "0.tar", ("a.png", picture()), (name, content), ("b.png", picture()), ("b.txt", b"cat"))
    first, second = open_dataset(f"webdataset:{tmp_path}/0.tar").items
    assert first.problem and f"0.tar:{name}: " in first.problem and problem in first.problem
    assert (second.problem, second.labels) == (None, ("cat",))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a whole, uncompressed tar file"), (b"\x1f\x8b" + bytes(600), "not a whole, uncompressed tar file")],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        open_dataset(f"webdataset:{tmp_path}/0.tar")


def test_a_shard_that_is_cut_off_is_refused_and_one_cut_later_is_seen(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", ("a.png", picture(size=(64, 64))))
    item = open_dataset(f"webdataset:{shard}").items[0]
    assert isinstance(item.path, TarMember)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1500])
    with pytest.raises(UsageError, match="not a whole, uncompressed tar file"):
        open_dataset(f"webdataset:{shard}")
    with pytest.raises(ImageError, match=r"0.tar:a.png: the shard is cut off: 988 of \d+ bytes are there"):
        read_image(item.path)
    shard.unlink()
    with pytest.raises(ImageError, match=r"0.tar:a.png: No such file or directory"):
        read_image(item.path)


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file matches .*\*.tar"):
        open_dataset(f"webdataset:{tmp_path}/*.tar")
    write_shard(tmp_path / "0.tar", ("a.txt", b"cat"), ("README", b"hello"))
    with pytest.raises(UsageError, match="no image in 1 shards; wanted names ending in jpg"):
        open_dataset(f"webdataset:{tmp_path}/*.tar")
    write_shard(tmp_path / "0.tar", ("a.png", b""))
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(open_dataset(f"webdataset:{tmp_path}/0.tar").items[0].path)


def test_a_label_that_the_classes_lack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    write_shard(tmp_path / "0.tar", ("a.png", picture()), ("a.txt", b"cow"))
    with pytest.raises(UsageError, match=r"1 labels are not in .*classes.txt: 'cow'"):
        open_dataset(f"webdataset:{tmp_path}/0.tar")


def test_shards_of_the_library(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed: the extra [scale]")
    with webdataset.ShardWriter(f"{tmp_path}/%03d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            image = np.full((4, 6, 3), 40 * number, np.uint8)
            writer.write({"__key__": f"{number:04d}", "png": image, "cls": number % 2, "json": {"width": 6}})
    dataset = open_dataset(f"webdataset:{tmp_path}/*.tar")
    assert {item.id: item.labels for item in dataset.items} == {f"{n:04d}": (str(n % 2),) for n in range(5)}
    assert [int(read_image(item.path).max()) for item in dataset.items] == [40 * n for n in range(5)]
