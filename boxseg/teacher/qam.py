"""The Quality-Aware Module put together: candidates of a box are ranked, fused to one mask, and the mask is scored.

Its parts are in `ranking` (BQR), `fusion` (QMF) and `quality` (MQS), and can be imported from here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.config.method import BoxSegConfig, QamConfig
from boxseg.ops.masks import box_masks
from boxseg.ops.neighbours import rgb_to_lab, sample_cells
from boxseg.ops.per_box import count_per_box, mean_per_box, sum_per_box
from boxseg.structures import MASK_STRIDE, Batch, Candidates, MaskFrame, PseudoMasks
from boxseg.teacher.enlarge import by_boxes
from boxseg.teacher.fusion import fuse_masks
from boxseg.teacher.quality import mask_confidence, score_masks
from boxseg.teacher.ranking import rank_candidates
from boxseg.teacher.refine import refine_by_color, refined_quality

__all__ = ["LABELLERS", "fuse_masks", "make_pseudo_masks", "rank_candidates", "score_masks"]

LabellerName = Literal["detections", "fusion", "colors"]
Labeller = Callable[[Candidates, Tensor, Tensor | None, QamConfig], PseudoMasks]
"""Candidates, boxes (N, 4), CIELAB (3, H/4, W/4) or None, and settings -> a mask with its quality for each box."""
Fused = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of n boxes: mask bool (n, h, w), the map it was cut from float (n, h, w), quality (n,) and score (n,)."""


def fuse_candidates(
    config: BoxSegConfig, candidates: list[Candidates], batch: Batch
) -> list[PseudoMasks]:
    """QAM for every image of a batch."""
    qam, with_nms = config.qam, config.teacher.with_nms
    colors: Tensor | list[None] = [None] * len(batch)
    if qam.color_weight:
        # Nothing was pasted yet, so these are the colours that the teacher saw.
        colors = rgb_to_lab(F.avg_pool2d(batch.weak.float(), MASK_STRIDE))  # (B, 3, H/4, W/4)
    return [
        make_pseudo_masks(found, boxes, settings=qam, with_nms=with_nms, lab=lab)
        for found, boxes, lab in zip(candidates, batch.boxes, colors, strict=True)
    ]


def make_pseudo_masks(
    candidates: Candidates,
    boxes: Tensor,
    *,
    settings: QamConfig,
    with_nms: bool = False,
    lab: Tensor | None = None,
) -> PseudoMasks:
    """One mask and its quality for every box of an image.

    Args:
        candidates: What the teacher found for the boxes.
        boxes: Float (N, 4), pixels of the training image.
        settings: Thresholds and variants.
        with_nms: The candidates were found as BoxTeacher does, at most one per box, and are scored so.
        lab: Float (3, H/4, W/4), CIELAB of the weak image, for `settings.color_weight`; None: masks stay as fused.

    Returns:
        Masks inside their boxes (`soft` is not cut, so that it can be enlarged first), with `full` where the candidates
        have a frame. Quality is 0 where there is no candidate, the mask is empty (with `settings.need_inside`: inside
        its box) or the quality is below `settings.min_quality`.

    Source: BoxSeg (arXiv 2504.05137), `docs/method.md#pseudo-masks`; for `with_nms` BoxTeacher,
    `docs/method.md#one-detection-per-box`.
    """
    colors_count = settings.color_weight > 0 and lab is not None and candidates.frame is None
    labeller: LabellerName = "detections" if with_nms else "colors" if colors_count else "fusion"
    pseudo_masks = LABELLERS[labeller](candidates, boxes, lab, settings)
    trusted = pseudo_masks.quality >= settings.min_quality
    if settings.need_inside:
        trusted = trusted & pseudo_masks.mask.flatten(1).any(dim=1)
    return replace(pseudo_masks, quality=pseudo_masks.quality * trusted)


def label_by_detections(
    candidates: Candidates, boxes: Tensor, lab: Tensor | None, settings: QamConfig
) -> PseudoMasks:
    """BoxTeacher: the mask of the one detection that each box got, with quality sqrt(sqrt(score) x mask confidence).

    Colours have no say.
    """

    def fuse(part: Candidates, num_boxes: int) -> Fused:
        probs, box_index = part.mask_probs, part.box_index
        mask, soft = fuse_masks(
            probs, box_index, num_boxes, mask_thr=settings.mask_thr, fusion="weighted"
        )
        confidence = mask_confidence(probs, mask_thr=settings.mask_thr)
        # Of one candidate at most, a sum is its value, or 0 without one.
        quality = sum_per_box((part.score.sqrt() * confidence).sqrt(), box_index, num_boxes)
        return mask, soft, quality, sum_per_box(part.score, box_index, num_boxes)

    return _fuse_in_parts(candidates, boxes, fuse)


