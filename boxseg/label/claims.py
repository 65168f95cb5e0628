"""Who owns a pixel that two clean masks claim: what lies on an object is in both cuts, and belongs to one of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from boxseg.label.cut import CLEAN_FIT
from boxseg.label.parts import box_fits
from boxseg.mask_parts import MaskPart
from boxseg.ops.pixels import BoolArray, shared_colors, sort_colors, to_lab

LEAST_CLAIM = 0.05
"""Masks that share less of the smaller one meet at an outline: nothing is to be decided."""
FOREIGN, OWN = 0.2, 0.5
"""Pixels go from a mask to another whose colours they have: they share less than the first with the rest of the mask
that gives them away, and more than the second with the rest of the other one."""
SAMPLE = 1500
"""Pixels of each region that its colours are told by."""


def settle_claims(
    image: NDArray[np.uint8], boxes: Tensor, parts: dict[int, MaskPart]
) -> dict[int, MaskPart]:
    """Clean masks of an image without the pixels that are another one's by their colours.

    A cut sees one box alone: what lies on an object, and nowhere else around its box, is cut out with it.

    Args:
        image: uint8 (3, height, width), RGB.
        boxes: Float (N, 4), x1 y1 x2 y2, the known boxes.
        parts: Row of a box -> its mask, see `Cut.is_clean`.

    Returns:
        The same rows. A mask gives pixels away only if it still reaches the four sides of its box.
    """
    settled = dict(parts)
    for one, other in _meeting(parts):
        giver = _find_giver(image, settled[one], settled[other])
        if giver is None:
            continue
        row, taker = (one, other) if giver is settled[one] else (other, one)
        left = _without(settled[row], settled[taker])
        if box_fits([left], boxes[row : row + 1]).item() >= CLEAN_FIT:
            settled[row] = left
    return settled


def _meeting(parts: dict[int, MaskPart]) -> list[tuple[int, int]]:
    """Pairs of rows whose masks share pixels enough to ask."""
    rows = list(parts)
    bounds = np.array([parts[row].bounds() for row in rows]).reshape(-1, 4)
    pairs = []
    for place, row in enumerate(rows):
        later = bounds[place + 1 :]
        # Of hundreds of masks in an image, few are here.
        is_here = (later[:, :2] < bounds[place, 2:]).all(axis=1)
        is_here &= (later[:, 2:] > bounds[place, :2]).all(axis=1)
        for step in np.flatnonzero(is_here):
            other = rows[place + 1 + int(step)]
            smaller = min(parts[row].area, parts[other].area)
            if _common(parts[row], parts[other]).sum() >= LEAST_CLAIM * smaller:
                pairs.append((row, other))
    return pairs


def _find_giver(image: NDArray[np.uint8], one: MaskPart, other: MaskPart) -> MaskPart | None:
    """The mask that the common pixels look foreign in, if they are at home in the other one."""
    claimed = _colors_of(image, one, _common(one, other))
    rests = [
        _colors_of(image, one, one.pixels & ~_common(one, other)),
        _colors_of(image, other, other.pixels & ~_common(other, one)),
    ]
    # One row of pixels, sorted into the colours that all three have together.
    regions = [claimed, *rests]
    color = sort_colors(to_lab(np.concatenate(regions)[None]))
    region = np.repeat(np.arange(3), [len(pixels) for pixels in regions])[None]
    for_one, for_other = (
        shared_colors(color, region == 0, region == rest) if (region == rest).any() else 1.0
        for rest in (1, 2)
    )
    # A mask that lies in the other one has no rest, and its pixels are its own.
    if for_one < FOREIGN and for_other > OWN:
        return one
    if for_other < FOREIGN and for_one > OWN:
        return other
    return None


def _common(one: MaskPart, other: MaskPart) -> BoolArray:
    """Bool (h, w), pixels of both masks in the rectangle of the first."""
    height, width = one.pixels.shape
    return one.pixels & other.within(one.top, one.left, (height, width))


def _without(part: MaskPart, other: MaskPart) -> MaskPart:
    return MaskPart(part.pixels & ~_common(part, other), part.top, part.left).trimmed()


def _colors_of(image: NDArray[np.uint8], part: MaskPart, region: BoolArray) -> NDArray[np.uint8]:
    """RGB (n, 3) of `SAMPLE` pixels at most of a region in the rectangle of a mask."""
    pixels = image[:, *part.place][:, region].T
    return pixels[:: max(len(pixels) // SAMPLE, 1)]
