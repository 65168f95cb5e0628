"""Masks cut to their pixels: a hundred objects of a large photograph would be a hundred frames of it otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
"""Bool (h, w)."""


@dataclass(frozen=True)
class MaskPart:
    """A mask in a rectangle of its image that holds all of its pixels: what an object needs of a large image."""

    pixels: Mask
    """(h, w); nothing beyond it belongs to the object."""
    top: int = 0
    """Row of the image that the first row is."""
    left: int = 0
    """Column of the image that the first column is."""

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the rectangle is."""
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def within(self, top: int, left: int, size: tuple[int, int]) -> Mask:
        """The mask in another rectangle of the image.

        Args:
            top: First row of the rectangle.
            left: Its first column.
            size: Its (height, width), which the result has.
        """
        result = np.zeros(size, dtype=np.bool_)
        height, width = self.pixels.shape
        # What both have in common, in pixels of the image.
        y1, y2 = max(self.top, top), min(self.top + height, top + size[0])
        x1, x2 = max(self.left, left), min(self.left + width, left + size[1])
        # Without a common part the bounds cross, and negative ones would count from the end.
        if y2 > y1 and x2 > x1:
            rows = slice(y1 - self.top, y2 - self.top)
            columns = slice(x1 - self.left, x2 - self.left)
            result[y1 - top : y2 - top, x1 - left : x2 - left] = self.pixels[rows, columns]
        return result

    def resized(self, size: tuple[int, int], new_size: tuple[int, int]) -> Mask:
        """The mask in its whole image of (height, width), shown at another size; the nearest pixel counts."""
        result = np.zeros(new_size, dtype=np.bool_)
        pixels, places = self.pixels, []
        for axis, start in enumerate((self.top, self.left)):
            # float32, as `resize_bool` has it
            middle = np.arange(new_size[axis], dtype=np.float32) + np.float32(0.5)
            scale = np.float32(size[axis] / new_size[axis])
            source = (middle * scale).astype(np.int64) - start
            # Only what lies within the part: to unpack the whole image for each object takes minutes.
            place = slice(*np.searchsorted(source, (0, self.pixels.shape[axis])))
            pixels = pixels.take(source[place], axis=axis)
            places.append(place)
        result[tuple(places)] = pixels
        return result

    def trimmed(self) -> MaskPart:
        """The same mask without the empty rows and columns around it."""
        x1, y1, x2, y2 = self.bounds()
        if not x2:  # an empty mask stays where it is
            return MaskPart(np.zeros((0, 0), dtype=np.bool_), self.top, self.left)
        pixels = self.within(y1, x1, (y2 - y1, x2 - x1))
        return MaskPart(pixels, top=y1, left=x1)

    def bounds(self) -> tuple[int, int, int, int]:
        """x1 y1 x2 y2 in pixels of the image, x2 and y2 being the last pixel + 1; zeros for an empty mask.

        >>> MaskPart(np.eye(3, dtype=bool), top=5, left=7).bounds()
        (7, 5, 10, 8)
        """
        rows = np.flatnonzero(self.pixels.any(axis=1))
        columns = np.flatnonzero(self.pixels.any(axis=0))
        if not len(rows):
            return 0, 0, 0, 0
        x1, x2 = int(columns[0]), int(columns[-1]) + 1
        y1, y2 = int(rows[0]), int(rows[-1]) + 1
        return x1 + self.left, y1 + self.top, x2 + self.left, y2 + self.top


NO_MASK = MaskPart(np.zeros((0, 0), dtype=np.bool_))
"""The mask of nothing."""


def place_masks(parts: Sequence[MaskPart], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks as bool (n, height, width) of an image of (height, width): memory for n frames."""
    masks = np.zeros((len(parts), *size), dtype=np.bool_)
    for mask, part in zip(masks, parts, strict=True):
        # `mask` is a view: this writes into `masks`.
        mask[part.place] = part.pixels
    return masks
