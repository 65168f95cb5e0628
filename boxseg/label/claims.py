"""Pixels that two clean cuts of an image claim: which one keeps them, and what those that stay shared probably cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from boxseg.files.pixels import cielab
from boxseg.label.cut import CLEAN_FIT
from boxseg.mask_parts import MaskPart
from boxseg.ops.box_parts import own_box_iou
from boxseg.ops.pixels import BoolArray, color_overlap, sort_colors

LEAST_CLAIM = 0.05
"""Two masks that share a smaller part than this of the smaller one only touch; nothing has to be settled."""
FOREIGN, OWN = 0.2, 0.5
"""A mask gives the shared pixels away if their colours overlap less than the first with the rest of this mask, and more
than the second with the rest of the other one."""
INSIDE = 0.9
"""A mask of which the other one holds this much lies inside it: the rest is its outline, whose pixels are blends."""
CLAIM_SAMPLE = 1500
"""Of larger regions, about this many pixels are sampled to compare colours."""


def settle_claims(
    image: NDArray[np.uint8], boxes: Tensor, parts: dict[int, MaskPart]
) -> dict[int, MaskPart]:
    """Take from the clean masks of an image the pixels whose colours show that they belong to another mask.

    GrabCut sees one box at a time: an object that lies on another one, and nowhere else around its box, is cut out
    together with it.

    Args:
        image: uint8 (3, height, width), RGB.
        boxes: Float (N, 4), x1 y1 x2 y2, the known boxes.
        parts: Row of a box -> its mask, see `Cut.is_clean`.

    Returns:
        The same rows. A mask gives pixels away only if it still reaches the four sides of its box.
    """
    settled = dict(parts)
    for one, other in _overlapping(parts):
        giver = _find_giver(image, settled[one], settled[other])
        if giver is None:
            continue
        row, taker = (one, other) if giver is settled[one] else (other, one)
        left = _without(settled[row], settled[taker])
        if own_box_iou([left], boxes[row : row + 1]).item() >= CLEAN_FIT:
            settled[row] = left
    return settled


def expect_losses(parts: dict[int, MaskPart]) -> dict[int, float]:
    """How much IoU each clean mask probably loses because other masks claim some of its pixels.

    Colours cannot tell apart two objects of a kind that cross: both masks contain both objects. One of the two is wrong
    about the shared pixels, so each is expected to be wrong half the time. The loss is relative to the larger mask, so
    that a small mask inside a large one hardly counts.

    Args:
        parts: Row of a box -> its mask, as `settle_claims` gives them.
    """
    losses = dict.fromkeys(parts, 0.0)
    for one, other in _overlapping(parts):
        larger = max(parts[one].area, parts[other].area)
        loss = 0.5 * float(_common(parts[one], parts[other]).sum()) / larger
        losses[one] += loss
        losses[other] += loss
    return losses


def _overlapping(parts: dict[int, MaskPart]) -> list[tuple[int, int]]:
    """Pairs of rows whose masks share at least `LEAST_CLAIM` of the smaller one."""
    rows = list(parts)
    bounds = np.array([parts[row].bounds() for row in rows]).reshape(-1, 4)
    pairs = []
    for place, row in enumerate(rows):
        later = bounds[place + 1 :]
        # Bounds first: of hundreds of masks in an image, few overlap.
        bounds_overlap = (later[:, :2] < bounds[place, 2:]).all(axis=1)
        bounds_overlap &= (later[:, 2:] > bounds[place, :2]).all(axis=1)
        for step in np.flatnonzero(bounds_overlap):
            other = rows[place + 1 + int(step)]
            smaller = min(parts[row].area, parts[other].area)
            if _common(parts[row], parts[other]).sum() >= LEAST_CLAIM * smaller:
                pairs.append((row, other))
    return pairs


def _find_giver(image: NDArray[np.uint8], one: MaskPart, other: MaskPart) -> MaskPart | None:
    """The mask whose own colours the shared pixels do not have, if they have those of the other mask; else None."""
    common = _common(one, other)
    claimed = _colors_of(image, one, common)
    rests = [
        _colors_of(image, one, one.pixels & ~common),
        _colors_of(image, other, other.pixels & ~_common(other, one)),
    ]
    # One row of pixels, so that all three regions are sorted into the same colours.
    regions = [claimed, *rests]
    color = sort_colors(cielab(np.concatenate(regions)[None]))
    region = np.repeat(np.arange(3), [len(pixels) for pixels in regions])[None]
    overlaps = []
    for rest, mask in ((1, one), (2, other)):
        # If the mask lies inside the other one, the shared pixels are its own.
        is_inside = common.sum() >= INSIDE * mask.area
        overlaps.append(1.0 if is_inside else color_overlap(color, region == 0, region == rest))
    for_one, for_other = overlaps
    if for_one < FOREIGN and for_other > OWN:
        return one
    if for_other < FOREIGN and for_one > OWN:
        return other
    return None


def _common(one: MaskPart, other: MaskPart) -> BoolArray:
    """Bool (h, w), the pixels that both masks have, in the rectangle of the first."""
    height, width = one.pixels.shape
    return one.pixels & other.within(one.top, one.left, (height, width))


def _without(part: MaskPart, other: MaskPart) -> MaskPart:
    return MaskPart(part.pixels & ~_common(part, other), part.top, part.left).trimmed()


def _colors_of(image: NDArray[np.uint8], part: MaskPart, region: BoolArray) -> NDArray[np.uint8]:
    """RGB (n, 3) of pixels of a region in the rectangle of a mask; about `CLAIM_SAMPLE` of them where it has more."""
    pixels = image[:, *part.place][:, region].T
    return pixels[:: max(len(pixels) // CLAIM_SAMPLE, 1)]
