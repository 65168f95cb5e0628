"""Boxes and masks as parts of their image, so that no mask as large as the image is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boxseg.mask_parts import MaskPart
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import pixels_inside


def box_part(box: Tensor, size: tuple[int, int]) -> MaskPart:
    """The pixels of a box (4,), inside an image of (height, width), as `pixels_inside` gives them."""
    x1, y1, x2, y2 = box.tolist()
    left, right = _clip(x1, x2, size[1])
    top, bottom = _clip(y1, y2, size[0])
    in_window = box - torch.tensor([left, top] * 2)
    pixels = pixels_inside(in_window[None], (bottom - top, right - left))[0]
    return MaskPart(pixels.numpy(), top, left).trimmed()


def _clip(low: float, high: float, length: int) -> tuple[int, int]:
    """First pixel, and last one + 1, of low … high on an axis of `length`; at least one pixel of it."""
    start = min(max(math.floor(low), 0), length - 1)
    return start, min(max(math.ceil(high), start + 1), length)


def own_box_iou(parts: Sequence[MaskPart], boxes: Tensor) -> Tensor:
    """IoU (N,) of each mask's bounding box with the given box: 1 for a mask inside that touches all four sides."""
    bounds = torch.tensor([part.bounds() for part in parts], dtype=torch.float32)
    return box_iou(bounds.reshape(-1, 4), boxes).diagonal().clone()
