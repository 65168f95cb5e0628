"""Masks as annotation files hold them, and what is wrong with them.

pycocotools trusts what it gets: coordinates far beyond the image end its process or write where they should not, and
run lengths that do not fill the image leave pixels unset. So every segmentation is checked here first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE_PX = 2**16 - 1
"""The longest side of a JPEG; no picture format in use has longer ones."""
MAX_PIXELS = 178_956_970
"""PIL opens no larger picture: one can be a small file that takes all memory."""

KINDS = "a mask is polygons of three points or more, or run lengths with the height and width of its image"
MASKS_RULE = "masks come as COCO instances or as a COCO list of results, with image_id, segmentation and bbox"
REACH = f"no coordinate is beyond {MAX_SIDE_PX} px, the longest side of a picture"
RUNS = "run lengths are whole numbers, none negative, that add up to height times width"

Size = tuple[int, int]
"""(height, width) in pixels."""
Problem = tuple[str, str]
"""What was found, as the predicate of a sentence, and the rule that it breaks."""
Extent = tuple[float, float, float, float]
"""x1 y1 x2 y2 in pixels."""


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """What checks need of a segmentation, without its many numbers."""

    problem: Problem | None
    """Why it cannot be decoded; None if it can."""
    made_for: Size | None
    """(height, width) that its run lengths are made for; None for polygons."""
    extent: Extent | None
    """The box around it; None if it has no pixel, or cannot be decoded."""
    area: float
    """Pixels inside; where polygons overlap, they count twice."""
    is_polygons: bool
    is_nested: bool = False
    """Whether a polygon lies in another one."""

    @classmethod
    def of(cls, segmentation: Any) -> MaskSummary:
        """The summary of the value in a file, whatever it is."""
        problem = find_problem(segmentation)
        if problem is not None:
            return cls(problem, made_for=None, extent=None, area=0.0, is_polygons=False)
        is_polygons = isinstance(segmentation, list)
        height, width = (0, 0) if is_polygons else segmentation["size"]
        return cls(
            problem=None,
            made_for=None if is_polygons else (height, width),
            extent=find_extent(segmentation),
            area=find_area(segmentation),
            is_polygons=is_polygons,
            is_nested=is_polygons and len(segmentation) > 1 and _are_nested(segmentation),
        )


def _are_nested(polygons: list[list[float]]) -> bool:
    """Whether all corners of a polygon lie inside another one."""
    extents = [find_extent([polygon]) for polygon in polygons]
    for inner, outer in itertools.permutations(range(len(polygons)), 2):
        x1, y1, x2, y2 = extents[outer] or (0, 0, 0, 0)
        left, top, right, bottom = extents[inner] or (0, 0, 0, 0)
        # The box around it lies inside first: few polygons are left to be looked at closely.
        if not (x1 < left and y1 < top and right < x2 and bottom < y2):
            continue
        from matplotlib.path import Path  # takes a while to load, and few masks need it

        outline = np.asarray(polygons[outer], dtype=np.float64).reshape(-1, 2)
        if Path(outline).contains_points(np.reshape(polygons[inner], (-1, 2))).all():
            return True
    return False


def find_extent(segmentation: Any) -> Extent | None:
    """The box around a segmentation that `find_problem` accepts; None for run lengths without a pixel.

    >>> find_extent([[1, 2, 5, 2, 5, 8]])
    (1.0, 2.0, 5.0, 8.0)
    """
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        points = np.concatenate(polygons).reshape(-1, 2)
        x1, y1 = points.min(axis=0).tolist()
        x2, y2 = points.max(axis=0).tolist()
        return x1, y1, x2, y2
    height = segmentation["size"][0]
    runs = read_runs(segmentation["counts"])
    ends = runs.cumsum()
    filled = np.flatnonzero(runs[1::2]) * 2 + 1  # indices of runs that hold some of the mask
    if not len(filled):
        return None
    # Pixels are counted down the columns, one column after the other.
    first_column, first_row = np.divmod(ends[filled] - runs[filled], height)
    last_column, last_row = np.divmod(ends[filled] - 1, height)
    left = int(first_column[0])
    right = int(last_column[-1]) + 1
    if (first_column != last_column).any():
        # A run that goes on in the next column reaches the bottom of one and the top of the other.
        top, bottom = 0, height
    else:
        top = int(first_row.min())
        bottom = int(last_row.max()) + 1
    return float(left), float(top), float(right), float(bottom)


def find_area(segmentation: Any) -> float:
    """Pixels inside a segmentation that `find_problem` accepts; where polygons overlap, they count twice.

    >>> find_area([[1, 2, 5, 2, 5, 8]]), find_area({"size": [2, 3], "counts": [4, 2]})
    (12.0, 2.0)
    """
    if not isinstance(segmentation, list):
        return float(read_runs(segmentation["counts"])[1::2].sum())
    area = 0.0
    for polygon in segmentation:
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        # The shoelace formula, from point to point and back to the first.
        twice = x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0]
        area += abs(float(twice)) / 2
    return area


def find_problem(segmentation: Any, size: Size | None = None) -> Problem | None:
    """What keeps a COCO segmentation (polygons, counts, or compressed counts) from being decoded; None if nothing.

    Args:
        segmentation: The value in the file.
        size: (height, width) of its image in pixels. If left out, run lengths may be made for any image.

    >>> find_problem([[1, 2, 5, 2, 5, 8]])
    >>> find_problem({"size": [2, 3], "counts": [4, 1]})[0]
    'has run lengths that add up to 5 for a mask of 3 x 2 px'
    """
    if isinstance(segmentation, list):
        problems = map(_polygon_problem, segmentation)
        return next((problem for problem in problems if problem is not None), None)
    return _run_lengths_problem(segmentation, size)


def _polygon_problem(polygon: Any) -> Problem | None:
    try:
        numbers = np.asarray(polygon)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    # NumPy would read texts as numbers; pycocotools does not.
    is_list = isinstance(polygon, list) and numbers.ndim == 1 and numbers.dtype.kind in "iuf"
    numbers = numbers.astype(np.float64) if is_list else np.empty(0)
    if len(numbers) % 2 or len(numbers) < 6:
        return f"has a malformed segmentation with {polygon!r:.60}", KINDS
    far = numbers[~(np.abs(numbers) <= MAX_SIDE_PX)]  # so written that NaN counts as far
    return (f"has a polygon with the coordinate {far[0]:g}", REACH) if len(far) else None


def _run_lengths_problem(segmentation: Any, size: Size | None) -> Problem | None:
    fields = segmentation if isinstance(segmentation, dict) else {}
    counts, sides = fields.get("counts"), fields.get("size")
    if (
        not isinstance(counts, list | str | bytes)
        or not isinstance(sides, list | tuple)
        or len(sides) != 2
    ):
        return f"has a malformed segmentation {segmentation!r:.60}", KINDS
    height, width = sides
    if not is_side(height) or not is_side(width) or height * width > MAX_PIXELS:
        return f"has a mask of {width!r:.40} x {height!r:.40} px", KINDS
    if size is not None and (height, width) != size:
        return other_size((height, width), size)
    try:
        runs = read_runs(counts)
    except (ValueError, OverflowError):
        return f"has malformed run lengths {counts!r:.60}", RUNS
    total = sum(runs.tolist())  # in Python's integers, which do not overflow
    if total != height * width:
        return f"has run lengths that add up to {total} for a mask of {width} x {height} px", RUNS
    return None


def other_size(made_for: Size, size: Size) -> Problem:
    """What is wrong with run lengths that are made for an image of another (height, width)."""
    height, width = made_for
    value = f"has a mask of {width} x {height} px in an image of {size[1]} x {size[0]} px"
    return value, KINDS


def is_side(side: Any) -> bool:
    """Whether a value of a JSON file can be the width or height of a picture."""
    return type(side) is int and 0 < side <= MAX_SIDE_PX


def read_runs(counts: list[int] | str | bytes) -> NDArray[np.int64]:
    """Lengths of the runs of pixels outside and inside of a mask in turn, outside first, column by column.

    Args:
        counts: As COCO stores them: numbers, or the compressed text of pycocotools.

    Raises:
        ValueError: these are no run lengths.
        OverflowError: one has too many digits.

    >>> read_runs("312").tolist()
    [3, 1, 2]
    """
    runs = np.asarray(counts) if isinstance(counts, list) else _decompress(counts)
    if runs.dtype != np.int64 or runs.ndim != 1 or runs.min(initial=0) < 0:
        raise ValueError("no run lengths")
    return runs


def _decompress(counts: str | bytes) -> NDArray[np.int64]:
    """Numbers of COCO's compressed text.

    A letter stands for six bits, `0` for none of them set. The highest bit says whether the next letter belongs to the
    same number. The other five bits of all letters of a number, lowest first, are that number in two's complement. From
    the fourth number on it is the difference to the number two before.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    letters = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(letters & 32 == 0)  # index of the last letter of each number
    ends_within_number = not len(last) or last[-1] != len(letters) - 1
    if ends_within_number or letters.min() < 0 or letters.max() > 63:
        raise ValueError("no compressed run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        raise ValueError("a run length of more than 35 bits")
    # of a letter in its number
    place = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    shift = 5 * place
    numbers = np.add.reduceat((letters & 31) << shift, first)
    # The sign is the highest of the bits: where it is set, two's complement counts from below.
    numbers -= (letters[last] & 16) << (shift[last] + 1)
    # Undo the differences: the second, fourth, … number, and from the third on every other.
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
