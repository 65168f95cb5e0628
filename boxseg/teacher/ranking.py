"""Box-Quality Ranking (BQR): which detections of the teacher serve a ground-truth box, best box first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boxseg.config.method import QamConfig
from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_iou
from boxseg.ops.detections import first_best
from boxseg.structures import RawDetections


class Chosen(NamedTuple):
    """Detections of one image that serve its boxes; sorted by box, then by falling IoU."""

    detection_index: Tensor
    """int64 (C,)."""
    box_index: Tensor
    """int64 (C,)."""
    iou: Tensor
    """Float (C,), of the detection's box with the one that it serves."""


class Ranking(NamedTuple):
    """The k best detections of each box in order, before those that fail a filter are dropped."""

    detection_index: Tensor
    """int64 (N, k)."""
    keep: Tensor
    """Bool (N, k)."""
    iou: Tensor
    """Float (N, k)."""


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
) -> Chosen:
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
        C candidates; a detection may serve several boxes.

    Raises:
        ShapeError: the tensors of the boxes, or of the detections, differ in length.

    Source: BoxSeg (arXiv 2504.05137); `docs/method.md#ranking`.

    >>> box, label = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 10.0]])
    >>> chosen = rank_candidates(box, label, boxes, torch.tensor([0, 0, 0]), torch.tensor([0.9, 0.9, 0.3]))
    >>> chosen.detection_index.tolist(), chosen.box_index.tolist(), chosen.iou
    ([2, 0], [0, 0], tensor([1.0000, 0.8000]))
    """
    if len(gt_boxes) != len(gt_labels) or not len(boxes) == len(labels) == len(scores):
        raise ShapeError(
            f"{len(gt_boxes)} gt_boxes with {len(gt_labels)} gt_labels, {len(boxes)} boxes with {len(labels)} labels "
            f"and {len(scores)} scores; each group needs one length"
        )
    limits = QamConfig(
        k_top=k_top,
        iou_thr=iou_thr,
        score_thr=score_thr,
        class_match=class_match,
        filter_first=filter_first,
    )
    detections = RawDetections(boxes, labels, scores, handle=labels)  # no mask is drawn of them
    ranking = order_candidates(gt_boxes, gt_labels, detections, limits, k_per_box=k_per_box)
    return kept_candidates([ranking])[0]


def order_candidates(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    detections: RawDetections,
    limits: QamConfig,
    *,
    k_per_box: Tensor | None,
) -> Ranking:
    """The first half of `rank_candidates`: the k best detections of each box, and which of them pass the filters.

    Dropping the others needs their number, which has to be read from the device. That is left to `kept_candidates`,
    which does it for all images of a batch at once.
    """
    scores = detections.scores
    iou = box_iou(gt_boxes, detections.boxes)  # (N, M)
    eligible = (iou > limits.iou_thr) & (scores > limits.score_thr)
    if limits.class_match:
        eligible = eligible & (gt_labels[:, None] == detections.labels)
    k = min(limits.k_top, len(scores))
    if limits.filter_first:
        # `first_best` takes the first of equal values: with detections in the order of their scores, the better one.
        by_score = scores.argsort(descending=True, stable=True)
        eligible_iou = torch.where(eligible, iou, -1.0)
        order = by_score[first_best(eligible_iou.index_select(1, by_score), k)]
    else:
        order = first_best(iou, k)
    keep = eligible.gather(1, order)  # (N, k)
    if k_per_box is not None:
        keep = keep & (torch.arange(k, device=keep.device) < k_per_box[:, None])
    return Ranking(order, keep, iou.gather(1, order))


def kept_candidates(rankings: list[Ranking]) -> list[Chosen]:
    """What `rank_candidates` returns, for each of several images; two reads from the device for all of them."""
    counts = torch.stack([ranking.keep.sum() for ranking in rankings]).tolist()
    # Boxes and places of all images in one row.
    every_index = torch.cat([ranking.detection_index.flatten() for ranking in rankings])
    every_iou = torch.cat([ranking.iou.flatten() for ranking in rankings])
    kept = torch.cat([ranking.keep.flatten() for ranking in rankings]).nonzero()[:, 0]
    chosen, before = [], 0
    for ranking, place in zip(rankings, kept.split(counts), strict=True):
        k = max(ranking.keep.shape[1], 1)
        box_index = (place - before) // k
        chosen.append(Chosen(every_index[place], box_index, every_iou[place]))
        before += ranking.keep.numel()
    return chosen


def adaptive_k(areas: Tensor, settings: QamConfig) -> Tensor:
    """Number of candidates that a box of some area deserves.

    Args:
        areas: Float (N,), px² of the original image.
        settings: `k_min` up to the area `area_s`, `k_max` from `area_l` on.

    Returns:
        Float (N,) in [k_min, k_max], linear in the root of the area between; not rounded.

    Source: the paper's idea with constants of this project; `docs/method.md#ranking`.

    >>> adaptive_k(torch.tensor([32.0**2, 64.0**2, 96.0**2]), QamConfig())
    tensor([ 5.0000, 12.5000, 20.0000])
    """
    small, large = settings.area_s**0.5, settings.area_l**0.5
    share = (areas.sqrt() - small) / (large - small)
    return settings.k_min + (settings.k_max - settings.k_min) * share.clamp(0, 1)
