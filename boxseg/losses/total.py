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
        terms = terms | _mask_terms(
            mask_logits, batch, proposals, pseudo_masks, step, boxinst, loss
        )
        return Losses(torch.stack(list(terms.values())).sum(), terms)


def warmup(step: int, steps: float) -> float:
    """Share in (0, 1] that a loss has reached: min((step + 1) / steps, 1), or 1 where `steps` is 0.

    >>> [warmup(step, steps=4) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min((step + 1) / steps, 1.0) if steps > 0 else 1.0


def _mask_terms(
    mask_logits: Tensor,
    batch: Batch,
    proposals: Proposals,
    pseudo_masks: list[PseudoMasks] | None,
    step: int,
    boxinst: BoxInstConfig,
    loss: LossConfig,
) -> dict[str, Tensor]:
    """Weighted terms of the boxes and, where there are any, of the pseudo masks."""
    height, width = batch.valid.shape[-2:]
    # Boxes of all images stand in one list; `row` (n,) is where the box of each proposal stands in it.
    num_boxes = [len(boxes) for boxes in batch.boxes]
    first_row = tensor_on(mask_logits.device, [0, *num_boxes[:-1]]).cumsum(0)
    row = first_row[proposals.image_index] + proposals.box_index
    inside = box_masks(torch.cat(batch.boxes), height, width, stride=MASK_STRIDE)
    colored = remove_bottom_rows(batch.valid, batch.sizes, batch.original_sizes, boxinst.bottom_px)
    size, dilation = boxinst.size, boxinst.dilation
    similarity = color_similarity(
        batch.weak, colored, size=size, dilation=dilation, truncate=boxinst.truncate_colors
    )

    probs, own_box = mask_logits.sigmoid(), inside[row]  # both (n, H/4, W/4)
    shadows = projection_loss(probs, own_box, from_inside=boxinst.project_inside)
    projection = shadows.sum() / max(len(row), 1)
    pairs = find_pairs(own_box, size=size, dilation=dilation)
    costs = pair_costs(mask_logits, pairs)
    alike = pairs.take_pairs(similarity >= boxinst.color_thr, proposals.image_index)
    pairwise = pairwise_loss(costs, alike)
    terms = {
        "projection": boxinst.projection_weight * projection,
        "pairwise": boxinst.pairwise_weight * warmup(step, boxinst.warmup) * pairwise,
    }
    if pseudo_masks is None:
        nothing = mask_logits.sum() * 0  # with a gradient, like any other term
        pseudo = {"mask": nothing, "affinity": nothing}
    else:
        valid = sample_cells(colored)
        pseudo = _pseudo_mask_terms(
            probs, costs, pairs, pseudo_masks, inside, valid, row, proposals, loss
        )
    return terms | {name: warmup(step, loss.warmup) * value for name, value in pseudo.items()}


def _pseudo_mask_terms(
    probs: Tensor,
    costs: Tensor,
    pairs: Pairs,
    pseudo_masks: list[PseudoMasks],
    inside: Tensor,
    valid: Tensor,
    row: Tensor,
    proposals: Proposals,
    loss: LossConfig,
) -> dict[str, Tensor]:
    """Weighted terms of the pseudo masks; `inside` is bool (N, h, w) of all boxes, `row` (n,) points into it."""
    masks = torch.cat([pseudo.mask for pseudo in pseudo_masks]) & inside
    quality = torch.cat([pseudo.quality for pseudo in pseudo_masks]).float()[row]
    affinity = pair_affinity(masks, valid, pairs, mask_row=row, valid_row=proposals.image_index)
    together = affinity >= loss.aff_thr
    return {
        "mask": loss.mask_weight * pseudo_mask_loss(probs, masks[row], quality),
        "affinity": loss.aff_weight * affinity_loss(costs, together, pairs, quality),
    }
