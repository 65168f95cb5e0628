"""Segmentations of annotation files as masks: run lengths of the whole image, and the pixels of a mask alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxseg.coco.segmentations import find_problem, read_runs
from boxseg.errors import DataError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskPart:
    """A mask without the empty rows and columns around it: what an object needs of a large image."""

    pixels: Mask
    """(h, w); what is beyond it belongs to no object."""
    top: int = 0
    """Row of the image that the first row is."""
    left: int = 0
    """Column of the image that the first column is."""

    def within(self, top: int, left: int, size: tuple[int, int]) -> Mask:
        """The pixels of another rectangle of the image, of (height, width), that begins at a row and a column."""
        found = np.zeros(size, dtype=np.bool_)
        y1, x1 = max(self.top, top), max(self.left, left)
        y2 = min(self.top + self.pixels.shape[0], top + size[0])
        x2 = min(self.left + self.pixels.shape[1], left + size[1])
        if y2 > y1 and x2 > x1:
            own = self.pixels[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left]
            found[y1 - top : y2 - top, x1 - left : x2 - left] = own
        return found

    def trimmed(self) -> MaskPart:
        """The same without empty rows and columns around it."""
        x1, y1, x2, y2 = self.bounds()
        top, left = (y1, x1) if x2 else (self.top, self.left)
        return MaskPart(self.within(y1, x1, (y2 - y1, x2 - x1)), top, left)

    def bounds(self) -> tuple[int, int, int, int]:
        """x1 y1 x2 y2 in pixels of the image, x2 and y2 being the last pixel + 1; zeros for an empty mask."""
        rows, columns = (np.flatnonzero(self.pixels.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return 0, 0, 0, 0
        x1, y1, x2, y2 = (
            int(side) for side in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        )
        return x1 + self.left, y1 + self.top, x2 + self.left, y2 + self.top


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A COCO segmentation (polygons, counts, or compressed counts) as compressed counts; errors as below."""
    _require_sound(segmentation, size)
    height, width = size
    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    counts = encoded["counts"]
    return {
        "size": [height, width],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> Mask:
    """A COCO segmentation (polygons, counts, or compressed counts) as bool (h, w).

    Raises:
        DataError: it is none of these, or made for another size; without the place, which the caller knows.
    """
    if isinstance(segmentation, list):
        return coco_mask.decode(encode_segmentation(segmentation, size)).astype(np.bool_)
    _require_sound(segmentation, size)
    runs = read_runs(segmentation["counts"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def decode_part(segmentation: Any, size: tuple[int, int]) -> MaskPart:
    """`decode_segmentation` without the frame: only the columns that hold some of the mask are unpacked."""
    if isinstance(segmentation, list):
        segmentation = encode_segmentation(segmentation, size)
    _require_sound(segmentation, size)
    runs, height = read_runs(segmentation["counts"]), size[0]
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(filled):
        return MaskPart(np.zeros((0, 0), dtype=np.bool_))
    left = int(ends[filled[0]] - runs[filled[0]]) // height
    right = -(-int(ends[filled[-1]]) // height)
    starts, stops = (
        (each - left * height).clip(0, (right - left) * height) for each in (ends - runs, ends)
    )
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, stops - starts).reshape(
        right - left, height
    )
    rows = np.flatnonzero(columns.any(axis=0))
    return MaskPart(columns[:, rows[0] : rows[-1] + 1].T, top=int(rows[0]), left=left)


def encode_part(part: MaskPart, size: tuple[int, int]) -> dict[str, Any]:
    """A mask of an image of (height, width) as COCO's compressed run lengths, ready for JSON."""
    (height, width), inside = size, part.pixels
    columns = np.flatnonzero(inside.any(axis=0))
    start, end = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    below = height - part.top - inside.shape[0]
    column_by_column = (
        np.pad(inside[:, start:end].T, ((0, 0), (part.top, below)))
        if len(columns)
        else inside[:0, :0]
    )
    pixels = np.zeros(column_by_column.size + 2, dtype=bool)  # with an empty one before and after
    pixels[1:-1] = column_by_column.ravel()
    turns = np.flatnonzero(pixels[1:] != pixels[:-1]) + height * (part.left + start)
    runs = np.diff(turns, prepend=0, append=height * width)
    runs = runs[: len(runs) - (runs[-1] == 0)]  # up to the last pixel that is True
    encoded = coco_mask.frPyObjects(
        {"size": [height, width], "counts": runs.tolist()}, height, width
    )
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_rle(mask: Mask) -> dict[str, Any]:
    """Bool (h, w) as COCO's compressed run lengths, ready for JSON; only columns that hold some of it are looked at."""
    return encode_part(MaskPart(mask), (mask.shape[0], mask.shape[1]))


def _require_sound(segmentation: Any, size: tuple[int, int]) -> None:
    problem = find_problem(segmentation, size)
    if problem is not None:
        raise DataError(f"{problem[0]}; {problem[1]} (draw it again or remove it)")
