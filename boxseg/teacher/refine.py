"""Colour refinement: a fused mask is corrected by what its own colours say about each cell."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from boxseg.ops.masks import box_masks
from boxseg.structures import MASK_STRIDE

BINS = 8
"""Steps of each CIELAB axis in a colour histogram."""
PASSES = 2
"""How often histograms and map are computed in turn."""
TAILS = 0.01
"""Share of the cells at either end of a CIELAB axis that do not stretch its bins."""
LEAST_RANGE = 12.0
"""Least range that the bins of an axis share [CIELAB units]: within less, differences are noise."""
RING = 0.25
"""Width of the ring around a box that is surely background, as a share of the box's sides."""
FLOOR = 1e-3
"""Added to both histograms, so that a colour that was seen once or never says little."""


def refine_by_color(soft: Tensor, lab: Tensor, boxes: Tensor, *, weight: float) -> Tensor:
    """Fused maps, corrected by the colours inside and around each box.

    Two colour histograms are made for every box: one of the object, weighted with the map, and one of the rest of the
    box and a ring around it. The logarithm of their ratio at a cell's colour is added to the cell's logit. Colours of a
    hole or a gap between legs occur around the box too, so they turn to background; a part that the network missed but
    that has the object's colour comes back.

    Args:
        soft: Float (N, h, w) in [0, 1], fused maps on the stride-4 grid.
        lab: Float (3, h, w), CIELAB of the weak image on the same grid.
        boxes: Float (N, 4), pixels of the training image.
        weight: Factor of the log ratio, >= 0; 0 changes nothing.

    Returns:
        Float (N, h, w) in [0, 1].

    Source: the colour models of GrabCut (Rother et al. 2004) on soft masks; not part of BoxSeg.
    """
    if weight == 0 or len(boxes) == 0:
        return soft
    height, width = (MASK_STRIDE * side for side in soft.shape[-2:])
    margin = RING * (boxes[:, 2:] - boxes[:, :2])
    grown = torch.cat([(boxes[:, :2] - margin).clamp(min=0), boxes[:, 2:] + margin], dim=1)
    inside = box_masks(boxes, height, width, stride=MASK_STRIDE)
    box_and_ring = box_masks(grown, height, width, stride=MASK_STRIDE)
    inside, box_and_ring = inside.flatten(1).to(soft), box_and_ring.flatten(1).to(soft)

    cell_bins = _color_bins(lab).flatten().expand(len(boxes), -1)  # (N, h * w)
    probs = soft.flatten(1).clamp(0.01, 0.99)  # so that no logit is beyond the reach of colours
    prior = probs.logit()
    # Each pass makes the histograms from a better mask, as GrabCut does; the network's own opinion stays the start.
    for _ in range(PASSES):
        object_share = probs * inside
        of_object = _histogram(cell_bins, object_share)
        # The map divides each cell of the box between the two histograms; the ring is all rest.
        of_rest = _histogram(cell_bins, box_and_ring - object_share)
        ratio = weight * ((of_object + FLOOR) / (of_rest + FLOOR)).log()
        probs = ratio.gather(1, cell_bins).add_(prior).sigmoid_()
    return probs.view_as(soft)


def refined_quality(soft: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """How far refined masks can be trusted: where colours and network agree, a map is near 0 or 1 everywhere.

    The root of the mean probability inside the mask times the mean of |2p - 1| over the box. Agreement of candidates,
    which the method scores, says little once colours have moved the mask.

    Args:
        soft: Float (N, h, w) in [0, 1], refined maps.
        mask: Bool (N, h, w), inside the box.
        inside: Bool (N, h, w), cells of the box.

    Returns:
        Float (N,) in [0, 1]; 0 where the mask is empty.
    """
    mean_inside_mask = (soft * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    certainty = (2 * soft - 1).abs()  # 0 at a half, 1 at 0 and 1
    mean_certainty = (certainty * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    return (mean_inside_mask * mean_certainty).sqrt()


def _color_bins(lab: Tensor) -> Tensor:
    """Histogram bin, int64 (h, w), of each colour (3, h, w).

    The bins of each axis lie evenly between the least and the greatest value that the image has, so dark, grey and
    faint images have as many as others. Cells that are purely black, as padding is, do not count.
    """
    is_seen = (lab != 0).any(dim=0)
    values = lab.where(is_seen, torch.nan).flatten(1)
    low, high = (values.nanquantile(share, dim=1).nan_to_num() for share in (TAILS, 1 - TAILS))
    missing = (LEAST_RANGE - (high - low)).clamp(min=0)
    low, reach = low - missing / 2, high - low + missing
    steps = (lab - low[:, None, None]) / reach[:, None, None] * BINS
    lightness, green_red, blue_yellow = steps.long().clamp(0, BINS - 1)
    return (lightness * BINS + green_red) * BINS + blue_yellow


def _histogram(cell_bins: Tensor, weights: Tensor) -> Tensor:
    """Smoothed shares (N, BINS³) of the colours of (N, h * w) cells with weights (N, h * w)."""
    counts = weights.new_zeros(len(weights), BINS**3).scatter_add_(1, cell_bins, weights)
    along_two = counts.view(-1, BINS, BINS**2) @ _near_pairs(counts.device)
    smooth = (_near(counts.device) @ along_two).flatten(1)
    return smooth / smooth.sum(dim=1, keepdim=True).clamp(min=1e-6)


@functools.cache
def _near(device: torch.device) -> Tensor:
    """Mean of a step and its two neighbours, 0 beyond the ends, as a matrix (BINS, BINS)."""
    step = torch.arange(BINS, device=device)
    return ((step[:, None] - step).abs() <= 1) / 3


@functools.cache
def _near_pairs(device: torch.device) -> Tensor:
    """`_near` along two axes at once, (BINS², BINS²); such products are many times faster than pooling in 3D."""
    return torch.kron(_near(device), _near(device))
