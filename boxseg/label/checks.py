"""What the mask of a known box looks like in numbers, and which of them give reason for doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage
from torch import Tensor

from boxseg.coco.segmentations import Size
from boxseg.mask_parts import MaskPart
from boxseg.ops.box_parts import box_part

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


def check_mask(part: MaskPart, box: Tensor, size: Size) -> dict[str, float]:
    """Measure a mask against its box.

    Args:
        part: The mask.
        box: Float (4,), x1 y1 x2 y2 in pixels of the image.
        size: (height, width) of the image.

    Returns:
        `outside`: share of the mask beyond the box; `gap`: largest distance between a side of the box and the mask, as
        a share of the box's width or height; `fill`: share of the box that the mask covers; `pieces`: number of
        connected parts, not counting specks.
    """
    part, inside = part.trimmed(), box_part(box, size)
    area, box_area = part.area, inside.area
    if not area or not box_area:
        return {"outside": 0.0, "gap": 1.0, "fill": 0.0, "pieces": 0}
    left, top, right, bottom = part.bounds()
    common = int((part.pixels & inside.within(top, left, (bottom - top, right - left))).sum())
    # pixels of a piece may touch at a corner
    pieces, _ = ndimage.label(part.pixels, structure=np.ones((3, 3)))
    piece_areas = np.bincount(pieces.ravel())[1:]  # without the background
    x1, y1, x2, y2 = box.tolist()
    gap_across = max(left - x1, x2 - right) / max(x2 - x1, 1)
    gap_down = max(top - y1, y2 - bottom) / max(y2 - y1, 1)
    return {
        "outside": round((area - common) / area, 4),
        "gap": round(max(0.0, gap_across, gap_down), 4),
        "fill": round(common / box_area, 4),
        "pieces": int((piece_areas >= SMALL_PIECE * area).sum()),
    }
