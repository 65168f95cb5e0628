"""Segmentations of annotation files as masks: run lengths of the whole image, and parts that hold only the object."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from boxseg.coco.segmentations import Size, find_problem, read_runs
from boxseg.errors import DataError
from boxseg.mask_parts import NO_MASK, Mask, MaskPart

Rle = dict[str, Any]
"""COCO's compressed run lengths, ready for JSON: `size`, height and width, and the text `counts`."""


def encode_segmentation(segmentation: Any, size: Size) -> Rle:
    """A COCO segmentation (polygons, counts, or compressed counts) as compressed counts.

    Args:
        segmentation: The value in the file.
        size: (height, width) of its image in pixels.

    Raises:
        DataError: it cannot be decoded, or is made for another size. The text lacks the place, which the caller knows.

    >>> encode_segmentation({"size": [2, 2], "counts": [1, 2, 1]}, (2, 2))
    {'size': [2, 2], 'counts': '121'}
    """
    _require_sound(segmentation, size)
    height, width = size
    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def mask_area(segmentation: Any, size: Size) -> int:
    """Pixels inside a COCO segmentation; arguments and errors as for `encode_segmentation`."""
    return int(coco_mask.area(encode_segmentation(segmentation, size)))


def object_area(annotation: dict[str, Any], size: Size | None) -> float:
    """Area of an annotation's mask in an image of (height, width), or of its box where it has none [px].

    Args:
        annotation: Of a COCO file.
        size: None: the image is not listed, and the box counts.

    Raises:
        DataError: see `encode_segmentation`.
    """
    if annotation.get("segmentation") and size is not None:
        return float(mask_area(annotation["segmentation"], size))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def decode_segmentation(segmentation: Any, size: Size) -> Mask:
    """A COCO segmentation as bool (h, w); arguments and errors as for `encode_segmentation`.

    >>> decode_segmentation({"size": [2, 2], "counts": [1, 2, 1]}, (2, 2)).tolist()
    [[False, True], [True, False]]
    """
    return decode_part(segmentation, size).within(0, 0, size)


def decode_part(segmentation: Any, size: Size) -> MaskPart:
    """A COCO segmentation as the part of the image that holds it; arguments and errors as for `encode_segmentation`.

    Only the columns that hold some of the mask are unpacked, so a small object of a large image takes little time.
    """
    if isinstance(segmentation, list):
        # Polygons are drawn by pycocotools, as in COCO's evaluation.
        segmentation = encode_segmentation(segmentation, size)
    _require_sound(segmentation, size)
    height = size[0]
    runs = read_runs(segmentation["counts"])
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1  # indices of runs that hold some of the mask
    if not len(filled):
        return NO_MASK
    left = int(ends[filled[0] - 1]) // height
    right = -(-int(ends[filled[-1]]) // height)  # rounded up
    # The runs again, cut to these columns.
    cut_ends = (ends - left * height).clip(0, (right - left) * height)
    # Every second run is inside the mask, as COCO begins with one outside.
    is_inside = np.arange(len(runs)) % 2 == 1
    pixels = np.repeat(is_inside, np.diff(cut_ends, prepend=0))
    columns = pixels.reshape(right - left, height)
    return MaskPart(columns.T, 0, left).trimmed()


def encode_part(part: MaskPart, size: Size) -> Rle:
    """A mask of an image of (height, width) as COCO's compressed run lengths, ready for JSON."""
    height, width = size
    # COCO counts down the columns. Only those that hold some of the mask are looked at.
    part = part.trimmed()
    below = height - part.top - part.pixels.shape[0]
    whole_columns = np.pad(part.pixels.T, ((0, 0), (part.top, below)))
    # With an outside pixel added before and after, each run inside begins at one change and ends at the next.
    pixels = np.zeros(whole_columns.size + 2, dtype=bool)
    pixels[1:-1] = whole_columns.ravel()
    turns = np.flatnonzero(pixels[1:] != pixels[:-1]) + height * part.left
    runs = np.diff(turns, prepend=0, append=height * width)
    if runs[-1] == 0:  # the last pixel of the image is inside
        runs = runs[:-1]
    counts = {"size": [height, width], "counts": runs.tolist()}
    encoded = coco_mask.frPyObjects(counts, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_rle(mask: Mask) -> Rle:
    """A mask bool (h, w) of a whole image as COCO's compressed run lengths, ready for JSON.

    >>> encode_rle(np.array([[False, True], [True, False]]))
    {'size': [2, 2], 'counts': '121'}
    """
    return encode_part(MaskPart(mask), (mask.shape[0], mask.shape[1]))


def _require_sound(segmentation: Any, size: Size) -> None:
    problem = find_problem(segmentation, size)
    if problem is not None:
        value, rule = problem
        raise DataError(f"{value}; {rule} (draw it again or remove it)")