def label_by_fusion(
    candidates: Candidates, boxes: Tensor, lab: Tensor | None, settings: QamConfig
) -> PseudoMasks:
    """BoxSeg: the candidates of a box are fused, and their agreement scores the mask. Colours have no say."""

    def fuse(part: Candidates, num_boxes: int) -> Fused:
        mask, soft = _fuse(part, num_boxes, settings)
        quality, score = score_masks(
            part.mask_probs,
            mask,
            part.score,
            part.box_index,
            mask_thr=settings.mask_thr,
            score_floor=settings.score_floor,
            agreement=settings.agreement,
        )
        return mask, soft, quality, score

    return _fuse_in_parts(candidates, boxes, fuse)


def label_by_colors(
    candidates: Candidates, boxes: Tensor, lab: Tensor | None, settings: QamConfig
) -> PseudoMasks:
    """Profile `fixed`: fused maps are corrected by colours, and how certain they are then is the quality.

    Agreement of the candidates would say little about a mask that colours have moved.
    """
    assert lab is not None
    num_boxes = len(boxes)
    if candidates.around is None:
        fused, soft = _fuse(candidates, num_boxes, settings)
    else:
        fused, soft = _fuse_around(candidates, num_boxes, lab, settings)
    height, width = (MASK_STRIDE * side for side in soft.shape[-2:])
    inside = box_masks(boxes, height, width, stride=MASK_STRIDE)
    if settings.need_inside:
        # what the network saw far from the box is no reason to trust the colours inside
        fused = fused & inside

    soft = refine_by_color(soft, lab, boxes, weight=settings.color_weight)
    mask = inside & (soft > settings.fused_thr)
    quality = fused.flatten(1).any(dim=1) * refined_quality(soft, mask, inside)
    score = mean_per_box(candidates.score, candidates.box_index, num_boxes)
    return PseudoMasks(mask, soft, quality, score, count_per_box(candidates.box_index, num_boxes))


LABELLERS: dict[LabellerName, Labeller] = {
    "detections": label_by_detections,
    "fusion": label_by_fusion,
    "colors": label_by_colors,
}
"""How the candidates of a box become one mask with a quality."""


def _fuse(candidates: Candidates, num_boxes: int, settings: QamConfig) -> tuple[Tensor, Tensor]:
    """Quality-aware Masks Fusion with the settings' thresholds and the method's weights."""
    return fuse_masks(
        candidates.mask_probs,
        candidates.box_index,
        num_boxes,
        mask_thr=settings.mask_thr,
        vote_thr=settings.vote_thr,
        fusion=settings.fusion,
        weights=(candidates.score * candidates.box_iou).sqrt(),
    )


def _fuse_around(
    candidates: Candidates, num_boxes: int, lab: Tensor, settings: QamConfig
) -> tuple[Tensor, Tensor]:
    """`_fuse` of candidates whose masks are known around their boxes only; maps are 0 elsewhere."""
    height, width = lab.shape[-2:]
    soft = lab.new_zeros(num_boxes, height * width)
    for group in candidates.around or []:
        score = candidates.score[group.candidate_index]
        iou = candidates.box_iou[group.candidate_index]
        in_group = Candidates(group.mask_probs, score, iou, group.owner)
        _, local = _fuse(in_group, len(group.box_index), settings)
        cells = group.box_index[:, None] * (height * width) + group.windows.cells(width)
        soft.view(-1).index_copy_(0, cells.flatten(), (local * group.near).flatten())
    return (soft > settings.fused_thr).view(-1, height, width), soft.view(-1, height, width)


def _fuse_in_parts(
    candidates: Candidates, boxes: Tensor, fuse: Callable[[Candidates, int], Fused]
) -> PseudoMasks:
    """Fuse and score a few boxes at a time, where masks are enlarged to every pixel; then cut masks to their boxes."""
    frame, parts = candidates.frame, []
    for own, part in by_boxes(candidates, len(boxes)):
        mask, soft, quality, score = fuse(part, own.stop - own.start)
        if frame is not None:
            soft = sample_cells(_pad(soft, frame))
        parts.append((mask, soft, quality, score))
    mask, soft, quality, score = (torch.cat(column) for column in zip(*parts, strict=True))
    if frame is None:
        full = None
        height, width = (MASK_STRIDE * side for side in mask.shape[-2:])
        mask = mask & box_masks(boxes, height, width, stride=MASK_STRIDE)
    else:
        full = _pad(mask, frame) & box_masks(boxes, *frame.padded)
        mask = sample_cells(full)
    num_candidates = count_per_box(candidates.box_index, len(boxes))
    return PseudoMasks(mask, soft, quality, score, num_candidates, full)


def _pad(maps: Tensor, frame: MaskFrame) -> Tensor:
    """Maps (N, h, w) of the training image in the padded batch, 0 or False on padding: (N, H, W)."""
    return F.pad(maps, (0, frame.padded[1] - maps.shape[2], 0, frame.padded[0] - maps.shape[1]))
