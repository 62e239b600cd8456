"""train-segmenter: images and masks in, the weights of a segmenter out, and the masks that it predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.data import Dataset, ImageError, Item, match_labels, read_image
from advcam_fast.data.dataset import MaskSource
from advcam_fast.data.tar_member import TarMember
from advcam_fast.data.text_files import read_lines
from advcam_fast.data.truth import mask_at
from advcam_fast.errors import StoppedError, UsageError, first_line
from advcam_fast.models import Segmenter
from advcam_fast.pipelines.label import Progress
from advcam_fast.pipelines.refine import CLASSES_FILE
from advcam_fast.store import MOST_CLASSES, MaskFolder
from advcam_fast.store.files import file_name
from advcam_fast.train import SegmenterConfig

UNSURE = 255
_LEAST = 1e-5  # of a probability
_CRF_STEPS, _CRF_GAUSSIAN, _CRF_BILATERAL = 10, (1.0, 3.0), (67.0, 3.0, 4.0)


@dataclass(frozen=True)
class _Pair:
    """An image, its mask, and what each of the mask's values is among the classes; 255 for none."""

    item: Item
    mask: Path | TarMember | MaskSource
    values: Tensor  # uint8 [256]

    @property
    def name(self) -> str:
        """The mask's, for messages."""
        return str(self.mask) if isinstance(self.mask, (Path, TarMember)) else f"the mask of {self.item.id}"


class MaskedImages:
    """Images with their masks: data[i] is (uint8 [3, H, W], uint8 [H, W]), 0 background, v > 0 class_names[v - 1]."""

    def __init__(self, pairs: Sequence[_Pair], class_names: Sequence[str]) -> None:
        self.pairs, self.class_names = pairs, tuple(class_names)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        try:
            return self._read(index)
        except ImageError as error:  # it was whole when the training began
            raise StoppedError(f"cannot be read any more: {error}") from error

    def usable(self) -> tuple[MaskedImages, list[dict[str, str]], str]:
        """(those that can be read and teach something, why others do not, a digest of the masks)."""
        right, failures, digest = [], [], hashlib.sha256()
        for index, pair in enumerate(self.pairs):
            try:
                if pair.item.problem:
                    raise ImageError(pair.item.problem)
                _, labels = self._read(index)
                if bool((labels == UNSURE).all()):
                    raise ImageError(f"{pair.name}: every pixel is 255, ignored")
                right.append(pair)
                digest.update(f"{pair.item.id} {list(labels.shape)}".encode())
                digest.update(labels.numpy().tobytes())
            except ImageError as error:
                failures.append({"id": pair.item.id, "reason": str(error)})
        if not right:
            reason = failures[0]["reason"] if failures else "the data set is empty"
            raise UsageError(f"none of {len(self.pairs)} images has a mask to learn from; the first: {reason}")
        return MaskedImages(right, self.class_names), failures, digest.hexdigest()[:16]

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = read_image(pair.item.path)
        size = (image.shape[1], image.shape[2])
        mask = mask_at(pair.mask, size)
        if mask.shape != image.shape[1:]:
            raise ImageError(f"{pair.name}: {list(mask.shape)}; wanted {list(image.shape[1:])} as its image")
        known = pair.values != UNSURE
        known[UNSURE] = True
        if not bool(known[mask.long()].all()):
            value = int(mask[~known[mask.long()]].max())
            raise ImageError(f"{pair.name}: value {value} is no class; wanted 0 to {len(self.class_names)} or 255")
        return image, pair.values[mask.long()]


