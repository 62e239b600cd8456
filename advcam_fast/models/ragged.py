"""Images of different sizes in one canvas, each with the very values it would have alone.

What lies outside an item's own region is held at zero before every layer that looks around (at -infinity before a
maximum is taken), so the border of an item meets the same zeros as the border of an image. Where TensorFlow's padding
puts its first zero depends on the parity of the size; the item then begins at another place of the canvas:
o = s o' + p - p', with o' its place in the layer's output, s the stride, p its own padding above and p' the canvas's,
the least there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Padding = tuple[int, int, int, int]  # rows above and below, columns left and right
Size = tuple[int, int]  # rows, columns


class Unplaceable(RuntimeError):
    """The layers cannot take images of different sizes at once; the text says why."""


class Region(NamedTuple):
    """Where an item lies in a value [B, C, H, W] of the network."""

    top: int
    left: int
    height: int
    width: int


def within(planes: Tensor, region: Region) -> Tensor:
    """A view: the item's own part of [..., H, W]."""
    top, left, height, width = region
    return planes[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class Sliding:
    """How a layer's window moves over a plane."""

    kernel: Size
    stride: Size
    dilation: Size
    around: Callable[[int, int], Padding]  # (height, width) of its input -> the padding
    follows_size: bool = False  # the padding does depend on the size
    ceil_mode: bool = False

    def looks_around(self) -> bool:
        return max(self.kernel) > 1 or any(self.around(1, 1))

    def skips(self) -> bool:
        """Whether there are positions that no window meets."""
        return any(self.stride[side] > self.reach(side) + 1 for side in (0, 1))

    def reach(self, side: int) -> int:
        """Pixels from a window's first to its last."""
        return self.dilation[side] * (self.kernel[side] - 1)

    def output(self, size: Size, around: Padding | None = None) -> Size:
        """around: the padding, where it is not that of the rule."""
        around = around or self.around(*size)
        sides = []
        for side in (0, 1):
            before, after = around[2 * side : 2 * side + 2]
            room = size[side] + before + after - self.reach(side) - 1
            if room < 0:
                raise Unplaceable(f"{size[0]} x {size[1]} is smaller than a window of it")
            count = (-(-room // self.stride[side]) if self.ceil_mode else room // self.stride[side]) + 1
            if self.ceil_mode and (count - 1) * self.stride[side] >= size[side] + before:
                count -= 1  # the last window would begin in the padding
            sides.append(count)
        return sides[0], sides[1]

    def least_before(self, side: int) -> int:
        """The canvas's padding above (left): the least that any size has."""
        if not self.follows_size:
            return self.around(1, 1)[2 * side]
        return max(self.reach(side) + 1 - self.stride[side], 0) // 2

    def origin(self, of_output: Size, size: Size) -> Size:
        """Where an item of `size` must begin in the input, to begin at `of_output` in the output."""
        around = self.around(*size)
        first, second = (
            self.stride[side] * of_output[side] + around[2 * side] - self.least_before(side) for side in (0, 1)
        )
        return first, second

    def canvas_padding(self, canvas: Size, ends: Size) -> Padding:
        """Around a canvas, so that the output reaches to `ends` (rows, columns)."""
        if not self.follows_size:
            return self.around(*canvas)
        sides = []
        for side in (0, 1):
            before = self.least_before(side)
            wanted = (ends[side] - 1) * self.stride[side] + self.reach(side) + 1
            sides += [before, max(wanted - before - canvas[side], 0)]
        return sides[0], sides[1], sides[2], sides[3]


class Placing(Protocol):
    """What a step of a tape says of sizes and places."""

    sources: tuple[int, ...]
    output: int
    sliding: Sliding | None  # over the first source, others lying as the output does; None: each position by itself
    pooled: bool  # one value for the whole plane: nothing is outside


def regions(steps: Sequence[Placing], values: int, output: int, size: Size) -> list[Region | None]:
    """Where an image of `size` lies in every value of a tape, with its features at the top left; None: it has no plane.

    Raises Unplaceable.
    """
    sizes: list[Size | None] = [None] * values
    sizes[0] = size
    for step in steps:
        given = [sizes[source] for source in step.sources]
        if step.sliding and given[0]:
            given[0] = step.sliding.output(given[0])
        found = {own for own in given if own is not None}
        if len(found) > 1:
            raise Unplaceable("a layer reads planes of two sizes")
        sizes[step.output] = found.pop() if found and not step.pooled else None
    places: list[Size | None] = [None] * values
    places[output] = (0, 0)
    for step in reversed(steps):
        if (own_place := places[step.output]) is None or sizes[step.output] is None:
            continue
        for at, source in enumerate(step.sources):
            if (own := sizes[source]) is None:
                continue
            place = step.sliding.origin(own_place, own) if step.sliding and at == 0 else own_place
            if places[source] not in (None, place):
                raise Unplaceable("two layers read a value at different places")
            places[source] = place
    return [None if s is None else Region(*(p or (0, 0)), *s) for p, s in zip(places, sizes, strict=True)]


class Frame:
    """Where the items of one batch lie in the values of a tape, and the masks that say so."""

    def __init__(self, items: Sequence[list[Region | None]], output: int, device: torch.device) -> None:
        self.items = items
        self.output = output
        self.device = device
        self.rectified: set[int] = set()  # values that are zero outside, and whose gradient their own step makes so
        self._inside: dict[tuple[tuple[Region, ...], Size], Tensor] = {}

    def of(self, value: int) -> tuple[Region, ...] | None:
        """Every item's region in a value."""
        found = tuple(item[value] for item in self.items)
        return None if None in found else found  # type: ignore[return-value]

    def canvas(self) -> Size:
        """The least image that holds all items."""
        own = self.of(0)
        assert own is not None
        return self._ends(own)

    def padding(self, sliding: Sliding, output: int, canvas: Size) -> Padding:
        own = self.of(output)
        return sliding.around(*canvas) if own is None else sliding.canvas_padding(canvas, self._ends(own))

    def inside(self, value: int, canvas: Size) -> Tensor | None:
        """bool [B, H, W]: what of a value is inside each item's own region; None where it has no plane."""
        own = self.of(value)
        if own is None:
            return None
        key = (own, canvas)
        if key not in self._inside:
            self._inside[key] = inside(own, canvas, self.device)
        return self._inside[key]

    def outside(self, value: int, canvas: Size, rectified: bool = False) -> Tensor | None:
        """bool [B, 1, H, W]: what must be hidden from a layer that looks around; None where nothing must.

        rectified: also where a rectifier has made it zero.
        """
        if value in self.rectified and not rectified:
            return None
        found = self.inside(value, canvas)
        return None if found is None else ~found[:, None]

    def rectify(self, value: int, canvas: Size) -> Tensor | None:
        """The mask for a rectifier, which from then on holds value and gradient at zero outside the items."""
        self.rectified.add(value)
        return self.inside(value, canvas)

    @staticmethod
    def _ends(own: tuple[Region, ...]) -> Size:
        return max(r.top + r.height for r in own), max(r.left + r.width for r in own)


def inside(own: Sequence[Region], canvas: Size, device: torch.device) -> Tensor:
    """bool [B, H, W]: the pixels of a canvas that belong to each item."""
    edges = torch.tensor(own).to(device, non_blocking=True)  # [B, 4]
    row, column = torch.arange(canvas[0], device=device), torch.arange(canvas[1], device=device)
    rows = (row >= edges[:, 0:1]) & (row < edges[:, 0:1] + edges[:, 2:3])
    columns = (column >= edges[:, 1:2]) & (column < edges[:, 1:2] + edges[:, 3:4])
    return rows[:, :, None] & columns[:, None, :]
