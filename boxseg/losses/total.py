"""All losses of a step: the same names for every batch, weights and warm-ups inside, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxseg.config.method import BoxInstConfig, LossConfig
from boxseg.losses.box_supervision import pairwise_loss, projection_loss
from boxseg.losses.pairs import Pairs, find_pairs, pair_costs
from boxseg.losses.pseudo_mask import affinity_loss, pair_affinity, pseudo_mask_loss
from boxseg.ops.masks import box_masks
from boxseg.ops.neighbours import color_similarity, remove_bottom_rows, sample_cells
from boxseg.ops.transfer import tensor_on
from boxseg.structures import (
    MASK_STRIDE,
    Batch,
    MaskNetwork,
    MeanOverRanks,
    Proposals,
    PseudoMasks,
)


@dataclass(frozen=True)
class Losses:
    """Named, weighted losses of one batch and their sum."""

    total: Tensor
    """Float scalar; connected to every learning parameter of the network."""
    terms: dict[str, Tensor]
    """Float scalars, weights and warm-ups included."""


def compute_losses(
    network: MaskNetwork,
    predictions: Any,
    batch: Batch,
    pseudo_masks: list[PseudoMasks] | None,
    *,
    step: int,
    boxinst: BoxInstConfig,
    loss: LossConfig,
    mean_over_ranks: MeanOverRanks = lambda value: value,
) -> Losses:
    """All losses of one step.

    Args:
        network: The student; gives its own detection losses, proposals and their mask logits.
        predictions: The student's output for the strong view.
        batch: The batch after copy-paste; its weak view gives the colours.
        pseudo_masks: B times the teacher's opinion; None without a teacher.
        step: Steps done so far, from 0.
        boxinst: Weights and thresholds of the box losses; `warmup` in steps.
        loss: The same for the pseudo-mask losses.
        mean_over_ranks: Mean of a scalar tensor over all processes.

    Returns:
        The network's own terms, `projection`, `pairwise`, `mask` and `affinity`. Terms without boxes, proposals or
        pseudo masks are 0.

    Source: `docs/method.md#total-loss`.
    """
    terms, proposals = network.detection_losses(
        predictions, batch.boxes, batch.labels, mean_over_ranks=mean_over_ranks
    )
    mask_logits = network.mask_logits(predictions, proposals.image_index, proposals.handle).float()
    # float32: bf16 has two to three digits, too few for sums over whole maps and for logarithms.
    with torch.autocast(mask_logits.device.type, enabled=False):
        masks = _proposed_masks(mask_logits, batch, proposals, boxinst)
        terms = terms | _box_terms(masks, batch, boxinst, step)
        if pseudo_masks is None:
            nothing = mask_logits.sum() * 0  # with a gradient, like any other term
            terms = terms | {"mask": nothing, "affinity": nothing}
        else:
            terms = terms | _pseudo_mask_terms(masks, pseudo_masks, loss, step)
        return Losses(torch.stack(list(terms.values())).sum(), terms)


def warmup(step: int, steps: float) -> float:
    """Share in (0, 1] that a loss has reached: min((step + 1) / steps, 1), or 1 where `steps` is 0.

    >>> [warmup(step, steps=4) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min((step + 1) / steps, 1.0) if steps > 0 else 1.0


@dataclass(frozen=True)
class _Masks:
    """The masks of n proposals, with the boxes and pairs of cells that losses compare them by."""

    probs: Tensor
    """Float (n, H/4, W/4) in [0, 1]."""
    image_index: Tensor
    """int64 (n,)."""
    box_row: Tensor
    """int64 (n,): the box of each proposal among the N boxes of all images."""
    inside: Tensor
    """Bool (N, H/4, W/4): the cells of each box."""
    in_own_box: Tensor
    """Bool (n, H/4, W/4): the cells of each proposal's box."""
    colored: Tensor
    """Bool (B, H, W): pixels whose colours mean something."""
    pairs: Pairs
    """Neighbours whose first cell is in the proposal's box."""
    costs: Tensor
    """Float (M, S), of these pairs."""


def _proposed_masks(
    mask_logits: Tensor, batch: Batch, proposals: Proposals, boxinst: BoxInstConfig
) -> _Masks:
    height, width = batch.valid.shape[-2:]
    num_boxes = [len(boxes) for boxes in batch.boxes]
    first_row = tensor_on(mask_logits.device, [0, *num_boxes[:-1]]).cumsum(0)  # of each image
    box_row = first_row[proposals.image_index] + proposals.box_index
    inside = box_masks(torch.cat(batch.boxes), height, width, stride=MASK_STRIDE)
    in_own_box = inside[box_row]
    pairs = find_pairs(in_own_box, size=boxinst.size, dilation=boxinst.dilation)
    return _Masks(
        probs=mask_logits.sigmoid(),
        image_index=proposals.image_index,
        box_row=box_row,
        inside=inside,
        in_own_box=in_own_box,
        colored=remove_bottom_rows(
            batch.valid, batch.sizes, batch.original_sizes, boxinst.bottom_px
        ),
        pairs=pairs,
        costs=pair_costs(mask_logits, pairs),
    )


def _box_terms(
    masks: _Masks, batch: Batch, boxinst: BoxInstConfig, step: int
) -> dict[str, Tensor]:
    """Weighted terms of what a box alone says about a mask."""
    shadows = projection_loss(masks.probs, masks.in_own_box, from_inside=boxinst.project_inside)
    projection = shadows.sum() / max(len(masks.probs), 1)
    similarity = color_similarity(
        batch.weak,
        masks.colored,
        size=boxinst.size,
        dilation=boxinst.dilation,
        truncate=boxinst.truncate_colors,
    )
    alike = masks.pairs.take_pairs(similarity >= boxinst.color_thr, masks.image_index)
    pairwise = pairwise_loss(masks.costs, alike)
    return {
        "projection": boxinst.projection_weight * projection,
        "pairwise": boxinst.pairwise_weight * warmup(step, boxinst.warmup) * pairwise,
    }


def _pseudo_mask_terms(
    masks: _Masks, pseudo_masks: list[PseudoMasks], loss: LossConfig, step: int
) -> dict[str, Tensor]:
    """Weighted terms of what the pseudo masks of the boxes say."""
    targets = torch.cat([pseudo.mask for pseudo in pseudo_masks]) & masks.inside  # (N, H/4, W/4)
    quality = torch.cat([pseudo.quality for pseudo in pseudo_masks]).float()[masks.box_row]
    affinity = pair_affinity(
        targets,
        sample_cells(masks.colored),
        masks.pairs,
        mask_row=masks.box_row,
        valid_row=masks.image_index,
    )
    dice = pseudo_mask_loss(masks.probs, targets[masks.box_row], quality)
    together = affinity >= loss.aff_thr
    pull = affinity_loss(masks.costs, together, masks.pairs, quality)
    share = warmup(step, loss.warmup)
    return {
        "mask": share * (loss.mask_weight * dice),
        "affinity": share * (loss.aff_weight * pull),
    }
