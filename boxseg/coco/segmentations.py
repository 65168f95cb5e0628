"""Masks as annotation files hold them, and what is wrong with them.

pycocotools trusts what it gets: coordinates far beyond the image end its process or write where they should not, and
run lengths that do not fill the image leave pixels unset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE_PX = 2**16 - 1
"""No picture format in use has longer sides than JPEG."""
MAX_PIXELS = 178_956_970
"""PIL opens no larger picture: one can be a small file that takes all memory."""

KINDS = "a mask is polygons of three points or more, or run lengths with the height and width of its image"
MASKS_RULE = "masks come as COCO instances or as a COCO list of results, with image_id, segmentation and bbox"
REACH = f"no coordinate is beyond {MAX_SIDE_PX} px, the longest side of a picture"
RUNS = "run lengths are whole numbers, none negative, that add up to height times width"

Problem = tuple[str, str]
"""What was found, the predicate of a sentence, and the rule that it breaks."""


Extent = tuple[float, float, float, float]
"""x1 y1 x2 y2 in pixels."""


def find_extent(segmentation: Any) -> Extent | None:
    """The box around a segmentation in which `find_problem` finds nothing; None for run lengths without a pixel."""
    if isinstance(segmentation, list):
        points = np.concatenate(
            [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        )
        x, y = points[0::2], points[1::2]
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())
    height, runs = segmentation["size"][0], read_runs(segmentation["counts"])
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(filled):
        return None
    first, last = ends[filled] - runs[filled], ends[filled] - 1
    rows, columns = (first % height, last % height), (first // height, last // height)
    is_whole = bool((columns[0] != columns[1]).any())  # a run goes on in the next column
    top, bottom = (0, height) if is_whole else (int(rows[0].min()), int(rows[1].max()) + 1)
    return float(columns[0].min()), float(top), float(columns[1].max() + 1), float(bottom)


def find_problem(segmentation: Any, size: tuple[int, int] | None = None) -> Problem | None:
    """What keeps a COCO segmentation (polygons, counts, or compressed counts) from being decoded.

    Args:
        segmentation: The value in the file.
        size: (height, width) of its image in pixels; None: run lengths are believed to be made for it.
    """
    if isinstance(segmentation, list):
        return next(filter(None, map(_polygon_problem, segmentation)), None)
    found = segmentation if isinstance(segmentation, dict) else {}
    counts, sides = found.get("counts"), found.get("size")
    if (
        not isinstance(counts, list | str | bytes)
        or not isinstance(sides, list | tuple)
        or len(sides) != 2
    ):
        return f"has a malformed segmentation {segmentation!r:.60}", KINDS
    if (
        not all(type(side) is int and 0 < side <= MAX_SIDE_PX for side in sides)
        or sides[0] * sides[1] > MAX_PIXELS
    ):
        return f"has a mask of {sides[1]!r:.40} x {sides[0]!r:.40} px", KINDS
    if size is not None and tuple(sides) != size:
        return (
            f"has a mask of {sides[1]} x {sides[0]} px in an image of {size[1]} x {size[0]} px",
            KINDS,
        )
    try:
        runs = read_runs(counts)
    except (ValueError, OverflowError):
        return f"has malformed run lengths {counts!r:.60}", RUNS
    total = sum(runs.tolist())  # of Python's integers, which do not overflow
    if total != sides[0] * sides[1]:
        return (
            f"has run lengths that add up to {total} for a mask of {sides[1]} x {sides[0]} px",
            RUNS,
        )
    return None


def read_runs(counts: list[int] | str | bytes) -> NDArray[np.int64]:
    """Lengths of runs of False and True in turn, False first, column by column.

    Raises:
        ValueError: these are no run lengths.
        OverflowError: one has too many digits.
    """
    runs = np.asarray(counts) if isinstance(counts, list) else _decompress(counts)
    if runs.dtype != np.int64 or runs.ndim != 1 or runs.min(initial=0) < 0:
        raise ValueError("no run lengths")
    return runs


def _decompress(counts: str | bytes) -> NDArray[np.int64]:
    """Numbers of COCO's text: six bits in each letter from `0` on, of which the first says that more follow.

    The other five make a signed number, lowest first; from the fourth on it is the difference to the last but one.
    """
    letters = np.frombuffer(
        counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8
    ).astype(np.int64)
    letters = letters - ord("0")
    last = np.flatnonzero(letters & 32 == 0)
    if not len(last) or letters.min() < 0 or letters.max() > 63 or last[-1] != len(letters) - 1:
        raise ValueError("no compressed run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        raise ValueError("a run length of more than 35 bits")
    shift = 5 * (np.arange(len(letters)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((letters & 31) << shift, first)
    numbers -= (letters[last] & 16) << (shift[last] + 1)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _polygon_problem(polygon: Any) -> Problem | None:
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if not isinstance(polygon, list) or numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
        return f"has a malformed segmentation with {polygon!r:.60}", KINDS
    far = numbers[~(np.abs(numbers) <= MAX_SIDE_PX)]
    return (f"has a polygon with the coordinate {far[0]:g}", REACH) if len(far) else None
