"""Masks as polygons along pixel borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from boxseg.coco.masks import Mask, decode_part

Polygon = NDArray[np.int64]
"""(P, 2): x y of the corners in pixels, in order, the first not repeated."""


def find_part_polygons(segmentation: Any, size: tuple[int, int]) -> list[Polygon]:
    """`find_polygons` of a COCO segmentation of an image of (height, width), without its frame."""
    part = decode_part(segmentation, size)
    return [polygon + np.array([part.left, part.top]) for polygon in find_polygons(part.pixels)]


def find_polygons(mask: Mask) -> list[Polygon]:
    """A mask bool (h, w) as polygons that cover exactly its pixels: one for each piece.

    Pieces that touch at a corner alone are apart. A hole is joined to the outline around it by a way there and back.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    pieces, count = ndimage.label(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    polygons = []
    for number, place in enumerate(ndimage.find_objects(pieces, max_label=count), start=1):
        corner = np.array([place[1].start + left, place[0].start + top])
        outlines = [outline + corner for outline in _trace(pieces[place] == number)]
        polygons.append(join_polygons(outlines))
    return polygons


def join_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon that runs around several, along ways there and back between nearest corners; they enclose nothing."""
    joined = polygons[0]
    for polygon in polygons[1:]:
        distance = np.abs(joined[:, None] - polygon[None]).sum(axis=2)
        here, there = np.unravel_index(distance.argmin(), distance.shape)
        detour = np.roll(polygon, -int(there), axis=0)
        joined = np.concatenate([joined[: here + 1], detour, detour[:1], joined[here:]])
    return joined


def _trace(mask: Mask) -> list[Polygon]:
    """The closed outlines of a mask, its outer one first, as corners.

    The corners of one row, from left to right, are the ends of its edges in turn, and so with columns: so each corner
    has a partner in its row and one in its column. Where two pixels meet at a corner alone, there are two corners.
    """
    padded = np.pad(mask, 1)
    top_left, top_right, bottom_left, bottom_right = (
        padded[rows, columns]
        for rows in (np.s_[:-1], np.s_[1:])
        for columns in (np.s_[:-1], np.s_[1:])
    )
    y, x = np.nonzero(top_left ^ top_right ^ bottom_left ^ bottom_right)
    cross_y, cross_x = np.nonzero(
        (top_left == bottom_right) & (top_right == bottom_left) & (top_left != top_right)
    )
    falling = top_left[cross_y, cross_x].astype(np.int64)
    first, second = np.zeros_like(cross_y), np.ones_like(cross_y)
    y, x = np.concatenate([y, cross_y, cross_y]), np.concatenate([x, cross_x, cross_x])
    plain = np.zeros(len(y) - 2 * len(cross_y), dtype=np.int64)
    in_row = _partners(np.lexsort((np.concatenate([plain, first, second]), x, y)))
    in_column = _partners(np.lexsort((np.concatenate([plain, 1 - falling, falling]), y, x)))
    unseen = dict.fromkeys(np.lexsort((x, y)).tolist())
    outlines = []
    while unseen:
        start = corner = next(iter(unseen))
        walk: list[int] = []
        while not walk or corner != start:
            for partner in (in_row, in_column):
                walk.append(corner)
                del unseen[corner]
                corner = partner[corner]
        outlines.append(np.stack([x[walk], y[walk]], axis=1))
    return outlines


def _partners(order: NDArray[np.intp]) -> list[int]:
    """Partner of each corner, if those at places 0 and 1, 2 and 3, … of an order belong together."""
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner.tolist()
