"""Mask-Quality Scoring (MQS): how far a pseudo mask can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.ops.per_box import mean_per_box
from boxseg.structures import PseudoMasks
from boxseg.teacher.fusion import check_candidates


def score_masks(
    mask_probs: Tensor,
    mask: Tensor,
    scores: Tensor,
    box_index: Tensor,
    *,
    mask_thr: float = 0.5,
    score_floor: float = 1.0,
    agreement: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mask-Quality Scoring: how far a fused mask can be trusted.

    Args:
        mask_probs: Float (C, h, w) in [0, 1].
        mask: Bool (N, h, w), fused mask of every box, not cut to the box.
        scores: Float (C,) in [0, 1], detection scores.
        box_index: int64 (C,), box that each candidate serves; any order.
        mask_thr: Probability above which a pixel is object.
        score_floor: f in (score + f) / (1 + f), the part of the detection score.
        agreement: Multiply by the candidate's overlap with the fused mask; otherwise confidence alone counts.

    Returns:
        `quality` float (N,) in [0, 1], mean over the candidates, 0 exactly where there is none or the mask is empty;
        `score` float (N,), mean detection score, 0 where there is none.

    Raises:
        ShapeError: `mask_probs` is not (C, h, w), or `box_index` not (C,).

    Source: BoxSeg's code; `docs/method.md#quality`.

    >>> two = torch.tensor([[[0.9, 0.9]], [[0.9, 0.1]]])  # the second sees half of the object
    >>> fused = torch.tensor([[[True, True]]])
    >>> quality, score = score_masks(two, fused, torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    >>> [round(float(value), 4) for value in (quality, score)]  # mean of sqrt(0.9) and sqrt(0.5 * 0.45)
    [0.7115, 1.0]
    """
    check_candidates(mask_probs, box_index)
    binary = mask_probs > mask_thr
    area = binary.sum(dim=(1, 2))
    confidence = (mask_probs * binary).sum(dim=(1, 2))  # summed over the candidate's mask
    fused_area = mask.sum(dim=(1, 2))  # (N,)
    if agreement:
        own_fused_area = fused_area[box_index]  # (C,)
        shared_area = (binary & mask[box_index]).sum(dim=(1, 2))
        iou = shared_area / (area + own_fused_area - shared_area).clamp(min=1)
        # At most 1: two masks have an IoU of no more than the smaller area over the larger one.
        trust = iou * confidence / own_fused_area.clamp(min=1)
    else:
        trust = confidence / area.clamp(min=1)
    per_candidate = ((scores + score_floor) / (1 + score_floor) * trust).sqrt()
    quality = mean_per_box(per_candidate, box_index, len(mask))
    return quality.clamp(max=1) * (fused_area > 0), mean_per_box(scores, box_index, len(mask))


def qam_metrics(pseudo_masks: list[PseudoMasks]) -> dict[str, Tensor]:
    """Mean quality, share of boxes with a pseudo mask, candidates per box: scalars on the device; 0 without boxes."""
    quality = torch.cat([pseudo.quality for pseudo in pseudo_masks])
    candidates = torch.cat([pseudo.num_candidates for pseudo in pseudo_masks])
    boxes = max(len(quality), 1)
    return {
        "qam/quality": quality.sum() / boxes,
        "qam/coverage": (quality > 0).sum() / boxes,
        "qam/candidates": candidates.sum() / boxes,
    }


def mask_confidence(mask_probs: Tensor, *, mask_thr: float = 0.5) -> Tensor:
    """Mean probability (C,) over the pixels of (C, h, w) above `mask_thr`; 0 where there is none."""
    binary = mask_probs > mask_thr
    return (mask_probs * binary).sum(dim=(1, 2)) / (binary.sum(dim=(1, 2)) + 1e-6)
