"""Windows: the parts of maps around boxes, in groups of like size, so that a group is one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from boxseg.ops.transfer import tensor_on
from boxseg.structures import MASK_STRIDE


def box_windows(
    boxes: Tensor, margin: float, size: tuple[int, int], *, multiple: int
) -> tuple[Tensor, Tensor]:
    """The cells of stride 4 in and around boxes.

    Args:
        boxes: Float (N, 4), pixels.
        margin: Pixels around each box.
        size: (height, width) of the map in cells, multiples of `multiple`.
        multiple: All results are multiples of this.

    Returns:
        First cells (row, column) and those after the last, int64 (N, 2); at least `multiple` cells high and wide.
    """
    limit = tensor_on(boxes.device, size)
    step = MASK_STRIDE * multiple
    first = ((boxes[:, :2] - margin) / step).floor().long().flip(1) * multiple
    last = ((boxes[:, 2:] + 1 + margin) / step).ceil().long().flip(1) * multiple
    first = torch.minimum(first.clamp(min=0), limit - multiple)
    return first, torch.maximum(torch.minimum(last, limit), first + multiple)


def like_sized(
    sizes: Sequence[Sequence[int]], counts: Sequence[int], *, cells_at_once: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Groups of windows of like size.

    Args:
        sizes: Height and width of each window.
        counts: Maps of each window; windows without any are in no group.
        cells_at_once: Limit of the cells of all maps of a group; one window alone may exceed it.

    Yields:
        Indices of the windows of a group, and the height and width that all of them fit in.
    """
    # Of like height, and then sorted by width, the windows of a group waste little on the size of the largest.
    height_class = [round(math.log2(height)) for height, _ in sizes]
    wanted = [index for index, count in enumerate(counts) if count]
    group: list[int] = []
    height = width = total = 0
    for index in sorted(wanted, key=lambda index: (height_class[index], sizes[index][1])):
        new_height, new_width = max(height, sizes[index][0]), max(width, sizes[index][1])
        too_much = (total + counts[index]) * new_height * new_width > cells_at_once
        if group and (too_much or height_class[index] != height_class[group[0]]):
            yield group, (height, width)
            group, total, (new_height, new_width) = [], 0, (sizes[index][0], sizes[index][1])
        group.append(index)
        height, width, total = new_height, new_width, total + counts[index]
    if group:
        yield group, (height, width)
