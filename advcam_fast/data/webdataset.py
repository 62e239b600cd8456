"""`webdataset:GLOB`: tar shards whose images are read where they lie."""

from __future__ import annotations

import glob
import json
import posixpath
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advcam_fast.data.csv_list import classes_of
from advcam_fast.data.dataset import Dataset, Item
from advcam_fast.data.tar_member import TarMember
from advcam_fast.errors import UsageError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")  # the first of them is a sample's image
MASKS = ("mask.png", "seg.png")
TAGS = ("json", "cls", "txt")  # the first of them that names labels counts
MOST_BYTES = 16 * 2**20  # of a file of tags


class _BadTags(ValueError):
    """Tags that are not what they should be: of one sample, whose item says so."""


@dataclass(slots=True)
class _Sample:
    shard: Path
    key: str
    files: dict[str, TarMember] = field(default_factory=dict)  # by what follows the first dot of the name

    def first(self, endings: tuple[str, ...]) -> TarMember | None:
        return next((self.files[ending] for ending in endings if ending in self.files), None)


def read_webdataset(pattern: str, spec: str) -> Dataset:
    """Lists the samples of uncompressed tar shards, in the order of the shards' names; only tags are read.

    Files of one key (the path up to the first dot of the name) are a sample: an image; perhaps a mask, KEY.mask.png or
    KEY.seg.png; perhaps tags, in KEY.json (a list, or an object with "labels"), KEY.cls (an index) or KEY.txt (joined
    by `;` or lines). Labels are names or indices of classes.txt beside the first shard, else names. The id is the key,
    with the shard's name before it where two shards share one. Raises UsageError for what is no shard.
    """
    shards = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not shards:
        raise UsageError(f"data {spec!r}: no file matches {pattern}")
    samples = [sample for shard in shards for sample in _samples(shard) if sample.first(IMAGES)]
    if not samples:
        raise UsageError(f"data {spec!r}: no image in {len(shards)} shards; wanted names ending in {' '.join(IMAGES)}")
    tags: list[list[str] | _BadTags | None] = [_tags(sample) for sample in samples]
    found = dict.fromkeys(label for labels in tags if isinstance(labels, list) for label in labels)
    class_names, names = classes_of(shards[0], found)
    keys = Counter(sample.key for sample in samples)
    items = [_item(sample, labels, names, keys[sample.key] > 1) for sample, labels in zip(samples, tags, strict=True)]
    twice = [item_id for item_id, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise UsageError(f"data {spec!r}: {len(twice)} samples come twice, for instance {twice[0]!r}")
    tagged = any(labels is not None for labels in tags)
    return Dataset(items, class_names if tagged else None, spec, shards[0].parent)


def _samples(shard: Path) -> list[_Sample]:
    """In the order of their first files. Folders, links and hidden files of the archive are none."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = posixpath.split(posixpath.normpath(member.name))
                start, dot, ending = name.partition(".")
                if not (member.isreg() and not member.issparse() and start and dot):
                    continue
                key = posixpath.join(folder, start)
                file = TarMember(shard, member.name, member.offset_data, member.size)
                samples.setdefault(key, _Sample(shard, key)).files.setdefault(ending.lower(), file)
    except tarfile.TarError as error:
        raise UsageError(f"{shard}: not a whole, uncompressed tar file ({' '.join(str(error).split())})") from error
    return list(samples.values())


def _item(sample: _Sample, tags: list[str] | _BadTags | None, names: dict[str, str], shared: bool) -> Item:
    image = sample.first(IMAGES)
    assert image is not None
    return Item(
        id=f"{sample.shard.stem}/{sample.key}" if shared else sample.key,
        path=image,
        labels=tuple(dict.fromkeys(names[tag] for tag in tags)) if isinstance(tags, list) else None,
        mask=sample.first(MASKS),
        problem=str(tags) if isinstance(tags, _BadTags) else None,
    )


def _tags(sample: _Sample) -> list[str] | _BadTags | None:
    """None where no file says any."""
    for ending in (ending for ending in TAGS if ending in sample.files):
        file = sample.files[ending]
        try:
            if file.size > MOST_BYTES:
                raise ValueError(f"{file.size} bytes, wanted at most {MOST_BYTES}")
            text = file.read_bytes().decode("utf-8-sig")
            labels = _of_json(json.loads(text)) if ending == "json" else text.replace(";", "\n").splitlines()
        except ValueError as error:
            return _BadTags(f"tags {file}: {' '.join(str(error).split())}")
        if labels is not None:
            return [label.strip() for label in labels if label.strip()]
    return None


def _of_json(content: Any) -> list[str] | None:
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return None
    labels = labels if isinstance(labels, list) else [labels]
    if not all(isinstance(label, (str, int)) and not isinstance(label, bool) for label in labels):
        raise ValueError(f"{json.dumps(labels)[:100]}, wanted names or indices of classes")
    return [str(label) for label in labels]