def masked_images(dataset: Dataset, masks: Path | None, true_masks: Path | None) -> MaskedImages:
    """The items of a data set with the masks of a folder (of `refine`'s run, or ID.png beside classes.txt).

    Without a folder, the data set's own masks; so too for the ids in the text file `true_masks`, one a line.
    Classes: the data set's, else the folder's. Raises UsageError for ids or classes that are not there.
    """
    folder = None if masks is None else masks / "masks" if (masks / "masks" / CLASSES_FILE).is_file() else masks
    theirs = None if folder is None else _folder_classes(folder, dataset)
    names = dataset.class_names or theirs
    if not names:
        raise UsageError(f"data {dataset.spec!r} names no classes")
    if len(names) > MOST_CLASSES:
        raise UsageError(f"data {dataset.spec!r}: {len(names)} classes, a mask of 8 bits holds {MOST_CLASSES} at most")
    pseudo = None if theirs is None else value_table(theirs, names)
    own = value_table(names, names)
    true_ids = _listed(dataset, true_masks) if true_masks is not None else frozenset[str]()
    pairs = []
    for item in dataset.items:
        if folder is not None and pseudo is not None and item.id not in true_ids:
            pairs.append(_Pair(item, folder / f"{file_name(item.id, '.png')}.png", pseudo))
        elif item.mask is not None:
            pairs.append(_Pair(item, item.mask, own))
        elif item.id in true_ids:
            raise UsageError(f"{true_masks}: {item.id} has no mask of its own in {dataset.spec!r}")
    return MaskedImages(pairs, names)


def _folder_classes(folder: Path, dataset: Dataset) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UsageError(f"--masks {folder}: no such folder")
    file = folder / CLASSES_FILE
    if file.is_file():
        return tuple(read_lines(file))
    if dataset.class_names is None:
        raise UsageError(f"--masks {folder}: no {CLASSES_FILE} says which classes the values are")
    return dataset.class_names


def value_table(theirs: Sequence[str], names: Sequence[str]) -> Tensor:
    """What each value of a mask of the classes `theirs` is in a mask of `names`: uint8 [256], 255 for none.

    Raises UsageError for a class that is none of `names`.
    """
    values = torch.full((256,), UNSURE, dtype=torch.uint8)
    values[0] = 0
    index_of = match_labels(theirs, names)
    for value, name in enumerate(theirs, start=1):
        values[value] = 1 + index_of[name]
    return values


def _listed(dataset: Dataset, file: Path) -> frozenset[str]:
    ids = frozenset(line for line in read_lines(file) if line)
    unknown = sorted(ids - {item.id for item in dataset.items})
    if unknown:
        raise UsageError(f"{file}: {len(unknown)} ids are not in {dataset.spec!r}, the first: {unknown[0]}")
    return ids


def predict_masks(
    net: Segmenter,
    dataset: Dataset,
    folder: MaskFolder,
    config: SegmenterConfig,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Writes the mask of every item that `folder` does not have yet; what cannot be is recorded with the reason."""
    done = folder.done_ids()
    todo = [item for item in dataset.items if item.id not in done]
    for finished, item in enumerate(todo, start=len(dataset.items) - len(todo) + 1):
        reason = ""
        try:
            if item.problem:
                raise ImageError(item.problem)
            mask = predicted_mask(net, read_image(item.path), config)
            found = [net.classes[value - 1] for value in mask.unique().tolist() if value]
            folder.finish(item.id, mask, labels=found)
        except (ImageError, torch.OutOfMemoryError, MemoryError) as error:
            reason = first_line(error)
            folder.fail(item.id, reason)
        report(Progress(item.id, finished, len(dataset.items), reason))


def predicted_mask(net: Segmenter, image: Tensor, config: SegmenterConfig) -> Tensor:
    """uint8 [H, W] of an image uint8 [3, H, W]: the likeliest class over all views, sharpened by a dense CRF."""
    probability = net.probabilities(image, config.test_scales, config.test_flip)
    if config.crf:
        unary = -probability.clamp(min=_LEAST).log()
        pixels = image.to(unary.device).permute(1, 2, 0)[None].contiguous()
        probability = ops.dense_crf(pixels, unary[None], _CRF_STEPS, _CRF_GAUSSIAN, _CRF_BILATERAL)[0]
    return probability.argmax(0).to(torch.uint8).cpu()
