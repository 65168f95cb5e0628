"""Masks as polygons along pixel borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from boxseg.coco.masks import decode_part
from boxseg.coco.segmentations import Size
from boxseg.mask_parts import Mask, MaskPart

Polygon = NDArray[np.int64]
"""(P, 2): x y of the corners in pixels, in order, the first not repeated."""


def find_part_polygons(segmentation: Any, size: Size) -> list[Polygon]:
    """`find_polygons` of a COCO segmentation in an image of (height, width), of which only the object is unpacked."""
    part = decode_part(segmentation, size)
    offset = np.array([part.left, part.top])
    return [polygon + offset for polygon in find_polygons(part.pixels)]


def find_polygons(mask: Mask) -> list[Polygon]:
    """A mask bool (h, w) as polygons that cover exactly its pixels: one for each piece.

    Pieces that touch only at a corner are apart. A hole is joined to the outline around it by a way there and back.

    >>> find_polygons(np.array([[False, True, True]]))[0].tolist()
    [[1, 0], [3, 0], [3, 1], [1, 1]]
    """
    left, top, right, bottom = MaskPart(mask).bounds()
    if not right:  # an empty mask
        return []
    pieces, count = ndimage.label(mask[top:bottom, left:right])
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces, count), start=1):
        piece = pieces[rows, columns] == number  # without other pieces in the same rectangle
        offset = np.array([columns.start + left, rows.start + top])
        outlines = [outline + offset for outline in _trace(piece)]
        polygons.append(join_polygons(outlines))
    return polygons


def join_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon that runs around several, along ways there and back between nearest corners; they enclose nothing."""
    joined = polygons[0]
    for polygon in polygons[1:]:
        distances = np.abs(joined[:, None] - polygon[None]).sum(axis=2)  # of each corner to each
        nearest = np.unravel_index(distances.argmin(), distances.shape)
        leave, enter = int(nearest[0]), int(nearest[1])
        detour = np.roll(polygon, -enter, axis=0)  # begins, and so ends, at the nearest corner
        before, after = joined[: leave + 1], joined[leave:]  # both with the corner that is left
        joined = np.concatenate([before, detour, detour[:1], after])
    return joined


def _trace(mask: Mask) -> list[Polygon]:
    """The closed outlines of a mask, its outer one first, as corners.

    The corners in a row of pixel borders, from left to right, are where edges begin and end in turn, and so are those
    in a column. So each corner has a partner in its row and one in its column, and walking from partner to partner
    leads around an outline.
    """
    y, x, in_row, in_column = _find_corners(mask)
    # From the topmost corner on, and there from the left: so the outer outline is walked first.
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


def _find_corners(
    mask: Mask,
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int], list[int]]:
    """y and x of all corners (C,), and the partner of each in its row and in its column."""
    padded = np.pad(mask, 1)
    # The four pixels around each point where pixel borders cross.
    top_left, top_right = padded[:-1, :-1], padded[:-1, 1:]
    bottom_left, bottom_right = padded[1:, :-1], padded[1:, 1:]
    # An outline turns where one or three of the four are inside.
    y, x = np.nonzero(top_left ^ top_right ^ bottom_left ^ bottom_right)
    # Where two pixels meet at a corner alone, two outlines turn: such a point is two corners, one for each pixel.
    is_diagonal = (top_left == bottom_right) & (top_right == bottom_left) & (top_left != top_right)
    twice_y, twice_x = np.nonzero(is_diagonal)
    # 1: the pixels at top left and bottom right
    falls = top_left[twice_y, twice_x].astype(np.int64)
    zeros, ones = np.zeros_like(falls), np.ones_like(falls)
    single = np.zeros(len(y), dtype=np.int64)
    y = np.concatenate([y, twice_y, twice_y])
    x = np.concatenate([x, twice_x, twice_x])
    # Which of two corners at one point comes first: in the row that of the left pixel, in the column that of the upper.
    order_in_row = np.concatenate([single, zeros, ones])
    order_in_column = np.concatenate([single, 1 - falls, falls])
    in_row = _partners(np.lexsort((order_in_row, x, y)))
    in_column = _partners(np.lexsort((order_in_column, y, x)))
    return y, x, in_row, in_column


def _partners(order: NDArray[np.intp]) -> list[int]:
    """Partner of each corner, where those at places 0 and 1, 2 and 3, … of an order belong together."""
    partner = np.empty_like(order)
    partner[order[0::2]] = order[1::2]
    partner[order[1::2]] = order[0::2]
    return partner.tolist()
