"""Quality-Aware Module: rank candidates by box (BQR), fuse their masks (QMF), score the result (MQS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.config.method import QamConfig
from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_iou
from boxseg.ops.detections import first_best
from boxseg.ops.masks import box_masks
from boxseg.ops.neighbours import sample_cells
from boxseg.structures import MASK_STRIDE, Candidates, MaskFrame, PseudoMasks
from boxseg.teacher.enlarge import by_boxes
from boxseg.teacher.refine import refine_by_color, refined_quality
from boxseg.teacher.thresholds import ThresholdTable, choose_thresholds, threshold_grid

Fusion = Literal["vote", "weighted"]
FuseMasks = Callable[..., tuple[Tensor, Tensor]]
Ranking = tuple[Tensor, Tensor, Tensor]
"""Of each box the best detections in order, which of them are kept (bool), and their IoU: (N, k)."""


def make_pseudo_masks(
    candidates: Candidates,
    boxes: Tensor,
    labels: Tensor,
    *,
    settings: QamConfig,
    with_nms: bool = False,
    thresholds: ThresholdTable | None = None,
    step: int = 0,
    lab: Tensor | None = None,
) -> PseudoMasks:
    """One mask and its quality for every box of an image.

    Args:
        candidates: What the teacher found for the boxes.
        boxes: Float (N, 4), pixels of the training image.
        labels: int64 (N,).
        settings: Thresholds and variants; `dyn_start` in steps.
        with_nms: The candidates were found as BoxTeacher does, at most one per box, and are scored so.
        thresholds: Dynamic thresholds by class, updated in place from `settings.dyn_start` on; None: `mask_thr`.
        step: Steps done so far, from 0.
        lab: Float (3, H/4, W/4), CIELAB of the weak image, for `settings.color_weight`; None: masks stay as fused.

    Returns:
        Masks inside their boxes (`soft` is not cut, so that it can be enlarged first), with `full` where the candidates
        have a frame. The quality of refined masks is their certainty with `settings.refined_quality`; it is 0 where
        there is no candidate, the mask is empty (with `settings.need_inside`: inside its box) or the quality is below
        `settings.min_quality`.

    Source: BoxSeg (arXiv 2504.05137), `docs/method.md#pseudo-masks`; for `with_nms` BoxTeacher,
    `docs/method.md#one-detection-per-box`.
    """
    num_boxes, frame = len(boxes), candidates.frame
    refined = frame is None and lab is not None and settings.color_weight > 0 and not with_nms
    certain = refined and settings.refined_quality
    of_box = None
    if thresholds is not None and step >= settings.dyn_start and not with_nms:
        of_box = _dynamic_thresholds(candidates, labels, thresholds, settings)
    if candidates.around is not None:
        assert certain, "masks around boxes have no score of their own"
        assert lab is not None
        mask, soft, quality, score = _fuse_around(candidates, num_boxes, lab, settings)
    else:
        parts = []
        for own, part in by_boxes(candidates, num_boxes):
            mask_thr = settings.mask_thr if of_box is None else of_box[own]
            fused = _fuse_and_score(part, own.stop - own.start, mask_thr, settings, with_nms, scored=not certain)
            mask, soft, quality, score = fused
            parts.append((mask, soft if frame is None else sample_cells(_pad(soft, frame)), quality, score))
        mask, soft, quality, score = (torch.cat(column) for column in zip(*parts, strict=True))

    if frame is None:
        full = None
        height, width = (MASK_STRIDE * side for side in mask.shape[-2:])
        inside = box_masks(boxes, height, width, stride=MASK_STRIDE)
        mask = mask & inside
        if refined:
            assert lab is not None
            if certain and settings.need_inside:  # of the fused mask too: its own part far from the box is no reason
                quality = quality * mask.flatten(1).any(dim=1)
            soft = refine_by_color(soft, lab, boxes, weight=settings.color_weight)
            mask = inside & (soft > _cut(settings))
            if certain:
                quality = quality * refined_quality(soft, mask, inside)
    else:
        full = _pad(mask, frame) & box_masks(boxes, *frame.padded)
        mask = sample_cells(full)
    trusted = quality >= settings.min_quality
    if settings.need_inside:
        trusted = trusted & mask.flatten(1).any(dim=1)
    return PseudoMasks(mask, soft, quality * trusted, score, _count(candidates.box_index, num_boxes), full)


def _fuse_around(
    candidates: Candidates, num_boxes: int, lab: Tensor, settings: QamConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_fuse_and_score` of candidates whose masks are known around their boxes: maps are 0 elsewhere."""
    height, width = lab.shape[-2:]
    soft = lab.new_zeros(num_boxes, height * width)
    for own in candidates.around or []:
        score, iou = candidates.score[own.candidate_index], candidates.box_iou[own.candidate_index]
        part = Candidates(own.mask_probs, score, iou, own.owner)
        local = _fuse_and_score(part, len(own.box_index), settings.mask_thr, settings, False, scored=False)[1]
        cells = own.box_index[:, None] * (height * width) + own.windows.cells(width)
        soft.view(-1).index_copy_(0, cells.flatten(), (local * own.near).flatten())
    mask = (soft > _cut(settings)).view(-1, height, width)
    counts = _count(candidates.box_index, num_boxes).clamp(min=1)
    score = _sum_per_box(candidates.score, candidates.box_index, num_boxes) / counts
    return mask, soft.view(-1, height, width), mask.flatten(1).any(dim=1).to(score.dtype), score


