"""affinity_loss against a plain loop over pairs, its gradient, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import close
from torch import Tensor

from advcam_fast.errors import UsageError
from advcam_fast.train.affinity_loss import AffinityLosses, affinity_loss, offsets

SIZES = [(1, 7, 9, 4), (2, 5, 4, 3), (2, 3, 11, 10), (3, 1, 6, 2)]  # B, h, w, radius


def example(batch: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(height * width)
    boundary = torch.rand(batch, height, width, dtype=dtype)
    displacement = 3 * torch.randn(batch, 2, height, width, dtype=dtype)
    labels = torch.tensor([0, 0, 1, 2, 255], dtype=torch.uint8)[torch.randint(5, (batch, height, width))]
    return boundary, displacement, labels


def path(dy: int, dx: int) -> list[tuple[int, int]]:
    """By the definition: the pixels of the bounding box whose distance to the line is below 1."""
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    return [(y, x) for y in rows for x in columns if abs(y * dx - x * dy) / math.hypot(dy, dx) < 1 - 1e-12]


def by_loop(boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> AffinityLosses:
    """Every ordered pair, one by one: both orders of a pair have the same terms, so the means are the same."""
    batch, height, width = labels.shape
    kinds: dict[str, list[Tensor]] = {name: [] for name in AffinityLosses._fields[1:]}
    pixels = [(y, x) for y in range(height) for x in range(width)]
    for b in range(batch):
        for y, x in pixels:
            for v, u in pixels:
                dy, dx = v - y, u - x
                first, second = int(labels[b, y, x]), int(labels[b, v, u])
                if not 0 < dy * dy + dx * dx < radius * radius or 255 in (first, second):
                    continue
                affinity = 1 - max(boundary[b, y + i, x + j] for i, j in path(dy, dx))
                apart = displacement[b, :, y, x] - displacement[b, :, v, u]
                if first != second:
                    kinds["negative"].append(-torch.log(1 + 1e-5 - affinity))
                elif first == 0:
                    kinds["background"].append(-torch.log(affinity + 1e-5))
                    kinds["background_displacement"].append(apart.abs().mean())
                else:
                    kinds["foreground"].append(-torch.log(affinity + 1e-5))
                    there = torch.tensor([dy, dx], dtype=apart.dtype)
                    kinds["foreground_displacement"].append((apart - there).abs().mean())
    means = {name: torch.stack(terms).mean() if terms else boundary.sum() * 0 for name, terms in kinds.items()}
    positive = means["background"] / 2 + means["foreground"] / 2
    moved = means["foreground_displacement"] + means["background_displacement"]
    return AffinityLosses((positive + means["negative"]) / 2 + moved / 2, **means)


@pytest.mark.parametrize(("batch", "height", "width", "radius"), SIZES)
def test_equal_to_the_loop_over_pairs(batch: int, height: int, width: int, radius: int) -> None:
    boundary, displacement, labels = example(batch, height, width)
    leaves = [tensor.clone().requires_grad_() for tensor in (boundary, displacement)]
    twins = [tensor.clone().requires_grad_() for tensor in (boundary, displacement)]
    got, want = affinity_loss(*leaves, labels, radius), by_loop(*twins, labels, radius)
    for name in AffinityLosses._fields:
        close(getattr(got, name).detach(), getattr(want, name).detach())
    (3 * got.total).backward()
    (3 * want.total).backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert leaf.grad is not None and twin.grad is not None
        close(leaf.grad, twin.grad)


def test_every_kind_is_in_the_examples() -> None:
    boundary, displacement, labels = example(1, 7, 9)
    assert min(float(part) for part in affinity_loss(boundary, displacement, labels, 4)) > 0.1


def test_gradcheck() -> None:
    boundary, displacement, labels = example(2, 4, 5)
    boundary = boundary * 0.8 + 0.1  # the finite difference must not leave 0 to 1
    leaves = [tensor.requires_grad_() for tensor in (boundary, displacement)]
    assert torch.autograd.gradcheck(lambda *maps: affinity_loss(*maps, labels, 3).total, leaves)


def test_float32_is_near_float64() -> None:
    boundary, displacement, labels = example(2, 16, 21)
    wide = affinity_loss(boundary, displacement, labels).total
    close(affinity_loss(boundary.float(), displacement.float(), labels).total, wide, torch.float32)


def test_ends_of_the_range_are_finite() -> None:
    for value in (0.0, 1.0):
        boundary = torch.full((1, 4, 4), value).requires_grad_()
        labels = torch.tensor([0, 1], dtype=torch.uint8).repeat(1, 4, 2)
        losses = affinity_loss(boundary, torch.zeros(1, 2, 4, 4), labels, 3)
        losses.total.backward()
        assert boundary.grad is not None and bool(boundary.grad.isfinite().all())
        assert all(bool(part.isfinite()) for part in losses)


def test_a_nan_is_not_hidden() -> None:
    boundary, displacement, _ = example(1, 4, 4)
    boundary[0, 1, 1] = math.nan
    assert bool(affinity_loss(boundary, displacement, torch.zeros(1, 4, 4, dtype=torch.uint8), 3).total.isnan())


@pytest.mark.parametrize("label", [255, 0, 7])
def test_without_pairs_a_part_is_zero(label: int) -> None:
    boundary, displacement, _ = example(2, 4, 5)
    leaf = boundary.requires_grad_()
    losses = affinity_loss(leaf, displacement, torch.full((2, 4, 5), label, dtype=torch.uint8), 3)
    assert float(losses.negative) == 0
    assert (float(losses.background) > 0, float(losses.foreground) > 0) == (label == 0, label == 7)
    losses.total.backward()
    assert leaf.grad is not None and bool(leaf.grad.any()) == (label != 255)


def test_perfect_maps_have_no_loss() -> None:
    """Two flat regions of one instance each, a boundary between them and displacements to their centres."""
    labels = torch.ones(1, 8, 12, dtype=torch.uint8)
    labels[..., 7:] = 2
    labels[..., 6] = 255
    boundary = (labels == 255).double()
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    centre = torch.where(columns < 6, 2.0, 9.0)
    displacement = torch.stack([3.5 - rows, centre - columns])[None].double()
    losses = affinity_loss(boundary, displacement, labels, 5)
    assert float(losses.total) < 1e-4
    assert float(affinity_loss(boundary, -displacement, labels, 5).foreground_displacement) > 1
    assert float(affinity_loss(0 * boundary, displacement, labels, 5).negative) > 1


def test_tables_are_kept_by_size_and_radius() -> None:
    assert offsets(6, 7, 4) is offsets(6, 7, 4)
    assert len(offsets(30, 30, 10)) == 152 and len(offsets(30, 30, 5)) == 34
    assert offsets(1, 1, 10) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": torch.zeros(1, 4, 5)}, r"labels: torch\.float32 \[1, 4, 5\] came, wanted is torch\.uint8"),
        ({"labels": torch.zeros(4, 5, dtype=torch.uint8)}, r"labels: .* \[4, 5\] came"),
        ({"boundary": torch.zeros(1, 5, 4)}, r"boundary: shape \[1, 5, 4\] came, wanted is \[1, 4, 5\]"),
        ({"boundary": torch.zeros(1, 4, 5).half()}, r"boundary: torch\.float16 came"),
        ({"displacement": torch.zeros(1, 4, 5)}, r"displacement: shape .* wanted is \[1, 2, 4, 5\]"),
        ({"displacement": torch.zeros(1, 2, 4, 5).double()}, r"displacement: torch\.float64 came.*one for both"),
        ({"displacement": torch.zeros(1, 2, 4, 5, device="meta")}, r"displacement is on meta, labels are on cpu"),
        ({"radius": 1}, r"radius: 1 came, wanted is 2 to 64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], reason: str) -> None:
    labels = torch.zeros(1, 4, 5, dtype=torch.uint8)
    given = {"boundary": torch.zeros(1, 4, 5), "displacement": torch.zeros(1, 2, 4, 5), "labels": labels} | change
    with pytest.raises(UsageError, match=reason):
        affinity_loss(**given)
