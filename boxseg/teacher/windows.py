"""Candidate masks in windows around their boxes, where nothing looks at the rest: a fraction of the cost of whole maps.

The windows of an image come in groups of like size, so that a group is one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from boxseg.config.method import QamConfig
from boxseg.ops.per_box import count_per_box
from boxseg.ops.transfer import tensor_on
from boxseg.structures import (
    MASK_STRIDE,
    Batch,
    Candidates,
    MaskNetwork,
    RawDetections,
    WindowMasks,
    Windows,
)
from boxseg.teacher.ranking import Chosen
from boxseg.teacher.view import cells_at_once

AROUND_PX = 6
"""Margin around a box, in pixels, that the windows of its candidates' masks include. Bilinear values at the border of
the box need a cell beyond it; this is a cell more."""
WINDOW_MULTIPLE = 2
"""Corners and sizes of windows are multiples of this many cells of stride 4, as networks may draw on stride 8."""


def needs_windows_only(qam: QamConfig) -> bool:
    """Whether nothing depends on what a candidate's mask does far from its box: quality is that of refined masks."""
    return qam.color_weight > 0 and qam.need_inside and not qam.full_resolution


def draw_in_windows(
    network: MaskNetwork,
    predictions: Any,
    detections: list[RawDetections],
    chosen: list[Chosen],
    batch: Batch,
) -> list[Candidates]:
    """Candidates of all images with masks around their boxes only.

    Args:
        network: Has `window_logits`.
        predictions: What it gave for the weak view of the batch.
        detections: B times those of an image.
        chosen: Which of them serve which box of the image.
        batch: Its boxes say where the windows are.
    """
    plan = _plan_windows([best.box_index for best in chosen], batch)
    image_index, handle, parts = [], [], []
    before = 0  # candidates of the images so far
    for image, best in enumerate(chosen):
        image_index.append(torch.full_like(best.detection_index, image))
        handle.append(detections[image].handle[best.detection_index])
        for group in plan[image]:
            # Each candidate is drawn in the window of its box.
            corner = group.windows.corner[group.owner]
            parts.append((group.candidate_index + before, Windows(corner, group.windows.size)))
        before += len(best.detection_index)
    drawn = network.window_logits(predictions, torch.cat(image_index), torch.cat(handle), parts)
    candidates = []
    for found, best, groups in zip(detections, chosen, plan, strict=True):
        scores = found.scores[best.detection_index]
        # `drawn` gives the groups of all images in turn.
        around = [replace(group, mask_probs=next(drawn).sigmoid()) for group in groups]
        no_maps = scores.new_zeros(len(scores), 0, 0)
        candidates.append(Candidates(no_maps, scores, best.iou, best.box_index, around=around))
    return candidates


def _plan_windows(box_index: list[Tensor], batch: Batch) -> list[list[WindowMasks]]:
    """The windows of each image, in groups of like size and still without masks; `box_index` (C,) of an image rises."""
    height, width = (side // MASK_STRIDE for side in batch.valid.shape[-2:])
    boxes = torch.cat(batch.boxes)
    start, end = _box_windows(boxes, (height, width))
    num_boxes = [len(own) for own in batch.boxes]
    count = torch.cat(
        [count_per_box(own, total) for own, total in zip(box_index, num_boxes, strict=True)]
    )
    # the only read, for all images
    table = torch.cat([end - start, count[:, None]], dim=1).tolist()
    of_images = zip(batch.sizes, start.split(num_boxes), end.split(num_boxes), strict=True)
    return [
        _plan_image(table[before : before + len(first)], first, last, (height, width), size)
        for before, (size, first, last) in zip(
            accumulate([0, *num_boxes]), of_images, strict=False
        )
    ]


def _plan_image(
    table: list[list[int]],
    start: Tensor,
    end: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> list[WindowMasks]:
    """The windows of one image.

    Args:
        table: Height and width in cells of each box's window, and the number of its candidates.
        start: int64 (N, 2), first cells (row, column).
        end: int64 (N, 2), cells after the last.
        grid: (height, width) of the maps, in cells.
        size: (height, width) of the image without padding, pixels.
    """
    device, counts = start.device, [count for _, _, count in table]
    first = list(accumulate(counts, initial=0))  # candidate of each box
    on_image = tensor_on(device, [(side + MASK_STRIDE // 2 - 1) // MASK_STRIDE for side in size])
    plan = []
    for group, window in _like_sized(
        [sides for *sides, _ in table], counts, cells_at_once=cells_at_once(device)
    ):
        owners = [place for place, box in enumerate(group) for _ in range(counts[box])]
        served = [row for box in group for row in range(first[box], first[box + 1])]
        # One tensor for both, as each costs a transfer.
        candidate_index, owner = tensor_on(device, [served, owners]).unbind()
        box_index = tensor_on(device, group)
        group_start = start[box_index]
        # A window has the size of the largest of its group; at the right and at the bottom it moves back until it lies
        # on the map. Only the part that the box itself needs is used, so that no result depends on the group; its first
        # row and column are left out, as networks need not get them right.
        last_corner = tensor_on(
            device, [side - extent for side, extent in zip(grid, window, strict=True)]
        )
        windows = Windows(torch.minimum(group_start, last_corner), window)
        near = windows.inside(
            group_start + (group_start > 0), torch.minimum(end[box_index], on_image)
        )
        no_probs = near.new_zeros(0, dtype=torch.float32)
        plan.append(WindowMasks(no_probs, candidate_index, owner, box_index, windows, near))
    return plan


def _box_windows(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The cells of stride 4 in and around boxes.

    Args:
        boxes: Float (N, 4), pixels.
        size: (height, width) of the map in cells, multiples of `WINDOW_MULTIPLE`.

    Returns:
        First cells (row, column) and those after the last, int64 (N, 2), multiples of `WINDOW_MULTIPLE`; at least one
        multiple high and wide.
    """
    limit = tensor_on(boxes.device, size)
    step = MASK_STRIDE * WINDOW_MULTIPLE
    first = ((boxes[:, :2] - AROUND_PX) / step).floor().long().flip(1) * WINDOW_MULTIPLE
    last = ((boxes[:, 2:] + 1 + AROUND_PX) / step).ceil().long().flip(1) * WINDOW_MULTIPLE
    first = torch.minimum(first.clamp(min=0), limit - WINDOW_MULTIPLE)
    return first, torch.maximum(torch.minimum(last, limit), first + WINDOW_MULTIPLE)


def _like_sized(
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
