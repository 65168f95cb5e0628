"""Masks of known boxes cut to their pixels: a large image of a hundred boxes would be a hundred frames otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boxseg.coco.masks import Mask, MaskPart
from boxseg.label.boxes import BoxLabels
from boxseg.ops.masks import pixels_inside


@dataclass(frozen=True)
class PartLabels:
    """`BoxLabels` whose masks are cut to their pixels."""

    parts: Sequence[MaskPart]
    """One for each box."""
    size: tuple[int, int]
    """(height, width) of the image, pixels."""
    quality: Tensor
    num_candidates: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool (N, height, width), made anew."""
        masks = [part.within(0, 0, self.size) for part in self.parts]
        return torch.from_numpy(np.array(masks, dtype=np.bool_).reshape(-1, *self.size))

    def part(self, row: int) -> MaskPart:
        """The mask of a box."""
        return self.parts[row]

    def whole(self) -> BoxLabels:
        """The same with masks of the size of the image."""
        return BoxLabels(self.mask, self.quality, self.num_candidates)


def box_part(box: Tensor, size: tuple[int, int]) -> MaskPart:
    """The pixels of a box (4,), inside an image of (height, width), as `pixels_inside` gives them."""
    window = window_around(box, None, size)
    return MaskPart(inside_window(box, window), window[0], window[1]).trimmed()


def window_around(
    box: Tensor, part: MaskPart | None, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """First row and column, height and width of what a box (4,) and a mask cover of an image of (height, width)."""
    x1, y1, x2, y2 = box.tolist()
    sides = [math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)]
    bounds = None if part is None else part.bounds()
    if bounds is not None and bounds[2]:
        sides = [*map(min, sides[:2], bounds[:2]), *map(max, sides[2:], bounds[2:])]
    left, top = min(max(sides[0], 0), size[1] - 1), min(max(sides[1], 0), size[0] - 1)
    right, bottom = min(max(sides[2], left + 1), size[1]), min(max(sides[3], top + 1), size[0])
    return top, left, bottom - top, right - left


def inside_window(box: Tensor, window: tuple[int, int, int, int]) -> Mask:
    """Bool (h, w): the pixels of a box (4,) of the image in a window of it."""
    top, left, height, width = window
    return pixels_inside(box[None] - torch.tensor([left, top] * 2), (height, width))[0].numpy()
