"""What pseudo masks say about predicted masks, trusted as far as their quality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.losses.pairs import Pairs, find_pairs
from boxseg.ops.masks import dice_loss
from boxseg.structures import check_same_shape


def pseudo_mask_loss(mask_probs: Tensor, masks: Tensor, quality: Tensor) -> Tensor:
    """Dice loss against the pseudo masks, weighted with their quality.

    Args:
        mask_probs: Float (n, h, w) in [0, 1]; one predicted mask per proposal.
        masks: Bool (n, h, w), pseudo mask of each proposal's box.
        quality: Float (n,) in [0, 1].

    Returns:
        Float scalar; 0 without any pseudo mask.

    Raises:
        ShapeError: masks differ in shape.

    Source: BoxTeacher (arXiv 2210.05174); `docs/method.md#pseudo-mask-losses`.
    """
    check_same_shape(mask_probs=mask_probs, masks=masks)
    dice = dice_loss(mask_probs, masks)
    return _weighted_mean(dice, quality)


def affinity_loss(costs: Tensor, together: Tensor, pairs: Pairs, quality: Tensor) -> Tensor:
    """Mean pair cost over the neighbours that the pseudo mask holds together, weighted with its quality.

    Args:
        costs: Float (M, S) from `pair_costs`.
        together: Bool (M, S), pairs to pull together.
        pairs: Whose they are.
        quality: Float (n,) in [0, 1].

    Returns:
        Float scalar; 0 without any pseudo mask.

    Raises:
        ShapeError: costs and pairs differ in shape.

    Source: BoxTeacher (arXiv 2210.05174); `docs/method.md#pseudo-mask-losses`.
    """
    check_same_shape(costs=costs, together=together)
    total = pairs.sum_per_proposal(costs * together, len(quality))
    count = pairs.sum_per_proposal(together.to(costs.dtype), len(quality))
    return _weighted_mean(total / count.clamp(min=1), quality)


def mask_affinity(mask: Tensor, valid: Tensor, *, size: int = 3, dilation: int = 2) -> Tensor:
    """Likelihood that a pseudo mask gives a cell and its neighbour the same label, for all pairs of the map.

    Args:
        mask: Bool (N, h, w), or float that is cut at 0.5.
        valid: Bool (N, h, w) or a shape that broadcasts to it; only the neighbour's validity counts.
        size: Side of the neighbourhood, odd; S = size² - 1 neighbours.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (N, S, h, w) in [0, 1]; 0 for a neighbour that is invalid or off the map.

    Source: BoxTeacher (arXiv 2210.05174); `docs/method.md#pseudo-mask-losses`.
    """
    (height, width), row = mask.shape[-2:], torch.arange(len(mask), device=mask.device)
    pairs = find_pairs(torch.ones_like(mask, dtype=torch.bool), size=size, dilation=dilation)
    affinity = pair_affinity(mask, valid.expand_as(mask), pairs, mask_row=row, valid_row=row)
    return affinity.view(len(mask), height, width, affinity.shape[1]).permute(0, 3, 1, 2)


def pair_affinity(
    mask: Tensor, valid: Tensor, pairs: Pairs, *, mask_row: Tensor, valid_row: Tensor
) -> Tensor:
    """Likelihood that a pseudo mask gives the two cells of a pair the same label.

    The mask is softened first: each cell becomes the mean of itself and of its 3x3 mean.

    Args:
        mask: Bool (N, h, w), or float that is cut at 0.5.
        valid: Bool (B, h, w); only the second cell's validity counts.
        pairs: Of n proposals.
        mask_row: int64 (n,), the mask of each proposal.
        valid_row: int64 (n,), the same for `valid`.

    Returns:
        Float (M, S) in [0, 1]; 0 where there is no valid second cell.
    """
    binary = (mask if mask.dtype == torch.bool else mask > 0.5).float()
    # Cells beyond the border count as 0 in the mean of nine.
    soft = (F.avg_pool2d(binary[:, None], 3, stride=1, padding=1)[:, 0] + binary) / 2
    here, there = pairs.take(soft, mask_row)
    same_label = here * there + (1 - here) * (1 - there)
    _, valid_there = pairs.take(valid, valid_row)
    return same_label * (valid_there & pairs.on_map)


def _weighted_mean(values: Tensor, quality: Tensor) -> Tensor:
    """Sum of quality x value over the number of positive qualities: (n,), (n,) -> scalar."""
    return (values * quality).sum() / (quality > 0).sum().clamp(min=1)
