"""Candidate masks on every pixel of the training image, a few boxes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from boxseg.ops.masks import resize_masks
from boxseg.structures import Candidates, MaskFrame

PIXELS_AT_ONCE = 2**25
"""Pixels of enlarged masks held at once: 31 masks of 800 x 1333 pixels, 134 MB for each map that is made of them."""


def enlarge(mask_probs: Tensor, frame: MaskFrame) -> Tensor:
    """Maps on the grid of the teacher's view, as maps (C, h, w) of the training image."""
    return resize_masks(mask_probs, size=frame.view, original_size=frame.image)


def masks_at_once(frame: MaskFrame) -> int:
    """Number of enlarged masks that may be held at once, at least 1."""
    return max(PIXELS_AT_ONCE // (frame.image[0] * frame.image[1]), 1)


def by_boxes(candidates: Candidates, num_boxes: int) -> Iterator[tuple[slice, Candidates]]:
    """The candidates in parts that fit in memory once enlarged; each box is in one part.

    Args:
        candidates: Sorted by box. Without a frame they are small and come as one part, as they are.
        num_boxes: N.

    Yields:
        A range of boxes, and their candidates with masks (C, h, w) and boxes counted from the start of the range.
    """
    frame = candidates.frame
    if frame is None:
        yield slice(0, num_boxes), candidates
        return
    # Which boxes fit together depends on their numbers of candidates: reading these is the price of bounded memory.
    counts = torch.bincount(candidates.box_index, minlength=num_boxes).tolist()
    starts, total = [0], 0
    for box, count in enumerate(counts):
        if total and total + count > masks_at_once(frame):
            starts.append(box)
            total = 0
        total += count
    for start, end in pairwise([*starts, num_boxes]):
        own = slice(sum(counts[:start]), sum(counts[:end]))
        masks = enlarge(candidates.mask_probs[own], frame)
        box_index = candidates.box_index[own] - start
        part = Candidates(masks, candidates.score[own], candidates.box_iou[own], box_index)
        yield slice(start, end), part
