"""Polygons of masks that lose nothing: along the edges of pixels, holes included."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EAST, _SOUTH, _WEST, _NORTH = range(4)
_TURNS = (1, 0, 3)  # right, straight on, left


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """One closed path for every 4-connected part of a mask, bool [h, w] -> float64 [n, 2] of x, y each.

    Corners are corners of pixels, 0 to w and 0 to h. A hole is joined to its outline by a cut that is passed in both
    directions: under the even-odd rule the path covers exactly the pixels of the part.
    """
    parts, _ = ndimage.label(mask)
    paths = []
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        outer, *holes = _rings(parts[place] == number)
        paths.append(joined([outer, *holes]) + np.array([place[1].start, place[0].start]))
    return paths


def joined(paths: list[np.ndarray]) -> np.ndarray:
    """One closed path of several, each joined where it comes closest to those before it."""
    whole = paths[0]
    for path in paths[1:]:
        gaps = ((whole[:, None] - path[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(gaps.argmin()), gaps.shape)
        turned = np.roll(path, -int(there), axis=0)
        whole = np.concatenate([whole[: here + 1], turned, turned[:1], whole[here:]])
    return whole


def _rings(part: np.ndarray) -> list[np.ndarray]:
    """The outline of a 4-connected part, clockwise, and then its holes, anticlockwise; only corners that turn."""
    height, width = part.shape
    padded = np.pad(part, 1).astype(np.int8)
    down = padded[1:, 1:-1] - padded[:-1, 1:-1]  # [h + 1, w]: 1 an upper edge of the part, -1 a lower one
    right = padded[1:-1, 1:] - padded[1:-1, :-1]  # [h, w + 1]
    edges = np.zeros((4, height + 1, width + 1), np.uint8)  # leaving each corner, the part on the right-hand side
    edges[_EAST, :, :-1] = down == 1
    edges[_WEST, :, 1:] = down == -1
    edges[_SOUTH, :-1] = right == -1
    edges[_NORTH, 1:] = right == 1
    starts = np.flatnonzero(edges[_EAST])  # the first is the upper left one: of the outline
    stride = width + 1
    left = bytearray(edges.tobytes())
    return [_follow(left, int(start), stride, stride * (height + 1)) for start in starts if left[start]]


def _follow(edges: bytearray, start: int, stride: int, plane: int) -> np.ndarray:
    """The ring that the eastward edge at a corner belongs to; its edges are taken out."""
    steps = (1, stride, -1, -stride)
    place, heading, corners = start, _EAST, []
    while True:
        edges[heading * plane + place] = 0
        place += steps[heading]
        # To the right first: so what the outline touches by a corner, a hole too, belongs to it and needs no cut.
        for turn in _TURNS:
            ahead = (heading + turn) % 4
            if edges[ahead * plane + place] or (place == start and ahead == _EAST):
                break
        if ahead != heading:
            corners.append((place % stride, place // stride))
        if place == start and ahead == _EAST:
            return np.array(corners, np.float64)
        heading = ahead
