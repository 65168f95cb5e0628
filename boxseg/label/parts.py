"""Measures masks of known boxes in windows around them, so that no mask as large as the image is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boxseg.coco.segmentations import Size
from boxseg.mask_parts import Mask, MaskPart
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import pixels_inside

Rectangle = tuple[int, int, int, int]
"""First row and column of a piece of an image, its height and width, pixels."""


def box_part(box: Tensor, size: Size) -> MaskPart:
    """The pixels of a box (4,), inside an image of (height, width), as `pixels_inside` gives them."""
    window = window_around(box, None, size)
    top, left = window[:2]
    return MaskPart(inside_window(box, window), top, left).trimmed()


def window_around(box: Tensor, part: MaskPart | None, size: Size) -> Rectangle:
    """The rectangle of an image (height, width) that holds a box (4,) and a mask; at least one pixel."""
    x1, y1, x2, y2 = box.tolist()
    left, top = math.floor(x1), math.floor(y1)
    right, bottom = math.ceil(x2), math.ceil(y2)
    if part is not None and part.area:
        mask_left, mask_top, mask_right, mask_bottom = part.bounds()
        left, top = min(left, mask_left), min(top, mask_top)
        right, bottom = max(right, mask_right), max(bottom, mask_bottom)
    height, width = size
    # Boxes may reach beyond the image, and one without area still gets a pixel to be measured in.
    left, right = _clip(left, right, width)
    top, bottom = _clip(top, bottom, height)
    return top, left, bottom - top, right - left


def _clip(start: int, end: int, length: int) -> tuple[int, int]:
    """Start and end of a stretch of pixels, cut to 0 … length; at least one pixel."""
    start = min(max(start, 0), length - 1)
    return start, min(max(end, start + 1), length)


def inside_window(box: Tensor, window: Rectangle) -> Mask:
    """Bool (h, w): the pixels of a box (4,) of the image in a window of it."""
    top, left, height, width = window
    box_in_window = box - torch.tensor([left, top] * 2)
    return pixels_inside(box_in_window[None], (height, width))[0].numpy()


def box_fits(parts: Sequence[MaskPart], boxes: Tensor) -> Tensor:
    """IoU (N,) of each mask's bounding box with the given box: 1 for a mask inside that touches all four sides."""
    bounds = torch.tensor([part.bounds() for part in parts], dtype=torch.float32)
    return box_iou(bounds.reshape(-1, 4), boxes).diagonal().clone()
