"""Pure functions on boxes, float x1 y1 x2 y2 in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.ops.transfer import tensor_on


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4) [px²]; 0 where a side is negative."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes: Float (..., N, 4), pixels.
        others: Float (..., M, 4), pixels; leading dimensions broadcast.

    Returns:
        Float (..., N, M) in [0, 1]; 0 for two boxes without area.

    >>> box_iou(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4]]))
    tensor([[1.0000, 0.3333]])
    """
    overlap = box_intersection(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - overlap
    return overlap / union.clamp(min=torch.finfo(overlap.dtype).tiny)


def box_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Common area [px²] of every pair of boxes (..., N, 4) and (..., M, 4): (..., N, M)."""
    # Coordinates come first: operations on whole rows of memory take a fraction of the time.
    a = boxes.mT[..., None].contiguous()  # (..., 4, N, 1)
    b = others.mT[..., None, :].contiguous()  # (..., 4, 1, M)
    low = torch.maximum(a[..., :2, :, :], b[..., :2, :, :])
    high = torch.minimum(a[..., 2:, :, :], b[..., 2:, :, :])
    sides = (high - low).clamp(min=0)
    return sides[..., 0, :, :] * sides[..., 1, :, :]


def decode_boxes(locations: Tensor, distances: Tensor, strides: Tensor) -> Tensor:
    """Boxes that the detection head means.

    Args:
        locations: Float (L, 2), x y in pixels.
        distances: Float (..., L, 4): left, top, right, bottom, in units of the stride.
        strides: Float (L,), pixels.

    Returns:
        Float (..., L, 4), pixels; not clipped to the image.

    Source: FCOS (arXiv 1904.01355); `docs/method.md#detection-head`.
    """
    distances = distances * strides[:, None]
    return torch.cat([locations - distances[..., :2], locations + distances[..., 2:]], dim=-1)


def scale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) of an image of `size`, in pixels of the same image resized to `new_size` (height, width)."""
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * tensor_on(boxes.device, [x, y, x, y], dtype=boxes.dtype)
