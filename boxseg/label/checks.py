"""What the mask of a known box looks like in numbers, and which of them give reason for doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from boxseg.mask_parts import MaskPart

SMALL_PIECE = 0.02
"""Pieces smaller than this share of the mask are specks and do not count."""

DOUBTS: dict[str, tuple[Callable[[float], bool], str]] = {
    "outside": (lambda share: share > 0.02, "reach beyond their box"),
    "gap": (lambda share: share > 0.1, "leave a side of their box untouched"),
    "fill": (
        lambda share: share < 0.15 or share > 0.97,
        "fill less than 15 % or more than 97 % of their box",
    ),
    "pieces": (lambda count: count != 1, "are not in one piece"),
}
"""Measure of `check_mask` -> whether a value of it is doubtful, and a phrase that says what is wrong then."""


def shared_doubt(doubts: Mapping[str, int], masks: int) -> str | None:
    """A sentence about the doubt that more than half of the masks share; None where there is no such doubt.

    Args:
        doubts: Name of a doubt -> number of masks that have it.
        masks: Number of all masks.
    """
    if not doubts:
        return None
    name = max(doubts, key=lambda name: doubts[name])
    count, (_, meaning) = doubts[name], DOUBTS[name]
    if 2 * count <= masks:
        return None
    return f"{count} of {masks} masks {meaning} ({name}): look at them before you use any"


def check_mask(
    mask: NDArray[np.bool_], box: NDArray[np.float32], inside: NDArray[np.bool_]
) -> dict[str, float]:
    """Measure a mask against its box.

    Args:
        mask: Bool (h, w).
        box: Float (4,), x1 y1 x2 y2 in pixels.
        inside: Bool (h, w), pixels of the box.

    Returns:
        `outside`: share of the mask beyond the box; `gap`: largest distance between a side of the box and the mask, as
        a share of the box's width or height; `fill`: share of the box that the mask covers; `pieces`: number of
        connected parts, not counting specks.
    """
    area, box_area = int(mask.sum()), int(inside.sum())
    if not area or not box_area:
        return {"outside": 0.0, "gap": 1.0, "fill": 0.0, "pieces": 0}
    left, top, right, bottom = MaskPart(mask).bounds()
    window = mask[top:bottom, left:right]
    pieces, _ = ndimage.label(window, structure=np.ones((3, 3)))  # pixels may touch at a corner
    piece_areas = np.bincount(pieces.ravel())[1:]  # without the background
    x1, y1, x2, y2 = box.tolist()
    gap_across = max(left - x1, x2 - right) / max(x2 - x1, 1)
    gap_down = max(top - y1, y2 - bottom) / max(y2 - y1, 1)
    return {
        "outside": round(float((mask & ~inside).sum()) / area, 4),
        "gap": round(max(0.0, gap_across, gap_down), 4),
        "fill": round(float((mask & inside).sum()) / box_area, 4),
        "pieces": int((piece_areas >= SMALL_PIECE * area).sum()),
    }
