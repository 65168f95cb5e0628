"""The teacher looks at the weak images and offers candidates for every ground-truth box."""

from __future__ import annotations

from typing import Any

import torch

from boxseg.config.method import BoxSegConfig, QamConfig
from boxseg.ops.boxes import box_area
from boxseg.structures import Batch, Candidates, MaskNetwork, RawDetections
from boxseg.teacher.one_per_box import one_per_box
from boxseg.teacher.ranking import Ranking, adaptive_k, kept_candidates, order_candidates
from boxseg.teacher.view import mask_frame, teacher_view, whole_masks
from boxseg.teacher.windows import draw_in_windows, needs_windows_only


@torch.no_grad()
def find_candidates(
    network: MaskNetwork, batch: Batch, config: BoxSegConfig, *, around_boxes: bool = False
) -> list[Candidates]:
    """Teacher detections with masks for the ground-truth boxes of every image.

    Args:
        network: The teacher, in the mode that it labels in.
        batch: Its weak view is labelled.
        config: Of `teacher` the size of its view, the floor of its detections and the kind of labelling; of `qam` the
            limits of the ranking; of `fcos`, for labelling with NMS, `nms_thr` and `topk`.
        around_boxes: Compute masks around their boxes only, where the settings look at nothing else.

    Returns:
        B candidates, sorted by box, then rank; masks on the (H/4, W/4) grid of the batch and 0 on padding, with
        `qam.full_resolution` as the network gave them. With `teacher.with_nms` at most one candidate per box.

    Source: BoxSeg (arXiv 2504.05137), BoxTeacher (arXiv 2210.05174); `docs/method.md#candidates`.
    """
    view = teacher_view(batch, short=config.teacher.resize_short, long=config.teacher.resize_long)
    predictions = network(view.weak, view.valid)
    return pick_candidates(network, predictions, batch, view, config, around_boxes=around_boxes)


@torch.no_grad()
def pick_candidates(
    network: MaskNetwork,
    predictions: Any,
    batch: Batch,
    view: Batch,
    config: BoxSegConfig,
    *,
    around_boxes: bool = False,
) -> list[Candidates]:
    """`find_candidates` for predictions that are already there; `view` is what the network saw."""
    qam = config.qam
    detections = network.detect(
        predictions, score_thr=config.teacher.cand_score_thr, pre_topk=config.teacher.pre_topk
    )
    if config.teacher.with_nms:
        return [
            one_per_box(network, predictions, found, batch, view, image, config)
            for image, found in enumerate(detections)
        ]
    chosen = kept_candidates(
        [_rank(found, batch, view, image, qam) for image, found in enumerate(detections)]
    )
    # Only where the view is the batch are the cells of the network's maps those of the batch.
    if around_boxes and network.draws_windows and view is batch and needs_windows_only(qam):
        return draw_in_windows(network, predictions, detections, chosen, batch)
    candidates = []
    for image, (found, best) in enumerate(zip(detections, chosen, strict=True)):
        handle = found.handle[best.detection_index]
        frame = mask_frame(batch, view, image, qam)
        probs = whole_masks(network, predictions, handle, batch, view, image, frame)
        scores = found.scores[best.detection_index]
        candidates.append(Candidates(probs, scores, best.iou, best.box_index, frame))
    return candidates


def _rank(
    detections: RawDetections, batch: Batch, view: Batch, image: int, qam: QamConfig
) -> Ranking:
    """Box-Quality Ranking with the limits of the settings."""
    limits, k_per_box = qam, None
    if qam.adaptive_k:
        height, width = batch.sizes[image]
        original_height, original_width = batch.original_sizes[image]
        scale = original_height * original_width / (height * width)
        areas = box_area(batch.boxes[image]) * scale  # px² of the original image
        k_per_box = adaptive_k(areas, qam).round()
        limits = qam.model_copy(update={"k_top": qam.k_max})
    return order_candidates(
        view.boxes[image], batch.labels[image], detections, limits, k_per_box=k_per_box
    )
