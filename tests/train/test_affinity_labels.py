"""affinity_labels: thresholds, what two label maps say together, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advcam_fast import ops
from advcam_fast.errors import UsageError
from advcam_fast.train.affinity_labels import affinity_labels

IMAGE = torch.zeros(3, 2, 6, dtype=torch.uint8)


def unchanged(image: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    return labels


def labels_of(maps: Tensor, classes: list[int], image: Tensor = IMAGE, **options: object) -> Tensor:
    options.setdefault("crf", unchanged)
    return affinity_labels(image, maps, torch.tensor(classes), **options)  # type: ignore[arg-type]


def test_thresholds() -> None:
    row = torch.tensor([0.0, 0.15, 0.16, 0.35, 0.36, 1.0])
    got = labels_of(row.expand(1, 2, 6), [7])
    assert got.dtype == torch.uint8
    assert got.tolist() == [[0, 0, 255, 255, 8, 8]] * 2
    assert labels_of(row.expand(1, 2, 6), [7], foreground=0.15, background=0.0).tolist() == [[0, 255, 8, 8, 8, 8]] * 2


def test_the_greatest_map_wins_and_the_first_of_equals() -> None:
    maps = torch.tensor([[0.5, 0.9, 0.4, 0.2, 0.0, 0.1], [0.5, 0.6, 0.8, 0.3, 0.0, 0.0]])[:, None].expand(2, 2, 6)
    assert labels_of(maps, [3, 0])[0].tolist() == [4, 4, 1, 255, 0, 0]


def test_both_label_maps_go_through_the_crf() -> None:
    seen = []

    def crf(image: Tensor, labels: Tensor, num_labels: int) -> Tensor:
        seen.append((image, labels.clone(), num_labels))
        sure, possible = torch.tensor([[2, 2, 0, 0, 1, 0], [0, 2, 0, 1, 1, 2]])[:, None].expand(2, 2, 6)
        return torch.stack([sure, possible])

    maps = torch.tensor([[0.0, 0.2, 0.5], [0.1, 0.4, 0.3]]).repeat_interleave(2, 1)[:, None].expand(2, 2, 6)
    assert labels_of(maps, [9, 4], crf=crf)[0].tolist() == [5, 5, 0, 255, 10, 255]
    ((image, labels, num_labels),) = seen
    assert image is IMAGE and num_labels == 3 and labels.dtype == torch.uint8
    assert labels[:, 0].tolist() == [[0, 0, 2, 2, 1, 1], [0, 0, 2, 2, 1, 1]]


def test_maps_at_stride_4_are_made_larger() -> None:
    image = torch.zeros(3, 7, 10, dtype=torch.uint8)
    maps = torch.rand(2, 2, 3)
    larger = torch.nn.functional.interpolate(maps[None], (8, 12), mode="bilinear")[0, :, :7, :10]
    assert torch.equal(labels_of(maps, [0, 1], image), labels_of(larger, [0, 1], image))


def test_an_image_without_a_class_is_background() -> None:
    got = affinity_labels(IMAGE, torch.zeros(0, 2, 6), torch.zeros(0, dtype=torch.int64))
    assert got.shape == (2, 6) and not got.any()


def test_the_default_is_dense_crf_on_one_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held by stand-ins of the two ops' signatures: what goes in, and that the labels are the most probable ones."""
    seen = {}

    def hard_unary(labels: Tensor, num_labels: int, confidence: float = 0.7) -> Tensor:
        seen["labels"] = labels
        return -torch.nn.functional.one_hot(labels.long(), num_labels).movedim(-1, -3).float()

    def dense_crf(images: Tensor, unary: Tensor) -> Tensor:
        seen.update(images=images, unary=unary)
        return unary.neg().softmax(-3).flip(-3)  # the last label for the first: not what came in

    monkeypatch.setattr(ops, "hard_unary", hard_unary, raising=False)
    monkeypatch.setattr(ops, "dense_crf", dense_crf, raising=False)
    image = torch.randint(0, 256, (3, 2, 6), dtype=torch.uint8)
    maps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]).expand(1, 2, 6)
    got = affinity_labels(image, maps, torch.tensor([2]))
    assert torch.equal(seen["images"], image.permute(1, 2, 0)[None])
    assert (tuple(seen["labels"].shape), tuple(seen["unary"].shape)) == ((1, 2, 2, 6), (1, 2, 2, 2, 6))
    assert got[0].tolist() == [3, 3, 3, 3, 0, 0]


def test_the_crf_moves_labels_to_the_edges_of_the_image() -> None:
    image = torch.full((3, 24, 32), 200, dtype=torch.uint8)
    image[:, :, 16:] = 20
    maps = torch.zeros(1, 24, 32)
    maps[..., 14:26] = 1.0  # two pixels into the bright half, six pixels short of the other end
    got = affinity_labels(image, maps, torch.tensor([0]))
    assert bool((got[:, 16:26] == 1).all()) and bool((got[:, :12] == 0).all())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": torch.zeros(3, 2, 6)}, r"image is torch\.float32 \[3, 2, 6\]; wanted torch\.uint8"),
        (
            {"maps": torch.zeros(1, 2, 5)},
            r"maps are .* \[1, 2, 5\]; wanted floats \[n, 2, 6\] .* \[n, 1, 2\] at stride 4",
        ),
        ({"maps": torch.full((1, 2, 6), math.nan)}, "maps hold a NaN"),
        ({"classes": torch.tensor([0, 1])}, r"classes are torch\.int64 \[2\]; wanted torch\.int64 \[1\]"),
        ({"classes": torch.tensor([254])}, r"classes are \[254\]; wanted different ones of 0 to 253"),
        ({"maps": torch.zeros(2, 2, 6), "classes": torch.tensor([3, 3])}, r"classes are \[3, 3\]; wanted different"),
        ({"background": 0.4}, r"thresholds are 0\.35 for foreground and 0\.4 for background"),
        ({"crf": lambda image, labels, count: labels[0]}, r"crf gave \[2, 6\]; wanted \[2, 2, 6\]"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], reason: str) -> None:
    given = {"image": IMAGE, "maps": torch.zeros(1, 2, 6), "classes": torch.tensor([0]), "crf": unchanged} | change
    with pytest.raises(UsageError, match=reason):
        affinity_labels(**given)  # type: ignore[arg-type]
