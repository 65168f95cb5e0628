"""Pure functions on mask maps: aligned resizing, dice, boxes to masks and back."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_area
from boxseg.structures import MASK_STRIDE, check_same_shape

REACH = 2
"""Support of resizing, in cells: a pixel that depends on a cell depends on no other cell further from it than this."""


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Enlarged maps in which output index `factor * i + factor // 2` equals input `i` exactly.

    Args:
        maps: Float (..., h, w) with at least two dimensions.
        factor: Enlargement of both axes, at least 1.

    Returns:
        Float (..., factor * h, factor * w).

    Source: CondInst (arXiv 2003.05664); `docs/method.md#mask-head`.

    >>> aligned_bilinear(torch.tensor([[0.0, 2.0]]), 2)
    tensor([[0., 0., 1., 2.],
            [0., 0., 1., 2.]])
    """
    if factor == 1:
        return maps
    return _enlarge_axis(_enlarge_axis(maps, factor, maps.dim() - 1), factor, maps.dim() - 2)


def _enlarge_axis(maps: Tensor, factor: int, axis: int) -> Tensor:
    """One axis of `aligned_bilinear`, as `factor` interleaved maps: a third of the time that `interpolate` takes.

    Map k holds the values k - `factor` // 2 pixels after the cell centres. The ends are continued with their own value.
    """
    length, middle = maps.shape[axis], factor // 2
    before = torch.cat([maps.narrow(axis, 0, 1), maps.narrow(axis, 0, length - 1)], dim=axis)
    after = torch.cat(
        [maps.narrow(axis, 1, length - 1), maps.narrow(axis, length - 1, 1)], dim=axis
    )
    left = [
        torch.lerp(before, maps, (factor - middle + place) / factor) for place in range(middle)
    ]
    right = [torch.lerp(maps, after, place / factor) for place in range(1, factor - middle)]
    return torch.stack([*left, maps, *right], dim=axis + 1).flatten(axis, axis + 1)


