"""BoxTeacher's labelling: detections after NMS, best masks first, take one free ground-truth box each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config.method import BoxSegConfig
from boxseg.ops.boxes import box_area, box_iou
from boxseg.ops.detections import choose_detections
from boxseg.structures import Batch, Candidates, MaskFrame, MaskNetwork, RawDetections
from boxseg.teacher.enlarge import enlarge, masks_at_once
from boxseg.teacher.quality import mask_confidence
from boxseg.teacher.view import mask_frame, whole_masks


def one_per_box(
    network: MaskNetwork,
    predictions: Any,
    detections: RawDetections,
    batch: Batch,
    view: Batch,
    image: int,
    config: BoxSegConfig,
) -> Candidates:
    """Candidates of one image, at most one for each box.

    Detections choose in the order of sqrt(score x mask confidence).

    Args:
        network: The teacher.
        predictions: What it gave for the view.
        detections: Those of the image, before NMS.
        batch: Its grid is that of the masks.
        view: What the teacher saw.
        image: Which image of both.
        config: `qam.iou_thr` and `qam.mask_thr`, `teacher.nms_overwrite`, `fcos.nms_thr` and `fcos.topk` count.

    Source: BoxTeacher (arXiv 2210.05174); `docs/method.md#one-detection-per-box`.
    """
    qam, frame = config.qam, mask_frame(batch, view, image, config.qam)
    best = choose_detections(detections, config.fcos)
    # Cut to the image, as boxes are in predictions.
    best = replace(best, boxes=clip_boxes_to_image(best.boxes, view.sizes[image]))
    best = best.take(box_area(best.boxes) > 0)
    probs = whole_masks(network, predictions, best.handle, batch, view, image, frame)
    confidence = _confidence(probs, frame, qam.mask_thr)
    rank = (best.scores * confidence).sqrt().argsort(descending=True, stable=True)
    iou = box_iou(best.boxes, view.boxes[image])  # (P, N)
    index, box_index = match_greedily(
        iou, rank, iou_thr=qam.iou_thr, overwrite=config.teacher.nms_overwrite
    )
    return Candidates(probs[index], best.scores[index], iou[index, box_index], box_index, frame)


def _confidence(probs: Tensor, frame: MaskFrame | None, mask_thr: float) -> Tensor:
    """Mean probability inside each mask, (P,), on the pixels of the training image where there is a frame."""
    if frame is None:
        return mask_confidence(probs, mask_thr=mask_thr)
    parts = probs.split(masks_at_once(frame))
    return torch.cat([mask_confidence(enlarge(part, frame), mask_thr=mask_thr) for part in parts])


def match_greedily(
    iou: Tensor, rank: Tensor, *, iou_thr: float, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """Give each detection in turn the free box that it overlaps most, if by at least `iou_thr`.

    Args:
        iou: Float (P, N), detections as NMS left them, best score first.
        rank: int64 (P,), detections in the order in which they choose.
        iou_thr: Least IoU.
        overwrite: A box that detection 0 has taken stays free for later ones, as in the reference.

    Returns:
        `detection_index` and `box_index`, int64 (C,), sorted by box.
    """
    # Each choice depends on the ones before: done on the host, at most 100 small rows and one read from the device.
    table = iou.cpu().clone()
    detection_of_box: dict[int, int] = {}
    for detection in rank.tolist() if table.shape[1] else []:
        box = int(table[detection].argmax())
        if float(table[detection, box]) >= iou_thr:
            detection_of_box[box] = detection
            if detection > 0 or not overwrite:
                table[:, box] = -1  # the box is taken
    matches = sorted(detection_of_box.items())
    pairs = torch.tensor(matches, dtype=torch.int64, device=iou.device).view(-1, 2)
    return pairs[:, 1], pairs[:, 0]
