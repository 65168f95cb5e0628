"""What pseudo masks say about predicted masks, trusted as far as their quality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.ops.masks import dice_loss
from boxseg.ops.neighbours import neighbour_view
from boxseg.structures import check_same_shape


def pseudo_mask_loss(mask_probs: Tensor, masks: Tensor, quality: Tensor, *, fix_reduction: bool = True) -> Tensor:
    """Dice loss against the pseudo masks, weighted with their quality.

    Args:
        mask_probs: Float (n, h, w) in [0, 1]; one predicted mask per proposal.
        masks: Bool (n, h, w), pseudo mask of each proposal's box.
        quality: Float (n,) in [0, 1].
        fix_reduction: Divide by the number of proposals with positive quality; otherwise by the sum of qualities.

    Returns:
        Float scalar; 0 without any pseudo mask.

    Raises:
        ShapeError: masks differ in shape.

    Source: BoxTeacher (arXiv 2210.05174); `method.md` section (d).
    """
    check_same_shape(mask_probs=mask_probs, masks=masks)
    dice = dice_loss(mask_probs, masks)
    return weighted_mean(dice, quality, fix_reduction=fix_reduction)


def affinity_loss(term: Tensor, together: Tensor, quality: Tensor, *, fix_reduction: bool = True) -> Tensor:
    """Mean pairwise term over the neighbours that the pseudo mask holds together, weighted with its quality.

    Args:
        term: Float (n, S, h, w) from `pairwise_term`.
        together: Bool (n, S, h, w), pairs to pull together.
        quality: Float (n,) in [0, 1].
        fix_reduction: As in `pseudo_mask_loss`.

    Returns:
        Float scalar; 0 without any pseudo mask.

    Raises:
        ShapeError: the maps differ in shape.

    Source: BoxTeacher (arXiv 2210.05174); `method.md` section (d).
    """
    check_same_shape(term=term, together=together)
    per_proposal = (term * together).sum(dim=(1, 2, 3)) / together.sum(dim=(1, 2, 3)).clamp(min=1)
    return weighted_mean(per_proposal, quality, fix_reduction=fix_reduction)


def mask_affinity(mask: Tensor, valid: Tensor, *, size: int = 3, dilation: int = 2) -> Tensor:
    """Likelihood that a pseudo mask gives a cell and its neighbour the same label.

    The mask is softened first: each cell becomes the mean of itself and of its 3x3 mean.

    Args:
        mask: Bool (N, h, w), or float that is cut at 0.5.
        valid: Bool (N, h, w) or a shape that broadcasts to it; only the neighbour's validity counts.
        size: Side of the neighbourhood, odd; S = size² - 1 neighbours.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (N, S, h, w) in [0, 1]; 0 for a neighbour that is invalid or off the map.

    Source: BoxTeacher (arXiv 2210.05174); `method.md` sections (d) and (m.7).
    """
    binary = (mask if mask.dtype == torch.bool else mask > 0.5).float()
    soft = (F.avg_pool2d(binary[:, None], 3, stride=1, padding=1)[:, 0] + binary) / 2
    neighbours = neighbour_view(soft, size, dilation)
    agree = soft[:, None] * neighbours + (1 - soft[:, None]) * (1 - neighbours)
    return agree * neighbour_view(valid.expand_as(binary).float(), size, dilation)


def weighted_mean(values: Tensor, quality: Tensor, *, fix_reduction: bool) -> Tensor:
    """Sum of quality x value over the count of positive qualities, or over their sum: (n,), (n,) -> scalar."""
    weight = (quality > 0).sum().clamp(min=1) if fix_reduction else quality.sum() + 1e-6
    return (values * quality).sum() / weight