def resize_masks(
    mask_probs: Tensor, *, size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Probabilities of the padded training grid, brought to the size of the image file.

    Args:
        mask_probs: Float (n, H/4, W/4) in [0, 1].
        size: (h, w) of the image before padding, pixels.
        original_size: (height, width) of the image file, pixels.

    Returns:
        Float (n, height, width) in [0, 1].

    Source: `docs/method.md#from-predictions-to-detections`.
    """
    rows, columns = _axis_weights(mask_probs, size, original_size)
    return _sent(rows, mask_probs) @ mask_probs @ _sent(columns, mask_probs).T


def resize_mask_part(
    mask_probs: Tensor,
    cells: tuple[slice, slice],
    *,
    size: tuple[int, int],
    original_size: tuple[int, int],
) -> tuple[Tensor, tuple[slice, slice]]:
    """The pixels of one resized map that depend on some cells, computed from these cells and their neighbours.

    Args:
        mask_probs: Float (H/4, W/4) in [0, 1].
        cells: Rows and columns of cells, not empty.
        size: As in `resize_masks`.
        original_size: As in `resize_masks`.

    Returns:
        Float (h', w'), and which rows and columns of the result of `resize_masks` these are.
    """
    weights, spans, pixels = [], [], []
    for axis, chosen in zip(_axis_weights(mask_probs, size, original_size), cells, strict=True):
        touched = axis[:, chosen].any(dim=1)  # on the host: no wait for the device
        first = int(touched.int().argmax())
        last = first + int(touched.sum())
        span = slice(max(chosen.start - REACH, 0), chosen.stop + REACH)
        weights.append(_sent(axis[first:last, span], mask_probs))
        spans.append(span)
        pixels.append(slice(first, last))
    return weights[0] @ mask_probs[spans[0], spans[1]] @ weights[1].T, (pixels[0], pixels[1])


def _axis_weights(
    mask_probs: Tensor, size: tuple[int, int], original_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Resizing as one matrix for each axis, (height, H/4) and (width, W/4), on the host.

    Bilinear resizing is separable.
    """
    rows = _resize_matrix(mask_probs.shape[-2], size[0], original_size[0])
    columns = _resize_matrix(mask_probs.shape[-1], size[1], original_size[1])
    return rows, columns


def _sent(weights: Tensor, mask_probs: Tensor) -> Tensor:
    """The weights beside the maps, in their dtype."""
    return weights.to(mask_probs, non_blocking=True)


@functools.lru_cache(maxsize=256)
def _resize_matrix(cells: int, side: int, original_side: int) -> Tensor:
    """What each cell of a line (cells,) gives to each pixel of the file: float (original_side, cells)."""
    # Resizing is linear, so the lines that are 1 at one cell and 0 elsewhere give its columns.
    one_cell = torch.eye(cells)[:, None]
    without_padding = aligned_bilinear(one_cell, MASK_STRIDE)[:, :1, :side]  # (cells, 1, side)
    columns = F.interpolate(
        without_padding, size=original_side, mode="linear", align_corners=False
    )
    return columns[:, 0].T.contiguous()


def resize_bool(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool masks (n, h, w) at another (height, width), nearest pixel; pixel centres correspond."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    rows = _nearest(masks.shape[-2], size[0], masks.device)
    columns = _nearest(masks.shape[-1], size[1], masks.device)
    return masks[:, rows[:, None], columns]


def _nearest(length: int, new_length: int, device: torch.device) -> Tensor:
    """Index, int64 (new_length,), of the pixel of a line whose middle is nearest to each new pixel's middle."""
    middle = torch.arange(new_length, device=device) + 0.5
    return (middle * (length / new_length)).long().clamp(max=length - 1)


def dice_loss(probs: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """One minus the soft overlap of each pair of maps.

    Args:
        probs: Float (n, ...) in [0, 1].
        target: Float or bool of the same shape.
        eps: Added to the denominator only, so two empty maps have a loss of 1.

    Returns:
        Float (n,) in [0, 1].

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: V-Net (arXiv 1606.04797), squared denominator; `docs/method.md#projection`.

    >>> dice_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).round(decimals=4)
    tensor([0., 1.])
    """
    check_same_shape(probs=probs, target=target)
    probs = probs.flatten(1)
    target = target.to(probs.dtype).flatten(1)
    overlap = 2 * (probs * target).sum(dim=1)
    return 1 - overlap / (probs.square().sum(dim=1) + target.square().sum(dim=1) + eps)


def box_masks(boxes: Tensor, height: int, width: int, *, stride: int = 1) -> Tensor:
    """Masks that are True inside the boxes.

    A box covers rows int(y1) … int(y2 + 1) - 1, columns alike; cell k of a coarser grid is the pixel
    k * stride + stride // 2.

    Args:
        boxes: Float (n, 4), pixels.
        height: Rows of the padded image, pixels.
        width: Columns of the padded image, pixels.
        stride: Pixels per cell of the result, 1 or 4.

    Returns:
        Bool (n, height / stride, width / stride).

    Raises:
        ShapeError: `boxes` is not (n, 4).

    Source: BoxInst (arXiv 2012.02310); `docs/method.md#projection`.

    >>> box_masks(torch.tensor([[1.0, 0.0, 2.0, 0.5]]), height=2, width=4).int()
    tensor([[[0, 1, 1, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"boxes have shape {tuple(boxes.shape)}; (n, 4) is needed")
    x1, y1 = boxes[:, 0].trunc(), boxes[:, 1].trunc()
    x2, y2 = (boxes[:, 2] + 1).trunc(), (boxes[:, 3] + 1).trunc()
    y = torch.arange(stride // 2, height, stride, device=boxes.device)
    x = torch.arange(stride // 2, width, stride, device=boxes.device)
    rows = (y >= y1[:, None]) & (y < y2[:, None])  # (n, height / stride)
    columns = (x >= x1[:, None]) & (x < x2[:, None])  # (n, width / stride)
    return rows[:, :, None] & columns[:, None, :]


def pixels_inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool (N, h, w): pixels whose middle lies in the box, one column and row at least; none for a box without area."""
    sides = []
    for axis, length in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        middle = torch.arange(length, device=boxes.device) + 0.5
        nearest = middle == ((low + high) / 2).clamp(max=length - 0.5).floor() + 0.5
        sides.append(((middle >= low) & (middle <= high)) | nearest)
    return sides[0][:, :, None] & sides[1][:, None, :] & (box_area(boxes) > 0)[:, None, None]


def tight_boxes(masks: Tensor) -> Tensor:
    """Smallest boxes around the True cells of masks.

    Args:
        masks: Bool (n, h, w).

    Returns:
        Float (n, 4), x1 y1 x2 y2 in cells, x2 and y2 being the last cell + 1; zeros for an empty mask.

    >>> tight_boxes(torch.tensor([[[False, True, True], [False, False, False]]]))
    tensor([[1., 0., 3., 1.]])
    """
    return _bound(masks.any(dim=2), masks.any(dim=1))


def visible_boxes(boxes: Tensor, free: Tensor) -> Tensor:
    """`tight_boxes` of the free pixels inside boxes, without a map for each box.

    Args:
        boxes: Float (n, 4), pixels; covers what `box_masks` says.
        free: Bool (H, W).

    Returns:
        Float (n, 4), as from `tight_boxes`.
    """
    x1, y1 = boxes[:, :2].trunc().long().unbind(dim=1)
    x2, y2 = (boxes[:, 2:] + 1).trunc().long().unbind(dim=1)
    # A row belongs to the answer if it lies in the box and has a free pixel between the box's left and right side.
    rows = _any_between(free, x1, x2) & _between(free.shape[0], y1, y2)
    columns = _any_between(free.T, y1, y2) & _between(free.shape[1], x1, x2)
    return _bound(rows, columns)


def _any_between(free: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Bool (n, H): whether the rows of (H, W) have a True from column `start` (n,) to before `end` (n,)."""
    counts = F.pad(free.cumsum(dim=1, dtype=torch.int32), (1, 0)).T  # (W + 1, H)
    limit = free.shape[1]
    return counts[end.clamp(0, limit)] > counts[start.clamp(0, limit)]


def _between(length: int, start: Tensor, end: Tensor) -> Tensor:
    """Bool (n, length): places from `start` (n,) to before `end` (n,)."""
    place = torch.arange(length, device=start.device)
    return (place >= start[:, None]) & (place < end[:, None])


def _bound(rows: Tensor, columns: Tensor) -> Tensor:
    """Boxes (n, 4) around occupied rows, bool (n, h), and columns, bool (n, w); zeros where there is none."""
    y1, y2 = _extent(rows)
    x1, x2 = _extent(columns)
    return torch.stack([x1, y1, x2, y2], dim=1).float() * rows.any(dim=1)[:, None]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First True index and last True index + 1 of each row of bool (n, k); k and 0 where there is none."""
    index = torch.arange(occupied.shape[1], device=occupied.device)
    first = torch.where(occupied, index, occupied.shape[1]).amin(dim=1)
    last = torch.where(occupied, index + 1, 0).amax(dim=1)
    return first, last