def _cut(settings: QamConfig) -> float:
    """Threshold of fused maps."""
    return settings.mask_thr if settings.fusion == "weighted" else settings.vote_thr


def _fuse_and_score(
    candidates: Candidates,
    num_boxes: int,
    mask_thr: float | Tensor,
    settings: QamConfig,
    with_nms: bool,
    scored: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks, soft maps, qualities and scores of boxes, whose thresholds (N,) may be their own.

    Unless `scored`, quality only says whether there is a mask.
    """
    probs, box_index = candidates.mask_probs, candidates.box_index
    of_candidate = mask_thr[box_index] if isinstance(mask_thr, Tensor) else mask_thr
    mask, soft = fuse_masks(
        probs,
        box_index,
        num_boxes,
        mask_thr=of_candidate,
        vote_thr=settings.vote_thr,
        fusion="weighted" if with_nms else settings.fusion,
        weights=(candidates.score * candidates.box_iou).sqrt(),
    )
    if isinstance(mask_thr, Tensor) and settings.fusion == "weighted":
        soft = _recentre(soft, mask_thr[:, None, None], settings.mask_thr)
    if not scored:
        quality = mask.flatten(1).any(dim=1).to(probs.dtype)
        score = _sum_per_box(candidates.score, box_index, num_boxes) / _count(box_index, num_boxes).clamp(min=1)
    elif with_nms:
        quality, score = _score_single(probs, candidates.score, box_index, num_boxes, mask_thr=settings.mask_thr)
    else:
        quality, score = score_masks(
            probs,
            mask,
            candidates.score,
            box_index,
            mask_thr=of_candidate,
            score_floor=settings.score_floor,
            agreement=settings.agreement,
            k_full=settings.k_full,
        )
    return mask, soft, quality, score


def rank_candidates(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    k_top: int = 20,
    iou_thr: float = 0.5,
    score_thr: float = 0.1,
    class_match: bool = True,
    filter_first: bool = False,
    k_per_box: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Box-Quality Ranking: the detections that best fit each ground-truth box.

    Args:
        gt_boxes: Float (N, 4), pixels.
        gt_labels: int64 (N,).
        boxes: Float (M, 4), pixels: detections of the teacher.
        labels: int64 (M,).
        scores: Float (M,) in [0, 1].
        k_top: Detections kept per box at most.
        iou_thr: IoU with the box must exceed this.
        score_thr: The score must exceed this.
        class_match: The detection needs the class of the box.
        filter_first: Apply the filters before the best are taken, and break ties of IoU by score, then by index. The
            reference takes the best by IoU alone, of equal ones the first, and filters them.
        k_per_box: Optional (N,): a lower limit than `k_top` for each box.

    Returns:
        `candidate_index` int64 (C,) into the detections, `box_index` int64 (C,), `iou` float (C,); sorted by box, then
        by falling IoU. A detection may serve several boxes.

    Raises:
        ShapeError: the tensors of the boxes, or of the detections, differ in length.

    Source: BoxSeg (arXiv 2504.05137); `docs/method.md#ranking`.
    """
    ranking = order_candidates(
        gt_boxes,
        gt_labels,
        boxes,
        labels,
        scores,
        k_top=k_top,
        iou_thr=iou_thr,
        score_thr=score_thr,
        class_match=class_match,
        filter_first=filter_first,
        k_per_box=k_per_box,
    )
    return kept_candidates([ranking])[0]


def order_candidates(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    k_top: int,
    iou_thr: float,
    score_thr: float,
    class_match: bool,
    filter_first: bool,
    k_per_box: Tensor | None,
) -> Ranking:
    """`rank_candidates` up to where the number of candidates matters; nothing is read from the device."""
    if len(gt_boxes) != len(gt_labels) or not len(boxes) == len(labels) == len(scores):
        raise ShapeError(
            f"{len(gt_boxes)} gt_boxes with {len(gt_labels)} gt_labels, {len(boxes)} boxes with {len(labels)} labels "
            f"and {len(scores)} scores; each group needs one length"
        )
    iou = box_iou(gt_boxes, boxes)  # (N, M)
    eligible = (iou > iou_thr) & (scores > score_thr)
    if class_match:
        eligible = eligible & (gt_labels[:, None] == labels)
    k = min(k_top, len(boxes))
    if filter_first:
        by_score = scores.argsort(descending=True, stable=True)
        order = by_score[first_best(torch.where(eligible, iou, -1.0).index_select(1, by_score), k)]
    else:
        order = first_best(iou, k)
    keep = eligible.gather(1, order)  # (N, k)
    if k_per_box is not None:
        keep = keep & (torch.arange(k, device=keep.device) < k_per_box[:, None])
    return order, keep, iou.gather(1, order)


def kept_candidates(rankings: list[Ranking]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `rank_candidates` gives for each image; two reads from the device for all of them."""
    counts = torch.stack([keep.sum() for _, keep, _ in rankings]).tolist()
    flat = [torch.cat([each[part].flatten() for each in rankings]) for part in range(3)]
    place = flat[1].nonzero()[:, 0]
    index, iou = flat[0][place], flat[2][place]
    found, before = [], 0
    for (order, _, _), places, own, overlap in zip(
        rankings, place.split(counts), index.split(counts), iou.split(counts), strict=True
    ):
        found.append((own, (places - before) // max(order.shape[1], 1), overlap))
        before += order.numel()
    return found


def adaptive_k(
    areas: Tensor, *, k_min: int = 5, k_max: int = 20, area_s: float = 32.0**2, area_l: float = 96.0**2
) -> Tensor:
    """Number of candidates that a box of some area deserves.

    Args:
        areas: Float (N,), px² of the original image.
        k_min: Number up to `area_s`.
        k_max: Number from `area_l` on.
        area_s: Area of a small box, same unit.
        area_l: Area of a large box, same unit.

    Returns:
        Float (N,) in [k_min, k_max], linear in the root of the area between; not rounded.

    Source: the paper's idea with constants of this project; `docs/method.md#ranking`.
    """
    share = (areas.sqrt() - area_s**0.5) / (area_l**0.5 - area_s**0.5)
    return k_min + (k_max - k_min) * share.clamp(0, 1)


def fuse_masks(
    mask_probs: Tensor,
    box_index: Tensor,
    num_boxes: int,
    *,
    mask_thr: float | Tensor = 0.5,
    vote_thr: float = 0.5,
    fusion: Fusion = "vote",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quality-aware Masks Fusion: the masks of all candidates of a box become one.

    Args:
        mask_probs: Float (C, h, w) in [0, 1].
        box_index: int64 (C,) in 0 … N-1, box that each candidate serves; any order.
        num_boxes: N.
        mask_thr: Probability that makes a pixel object; a number, or float (C,).
        vote_thr: Share of candidates that must agree, strictly more; for `vote` only.
        fusion: `vote`: majority of binary masks, so K = 2 means both. `weighted`: mean probability above `mask_thr`.
        weights: Float (C,) >= 0, sqrt(score x IoU), for `weighted` only; need not sum to 1. None: all alike.

    Returns:
        `mask` bool (N, h, w) and the map that it cuts, `soft` float (N, h, w) in [0, 1]: share of votes, or weighted
        probability. Both empty for a box without candidate.

    Raises:
        ShapeError: `mask_probs` is not (C, h, w), or `box_index` not (C,).

    Source: BoxSeg (arXiv 2504.05137); `docs/method.md#fusion`.
    """
    _check_candidates(mask_probs, box_index)
    if weights is None:
        weights = mask_probs.new_ones(len(mask_probs))
    return FUSIONS[fusion](mask_probs, box_index, num_boxes, mask_thr=mask_thr, vote_thr=vote_thr, weights=weights)


def fuse_by_vote(
    mask_probs: Tensor, box_index: Tensor, num_boxes: int, *, mask_thr: float | Tensor, vote_thr: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Unweighted strict majority; `weights` has no part in it."""
    votes = _sum_per_box(_above(mask_probs, mask_thr).to(mask_probs.dtype), box_index, num_boxes)
    share = votes / _count(box_index, num_boxes).clamp(min=1)[:, None, None]
    return share > vote_thr, share


def fuse_by_weight(
    mask_probs: Tensor, box_index: Tensor, num_boxes: int, *, mask_thr: float | Tensor, vote_thr: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean of the probabilities; `vote_thr` has no part in it."""
    share = weights / _sum_per_box(weights, box_index, num_boxes).clamp(min=1e-12)[box_index]
    mean = _sum_per_box(mask_probs * share[:, None, None], box_index, num_boxes)
    if isinstance(mask_thr, Tensor):
        mask_thr = _sum_per_box(mask_thr * share, box_index, num_boxes)[:, None, None]
    return mean > mask_thr, mean


FUSIONS: dict[Fusion, FuseMasks] = {"vote": fuse_by_vote, "weighted": fuse_by_weight}


def score_masks(
    mask_probs: Tensor,
    mask: Tensor,
    scores: Tensor,
    box_index: Tensor,
    *,
    mask_thr: float | Tensor = 0.5,
    score_floor: float = 1.0,
    agreement: bool = True,
    k_full: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask-Quality Scoring: how far a fused mask can be trusted.

    Args:
        mask_probs: Float (C, h, w) in [0, 1].
        mask: Bool (N, h, w), fused mask of every box, not cut to the box.
        scores: Float (C,) in [0, 1], detection scores.
        box_index: int64 (C,), box that each candidate serves; any order.
        mask_thr: Probability that makes a pixel object; a number, or float (C,).
        score_floor: f in (score + f) / (1 + f), the part of the detection score.
        agreement: Multiply by the candidate's overlap with the fused mask; otherwise confidence alone counts.
        k_full: Multiply by min(K / k_full, 1) for K candidates; None: K does not count.

    Returns:
        `quality` float (N,) in [0, 1], mean over the candidates, 0 exactly where there is none or the mask is empty;
        `score` float (N,), mean detection score, 0 where there is none.

    Raises:
        ShapeError: `mask_probs` is not (C, h, w), or `box_index` not (C,).

    Source: BoxSeg's code; `docs/method.md#quality`.
    """
    _check_candidates(mask_probs, box_index)
    binary = _above(mask_probs, mask_thr)
    area = binary.sum(dim=(1, 2))
    confidence = (mask_probs * binary).sum(dim=(1, 2))
    fused_area = mask.sum(dim=(1, 2))  # (N,)
    if agreement:
        both = (binary & mask[box_index]).sum(dim=(1, 2))
        overlap = both / (area + fused_area[box_index] - both).clamp(min=1)
        trust = overlap * confidence / fused_area[box_index].clamp(min=1)
    else:
        trust = confidence / area.clamp(min=1)
    per_candidate = ((scores + score_floor) / (1 + score_floor) * trust).sqrt()
    count = _count(box_index, len(mask)).clamp(min=1)
    quality = _sum_per_box(per_candidate, box_index, len(mask)) / count
    if k_full is not None:
        quality = quality * (count / k_full).clamp(max=1)
    return quality.clamp(max=1) * (fused_area > 0), _sum_per_box(scores, box_index, len(mask)) / count


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


def _score_single(
    mask_probs: Tensor, scores: Tensor, box_index: Tensor, num_boxes: int, *, mask_thr: float
) -> tuple[Tensor, Tensor]:
    """BoxTeacher's quality sqrt(sqrt(score) x mask confidence) of at most one candidate per box, and its score."""
    quality = (scores.sqrt() * mask_confidence(mask_probs, mask_thr=mask_thr)).sqrt()
    return _sum_per_box(quality, box_index, num_boxes), _sum_per_box(scores, box_index, num_boxes)


def _dynamic_thresholds(
    candidates: Candidates, labels: Tensor, thresholds: ThresholdTable, settings: QamConfig
) -> Tensor:
    """Threshold (N,) of every box; the table learns from this image first."""
    grid = threshold_grid(settings.dyn_centre, settings.dyn_half, settings.dyn_step)
    parts = [
        choose_thresholds(
            part.mask_probs, part.box_index, own.stop - own.start, grid=grid, per_union=settings.dyn_per_union
        )
        for own, part in by_boxes(candidates, len(labels))
    ]
    chosen, decided = (torch.cat(column) for column in zip(*parts, strict=True))
    return thresholds.update(labels, chosen, decided, ema=settings.dyn_ema)


def _recentre(soft: Tensor, old: Tensor, new: float) -> Tensor:
    """Move the threshold of soft maps from `old` to `new`, so that one number cuts the maps of all boxes."""
    return torch.where(soft <= old, soft * (new / old), 1 - (1 - soft) * ((1 - new) / (1 - old)))


def _pad(maps: Tensor, frame: MaskFrame) -> Tensor:
    """Maps (N, h, w) of the training image in the padded batch, 0 or False on padding: (N, H, W)."""
    return F.pad(maps, (0, frame.padded[1] - maps.shape[2], 0, frame.padded[0] - maps.shape[1]))


def _above(mask_probs: Tensor, mask_thr: float | Tensor) -> Tensor:
    return mask_probs > (mask_thr[:, None, None] if isinstance(mask_thr, Tensor) else mask_thr)


def _sum_per_box(values: Tensor, box_index: Tensor, num_boxes: int) -> Tensor:
    """Sum of the values (C, …) of each box: (N, …)."""
    return values.new_zeros(num_boxes, *values.shape[1:]).index_add_(0, box_index, values)


def _count(box_index: Tensor, num_boxes: int) -> Tensor:
    """Number of candidates of each box, int64 (N,)."""
    return _sum_per_box(torch.ones_like(box_index), box_index, num_boxes)


def _check_candidates(mask_probs: Tensor, box_index: Tensor) -> None:
    if mask_probs.dim() != 3 or box_index.shape != mask_probs.shape[:1]:
        raise ShapeError(
            f"mask_probs {tuple(mask_probs.shape)}, box_index {tuple(box_index.shape)}; (C, h, w) and (C,) are needed"
        )
