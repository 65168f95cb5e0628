"""Values of candidates gathered by the box that each serves."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_per_box(values: Tensor, box_index: Tensor, num_boxes: int) -> Tensor:
    """Sum of the values (C, …) of each box: (N, …)."""
    return values.new_zeros(num_boxes, *values.shape[1:]).index_add_(0, box_index, values)


def count_per_box(box_index: Tensor, num_boxes: int) -> Tensor:
    """Number of candidates of each box, int64 (N,)."""
    return sum_per_box(torch.ones_like(box_index), box_index, num_boxes)


def mean_per_box(values: Tensor, box_index: Tensor, num_boxes: int) -> Tensor:
    """Mean of the values (C,) of each box: (N,), 0 for a box without any."""
    total = sum_per_box(values, box_index, num_boxes)
    return total / count_per_box(box_index, num_boxes).clamp(min=1)
