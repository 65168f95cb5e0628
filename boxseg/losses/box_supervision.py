"""What a box alone says about a mask: its shadows on the axes, and that like-coloured neighbours belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.losses.pairs import find_pairs, pair_costs
from boxseg.ops.masks import dice_loss
from boxseg.structures import check_same_shape


def projection_loss(mask_probs: Tensor, box_masks: Tensor, *, from_inside: bool = False) -> Tensor:
    """Disagreement between the shadows that masks and boxes cast on the two axes.

    Args:
        mask_probs: Float (n, H/4, W/4) in [0, 1]; one predicted mask per proposal.
        box_masks: Bool (n, H/4, W/4); True inside the proposal's ground-truth box.
        from_inside: Rows and columns of the box take their shadow from within the box; otherwise a stripe elsewhere in
            the image, which covers the rows of the box, casts the right shadow too.

    Returns:
        Float (n,) in [0, 2]; 0 where both shadows agree, 2 for an empty mask. Not averaged.

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: BoxInst (arXiv 2012.02310), projection term; `docs/method.md#projection`.

    >>> box = torch.ones(1, 2, 2, dtype=torch.bool)
    >>> diagonal = torch.eye(2)[None]
    >>> projection_loss(diagonal, box).round(decimals=4)  # touches all four sides
    tensor([0.])
    """
    check_same_shape(mask_probs=mask_probs, box_masks=box_masks)
    box_columns, box_rows = box_masks.amax(dim=-2), box_masks.amax(dim=-1)  # (n, W/4), (n, H/4)
    for_columns = for_rows = mask_probs
    if from_inside:
        # Columns of the box see the rows of the box alone; other columns see all, so that masks outside still cost.
        for_columns = mask_probs * (box_rows[:, :, None] | ~box_columns[:, None, :])
        for_rows = mask_probs * (box_columns[:, None, :] | ~box_rows[:, :, None])
    columns = dice_loss(_shadow(for_columns, -2), box_columns.to(mask_probs.dtype))
    rows = dice_loss(_shadow(for_rows, -1), box_rows.to(mask_probs.dtype))
    return columns + rows


def _shadow(maps: Tensor, axis: int) -> Tensor:
    """Largest value along an axis; of equal ones the first gets the gradient, which `amax` would divide among them."""
    return maps.max(dim=axis).values


def pairwise_term(mask_logits: Tensor, *, size: int = 3, dilation: int = 2) -> Tensor:
    """Cost of giving two neighbours different labels: -log P(both object or both background).

    Maps of all pairs, wherever they begin; losses compute `pair_costs` of the pairs that they need.

    Args:
        mask_logits: Float (n, h, w).
        size: Side of the neighbourhood, odd; S = size² - 1 neighbours.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (n, S, h, w) >= 0, in the order of `neighbour_offsets`; exactly 0 for a neighbour off the map.

    Source: BoxInst (arXiv 2012.02310), pairwise term; `docs/method.md#pairwise-colour-affinity`.
    """
    height, width = mask_logits.shape[-2:]
    everywhere = torch.ones_like(mask_logits, dtype=torch.bool)
    pairs = find_pairs(everywhere, size=size, dilation=dilation)
    costs = pair_costs(mask_logits, pairs)  # (n * h * w, S)
    return costs.view(len(mask_logits), height, width, costs.shape[1]).permute(0, 3, 1, 2)


def pairwise_loss(costs: Tensor, alike: Tensor) -> Tensor:
    """Mean cost over the pairs of like colour.

    Args:
        costs: Float (M, S) from `pair_costs`, pairs whose first cell is inside the box.
        alike: Bool (M, S), pairs that count.

    Returns:
        Float scalar: one mean over the pairs of all proposals; 0 where no pair counts.

    Source: BoxInst (arXiv 2012.02310); `docs/method.md#pairwise-colour-affinity`.
    """
    check_same_shape(costs=costs, alike=alike)
    return (costs * alike).sum() / alike.sum().clamp(min=1)
