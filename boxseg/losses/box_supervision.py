"""What a box alone says about a mask: its shadows on the axes, and that like-coloured neighbours belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.ops.masks import dice_loss
from boxseg.ops.neighbours import neighbour_offsets
from boxseg.structures import check_same_shape


def projection_loss(mask_probs: Tensor, box_masks: Tensor) -> Tensor:
    """Disagreement between the shadows that masks and boxes cast on the two axes.

    Args:
        mask_probs: Float (n, H/4, W/4) in [0, 1]; one predicted mask per proposal.
        box_masks: Bool (n, H/4, W/4); True inside the proposal's ground-truth box.

    Returns:
        Float (n,) in [0, 2]; 0 where both shadows agree, 2 for an empty mask. Not averaged.

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: BoxInst (arXiv 2012.02310), projection term; `method.md` section (c).
    """
    check_same_shape(mask_probs=mask_probs, box_masks=box_masks)
    target = box_masks.to(mask_probs.dtype)
    columns = dice_loss(mask_probs.amax(dim=-2), target.amax(dim=-2))
    rows = dice_loss(mask_probs.amax(dim=-1), target.amax(dim=-1))
    return columns + rows


def average_projection_loss(mask_probs: Tensor, masks: Tensor) -> Tensor:
    """Disagreement of masks in their mean along each axis; sees the inside that the projection ignores.

    Args:
        mask_probs: Float (n, H/4, W/4) in [0, 1].
        masks: Bool or float (n, H/4, W/4) in [0, 1]; the pseudo masks.

    Returns:
        Float (n,) in [0, 2]. Not averaged.

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: BoxTeacher's code; `method.md` section (d).
    """
    check_same_shape(mask_probs=mask_probs, masks=masks)
    target = masks.to(mask_probs.dtype)
    columns = dice_loss(mask_probs.mean(dim=-2), target.mean(dim=-2))
    rows = dice_loss(mask_probs.mean(dim=-1), target.mean(dim=-1))
    return columns + rows


def pairwise_term(mask_logits: Tensor, *, size: int = 3, dilation: int = 2) -> Tensor:
    """Cost of giving two neighbours different labels: -log P(both object or both background).

    With p = sigmoid(z) this is softplus(z_i) + softplus(z_j) - softplus(z_i + z_j), which neither overflows nor
    needs probabilities. Each pair is computed once and serves both of its ends.

    Args:
        mask_logits: Float (n, h, w).
        size: Side of the neighbourhood, odd; S = size² - 1 neighbours.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (n, S, h, w) >= 0, in the order of `neighbour_offsets`; exactly 0 for a neighbour off the map.

    Source: BoxInst (arXiv 2012.02310), pairwise term; `method.md` sections (c) and (m.1).
    """
    offsets = [(dilation * row, dilation * column) for row, column in neighbour_offsets(size)]
    if not offsets:
        return mask_logits[:, None][:, :0]
    cost, reach = F.softplus(mask_logits), dilation * (size // 2)
    padded_logits, padded_cost = F.pad(mask_logits, (reach,) * 4), F.pad(cost, (reach,) * 4)
    terms = []
    for row, column in offsets[: len(offsets) // 2]:
        logits = _window(padded_logits, row, column, reach)
        terms.append(cost + _window(padded_cost, row, column, reach) - F.softplus(mask_logits + logits))
    # The term of the opposite offset at a cell is the term of the offset at that neighbour.
    for (row, column), term in zip(offsets[len(offsets) // 2 :], reversed(terms[:]), strict=True):
        terms.append(_window(F.pad(term, (reach,) * 4), row, column, reach))
    return torch.stack(terms, dim=1)


def _window(padded: Tensor, row: int, column: int, reach: int) -> Tensor:
    """Maps that were padded by `reach` on all sides, at their unpadded size and moved by (row, column) cells."""
    height, width = padded.shape[-2] - 2 * reach, padded.shape[-1] - 2 * reach
    return padded[..., reach + row : reach + row + height, reach + column : reach + column + width]


def pairwise_loss(
    term: Tensor, similarity: Tensor, image_index: Tensor, box_masks: Tensor, *, color_thr: float = 0.3
) -> Tensor:
    """Mean pairwise term over pairs of like colour whose first cell is inside the box.

    Args:
        term: Float (n, S, h, w) from `pairwise_term`.
        similarity: Float (B, S, h, w) from `color_similarity`.
        image_index: int64 (n,), image of each proposal.
        box_masks: Bool (n, h, w).
        color_thr: Pairs at least this similar count, in [0, 1].

    Returns:
        Float scalar: one mean over the pairs of all proposals; 0 where no pair counts.

    Raises:
        ShapeError: the maps differ in size.

    Source: BoxInst (arXiv 2012.02310); `method.md` section (c).
    """
    if term.shape[-2:] != similarity.shape[-2:] or term.shape[-2:] != box_masks.shape[-2:]:
        raise ShapeError(
            f"maps of term {tuple(term.shape)}, similarity {tuple(similarity.shape)} and box_masks "
            f"{tuple(box_masks.shape)} differ in size; all three need one (h, w)"
        )
    counts = (similarity >= color_thr)[image_index] & box_masks[:, None]
    return (term * counts).sum() / counts.sum().clamp(min=1)
