"""label: a data set and a classifier in, a run folder of maps out; resumable, and one bad image never stops it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advcam_fast.climb import MapMaker, MapResult
from advcam_fast.data import Dataset, ImageError, Item, read_image, resize_image
from advcam_fast.errors import StoppedError, UsageError, first_line
from advcam_fast.models import Classifier
from advcam_fast.store import RunFolder, StoreError, check_store, encode_maps

GPU_IMAGES = 32  # images planned together on a GPU, so that batches of equal size can be found among them
WRITTEN_LATER = 8  # maps that may wait for the disk
PREDICT_SIDE = 256  # pixels of the short side when classes are predicted: what ImageNet classifiers are tested at
PREDICT_LONGEST = 4096  # no image is enlarged beyond this: a strip of 20000 x 10 would become one of 512000 x 256
NO_LABELS = "no_labels"

# What a network may raise for an image of a size it cannot take, and scaling for one that memory cannot hold.
_UNFIT = (RuntimeError, MemoryError, OverflowError)


@dataclass(frozen=True)
class LabelRule:
    """Where an image's classes come from: its tags, or the classifier.

    predicted: at most top_k classes of probability >= min_score, the best first. By default one class for a softmax
    head, and every class of probability >= 0.5 for a sigmoid head.
    """

    predicted: bool = False
    top_k: int | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if not self.predicted and (self.top_k is not None or self.min_score is not None):
            raise UsageError("--top-k and --min-score choose predicted classes: add --labels predicted")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top-k {self.top_k}: wanted is a whole number >= 1")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise UsageError(f"--min-score {self.min_score}: wanted is a probability, 0 to 1")

    def choose(self, probabilities: Tensor, activation: str) -> list[int]:
        """Class indices for the probabilities [C] of one image, the best first."""
        softmax = activation == "softmax"
        top_k = self.top_k or (1 if softmax and self.min_score is None else len(probabilities))
        lowest = self.min_score if self.min_score is not None else 0.0 if softmax or self.top_k else 0.5
        best = probabilities.topk(min(top_k, len(probabilities)))
        return [int(i) for p, i in zip(best.values, best.indices, strict=True) if p >= lowest]


class Progress(NamedTuple):
    """Told after every image: how far the run is, and what became of this one."""

    item_id: str
    done: int
    total: int
    reason: str  # empty unless the image failed


class Outcome(NamedTuple):
    """What became of an image: the bytes of its map file, or the reason why it has none."""

    item_id: str
    content: bytes | memoryview
    flags: tuple[str, ...]
    labels: tuple[str, ...]
    reason: str = ""


class _Loaded(NamedTuple):
    item: Item
    image: Tensor | None
    problem: str


@dataclass(frozen=True)
class Labeller:
    """From items to what is written of them, in any process.

    class_indices: tag -> class index of the model. full: the full-size maps too. store: see RunFolder.open.
    """

    maker: MapMaker[Any]
    rule: LabelRule
    class_indices: Mapping[str, int]
    full: bool = False
    store: str = "fp16"

    def __post_init__(self) -> None:
        check_store(self.store)

    def results(self, dataset: Dataset, items: Sequence[Item]) -> Iterator[tuple[Item, MapResult | str]]:
        """The maps of every item, or the reason there are none; StoppedError if the device or the data is lost."""
        size = GPU_IMAGES if self.maker.device.type == "cuda" else 1
        for chunk in _loaded(dataset, items, size):
            yield from _label_chunk(chunk, self.maker, self.rule, self.class_indices)

    def packed(self, item: Item, result: MapResult | str) -> Outcome:
        if isinstance(result, str):
            return Outcome(item.id, b"", (), tuple(item.labels or ()), result)
        names = tuple(_names(result.classes.tolist(), self.maker.model))
        flags = result.flags if names else (NO_LABELS,)
        return Outcome(item.id, encode_maps(_arrays(result, self.full), self.store), flags, names)

    def changed_since(self, dataset: Dataset, run: RunFolder) -> dict[str, str]:
        """Finished items whose tags are others now: id -> "old -> new". Of predicted classes none is known to be."""
        if self.rule.predicted:
            return {}
        items = {item.id: item for item in dataset.items}
        changes = {}
        for record in run.records():
            if record.id in items:
                item = items[record.id]
                ok = record.status == "ok"
                now = _names(_tagged(item, self.class_indices), self.maker.model) if ok else list(item.labels or ())
                if list(record.labels) != now:
                    changes[record.id] = f"{';'.join(record.labels)!r} -> {';'.join(now)!r}"
        return changes


def write_outcome(run: RunFolder, outcome: Outcome) -> None:
    if outcome.reason:
        run.fail(outcome.item_id, outcome.reason, labels=outcome.labels)
    else:
        run.finish_encoded(outcome.item_id, outcome.content, flags=outcome.flags, labels=outcome.labels)


def items_to_do(dataset: Dataset, run: RunFolder) -> list[Item]:
    done = run.done_ids()
    return [item for item in dataset.items if item.id not in done]


def label_dataset(
    dataset: Dataset,
    labeller: Labeller,
    run: RunFolder,
    report: Callable[[Progress], None] = lambda _: None,
    items: Sequence[Item] | None = None,
) -> None:
    """Computes the maps of every item that `run` has not finished yet and stores them in it.

    items: those of them that are this process's; all by default. Items that cannot be read or climbed are recorded as
    failed with the reason. Raises StoreError if the run folder cannot be written any more, StoppedError if the device
    failed or the data set is gone.
    """
    todo, total = (items_to_do(dataset, run), len(dataset.items)) if items is None else (items, len(items))
    finished = total - len(todo)
    broken: list[StoreError] = []

    def write(item: Item, result: MapResult | str) -> str:
        if broken:  # after one that fails there is no other
            raise broken[0]
        outcome = labeller.packed(item, result)
        try:
            write_outcome(run, outcome)
        except StoreError as error:
            broken.append(error)
            raise
        return outcome.reason

    for item, reason in _written(labeller.results(dataset, todo), write):
        finished += 1
        report(Progress(item.id, finished, total, reason))


def _written(
    found: Iterable[tuple[Item, MapResult | str]], write: Callable[[Item, MapResult | str], str]
) -> Iterator[tuple[Item, str]]:
    """Every item once it is written, in order; others are climbed meanwhile, a few ahead at most."""
    waiting: deque[tuple[Item, Future[str]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item, outcome in found:
            waiting.append((item, pool.submit(write, item, outcome)))
            while waiting and (len(waiting) > WRITTEN_LATER or waiting[0][1].done()):
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()


def _loaded(dataset: Dataset, items: Sequence[Item], size: int) -> Iterator[list[_Loaded]]:
    """Chunks of decoded images; the next chunk is decoded while the present one is climbed."""
    with ThreadPoolExecutor(1) as pool:
        chunks = [items[at : at + size] for at in range(0, len(items), size)]
        future = pool.submit(_load, dataset, chunks[0]) if chunks else None
        for number in range(len(chunks)):
            assert future is not None
            ready = future.result()
            future = pool.submit(_load, dataset, chunks[number + 1]) if number + 1 < len(chunks) else None
            yield ready


def _load(dataset: Dataset, items: Sequence[Item]) -> list[_Loaded]:
    loaded = []
    for item in items:
        try:
            if item.problem:
                raise ImageError(item.problem)
            loaded.append(_Loaded(item, read_image(item.path), ""))
        except ImageError as error:
            if not dataset.is_there():  # nothing is wrong with this image, nor with all that would follow
                raise StoppedError(f"{dataset.place}: the data set is not there any more") from error
            loaded.append(_Loaded(item, None, str(error)))
    return loaded


def _label_chunk(
    chunk: Sequence[_Loaded], maker: MapMaker, rule: LabelRule, class_indices: Mapping[str, int]
) -> Iterator[tuple[Item, MapResult | str]]:
    """The maps, or the reason there are none, of every item of a chunk."""
    ready: list[tuple[Item, Tensor, list[int]]] = []
    for item, image, problem in chunk:
        if image is None:
            yield item, problem
            continue
        try:
            ready.append((item, image, _classes(item, image, maker.model, rule, class_indices)))
        except _UNFIT as error:
            yield item, _one_line(error, image)
    if not ready:
        return
    try:
        results = maker.compute([image for _, image, _ in ready], [classes for _, _, classes in ready])
    except _UNFIT as error:
        if len(ready) == 1:
            yield ready[0][0], _one_line(error, ready[0][1])
            return
        results = None
    for number, (item, image, classes) in enumerate(ready):
        if results is not None:
            yield item, results[number]
            continue
        try:  # one of them is the culprit: on their own the others go through
            yield item, maker.compute([image], [classes])[0]
        except _UNFIT as error:
            yield item, _one_line(error, image)


def _classes(
    item: Item, image: Tensor, model: Classifier, rule: LabelRule, class_indices: Mapping[str, int]
) -> list[int]:
    if not rule.predicted:
        return _tagged(item, class_indices)
    return rule.choose(probabilities_of(image, model), model.activation)


def probabilities_of(image: Tensor, model: Classifier) -> Tensor:
    """[C], of an image resized as classifiers are tested."""
    short, long = sorted(image.shape[1:])
    view = resize_image(image, min(PREDICT_SIDE / short, max(1.0, PREDICT_LONGEST / long)))
    return model.predict(view[None])[0]


def _tagged(item: Item, class_indices: Mapping[str, int]) -> list[int]:
    return list(dict.fromkeys(class_indices[label] for label in item.labels or ()))


def _one_line(error: Exception, image: Tensor) -> str:
    height, width = image.shape[1:]
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return f"too little memory for this image of {width} x {height}: {first_line(error)}"
    if isinstance(error, torch.AcceleratorError):  # the device is lost, and with it every image still to come
        raise StoppedError(f"the device failed at an image of {width} x {height}: {first_line(error)}") from error
    return f"the network cannot take this image of {width} x {height}: {first_line(error)}"


def _names(classes: Sequence[int], model: Classifier) -> list[str]:
    return [model.class_names[c] if model.class_names else str(c) for c in classes]


def _arrays(result: MapResult, full: bool) -> dict[str, Tensor]:
    arrays = {"classes": result.classes, "strided": result.strided, "initial": result.initial}
    if full:
        arrays["full"] = result.full
    return arrays


def tag_indices(
    dataset: Dataset, model: Classifier, match: Callable[[list[str], Sequence[str]], dict[str, int]]
) -> dict[str, int]:
    """Every tag of the data set with its class index; raises UsageError if there are no tags, or unknown ones."""
    if all(item.labels is None for item in dataset.items):
        raise UsageError(
            f"data {dataset.spec!r} has no tags: add --labels predicted to let the model choose the classes"
        )
    tags = sorted({label for item in dataset.items for label in item.labels or ()})
    return match(tags, model.class_names or [str(c) for c in range(model.num_classes)])


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights of a network: a file of the same name may hold others when a run goes on."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def device_of(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:N"; raises UsageError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: wanted is auto, cpu, cuda or cuda:N") from None
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= there):
        raise UsageError(
            f"--device {name}: not there; this machine has cpu" + "".join(f", cuda:{i}" for i in range(there))
        )
    return device
