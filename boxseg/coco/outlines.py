"""Masks as polygons along pixel borders."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from boxseg.mask_parts import Mask, MaskPart

Polygon = NDArray[np.int64]
"""(P, 2): x y of the corners in pixels, in order, the first not repeated."""


def find_polygons(part: MaskPart) -> list[Polygon]:
    """A mask as polygons that cover exactly its pixels: one for each piece.

    Pieces that touch only at a corner are apart. A hole is joined to the outline around it by a line there and back.

    >>> find_polygons(MaskPart(np.array([[False, True, True]])))[0].tolist()
    [[1, 0], [1, 1], [3, 1], [3, 0]]
    """
    if not part.area:
        return []
    pieces, count = ndimage.label(part.pixels)
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces, count), start=1):
        piece = pieces[rows, columns] == number  # without other pieces in the same rectangle
        offset = np.array([columns.start + part.left, rows.start + part.top])
        outlines = [outline + offset for outline in _trace(piece)]
        polygons.append(join_polygons(outlines))
    return polygons


def join_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon that runs around several, joined by lines there and back between their nearest corners."""
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
    """The closed outlines of a mask in one piece, its outer one first, as corners."""
    # OpenCV's outlines run through the centres of pixels. At four times the size that is a fraction of a pixel
    # inside the border, and rounding brings each corner to it.
    fine = np.pad(mask.repeat(2, axis=0).repeat(2, axis=1), 1).astype(np.uint8)
    outlines = []
    for outline in cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]:
        corners = outline[:, 0].astype(np.int64) // 2
        is_new = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
        outlines.append(corners[is_new])
    return sorted(outlines, key=lambda corners: corners[:, 0].min())
