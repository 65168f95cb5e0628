"""Box-Quality Ranking (BQR): which detections of the teacher serve a ground-truth box, best box first."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.config.method import QamConfig
from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_iou
from boxseg.ops.detections import first_best
from boxseg.structures import RawDetections

Ranking = tuple[Tensor, Tensor, Tensor]
"""For each box the indices of its k best detections in order, which of them are kept (bool), and their IoU; (N, k)
each."""


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

    >>> box, label = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
    >>> found = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 10.0]])
    >>> rank_candidates(box, label, found, torch.tensor([0, 0, 0]), torch.tensor([0.9, 0.9, 0.3]))
    (tensor([2, 0]), tensor([0, 0]), tensor([1.0000, 0.8000]))
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
    return order, keep, iou.gather(1, order)


def kept_candidates(rankings: list[Ranking]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `rank_candidates` returns, for each of several images; two reads from the device for all of them."""
    counts = torch.stack([keep.sum() for _, keep, _ in rankings]).tolist()
    every_order = torch.cat([order.flatten() for order, _, _ in rankings])
    every_keep = torch.cat([keep.flatten() for _, keep, _ in rankings])
    every_iou = torch.cat([iou.flatten() for _, _, iou in rankings])
    place = every_keep.nonzero()[:, 0]
    of_images = zip(
        rankings,
        place.split(counts),
        every_order[place].split(counts),
        every_iou[place].split(counts),
        strict=True,
    )
    candidates, before = [], 0
    for (order, _, _), own_place, detection_index, iou in of_images:
        box_index = (own_place - before) // max(order.shape[1], 1)  # a row of `order` for each box
        candidates.append((detection_index, box_index, iou))
        before += order.numel()
    return candidates


def adaptive_k(
    areas: Tensor,
    *,
    k_min: int = 5,
    k_max: int = 20,
    area_s: float = 32.0**2,
    area_l: float = 96.0**2,
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

    >>> adaptive_k(torch.tensor([32.0**2, 64.0**2, 96.0**2]))
    tensor([ 5.0000, 12.5000, 20.0000])
    """
    share = (areas.sqrt() - area_s**0.5) / (area_l**0.5 - area_s**0.5)
    return k_min + (k_max - k_min) * share.clamp(0, 1)
