"""How good the detections of a data set are: COCO and boundary AP by class and size, or what boxes alone say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from boxseg.coco.masks import Rle, decode_part, encode_part
from boxseg.data.dataset import CocoBoxes
from boxseg.data.ground_truth import coco_ground_truth
from boxseg.evaluation.ap import CONFIDENT, CocoScores, ImageResult, coco_scores
from boxseg.ops.box_parts import own_box_iou
from boxseg.ops.boxes import box_iou

BOUNDARY_SHARE = 0.02
"""Width of the boundary region, as a share of the image's diagonal."""
ROWS = 500
"""Boxes that are compared with all detections at once; of ten thousand, all together take gigabytes."""
FOUND_IOU = 0.5
"""A box counts as found by a detection of its class whose box overlaps it this much."""


class BoundaryEval(COCOeval):
    """COCO evaluation by the smaller of mask IoU and IoU of the regions along the two outlines.

    A detection in a crowd region is ignored by its mask alone: its outline is not the region's.

    Source: Boundary IoU (arXiv 2103.16562).
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        true, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        # The same order, and as many, as the rows of the IoUs that pycocotools computed.
        scores = np.array([entry["score"] for entry in detections])
        best_first = np.argsort(-scores, kind="mergesort")
        order = best_first[: self.params.maxDets[-1]]
        boundaries = [boundary_rle(detections[index]["segmentation"]) for index in order]
        of_true = [boundary_rle(entry["segmentation"]) for entry in true]
        of_boundaries = mask_utils.iou(boundaries, of_true, [0] * len(true))
        crowds = np.array([bool(entry["iscrowd"]) for entry in true])
        return np.where(crowds, ious, np.minimum(ious, of_boundaries))


def boundary_rle(rle: Rle) -> Rle:
    """The pixels of a mask that are near its outline, run-length encoded like the mask."""
    height, width = rle["size"]
    distance = max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))
    part = decode_part(rle, (height, width))
    if not part.pixels.size:
        return rle
    # Everything around the mask counts as outside, also beyond the border of the image.
    padded = np.pad(part.pixels, 1)
    depth = ndimage.distance_transform_cdt(padded, metric="chessboard")[1:-1, 1:-1]
    near_outline = (depth > 0) & (depth <= distance)
    return encode_part(replace(part, pixels=near_outline), (height, width))


def score_detections(data: CocoBoxes, results: list[ImageResult]) -> CocoScores:
    """AP as COCO defines it, of boxes, and of masks and their boundaries where all masks are drawn."""
    return coco_scores(
        coco_ground_truth(data.source),
        results,
        image_ids=[result.image_id for result in results],
        category_ids=data.category_ids,
        of_masks={"mask": COCOeval, "boundary": BoundaryEval},
    )


def box_fit_metrics(data: CocoBoxes, results: list[ImageResult]) -> dict[str, float]:
    """What boxes alone say about masks; neither number is a mask AP.

    Returns:
        `box_recall`: share of the boxes that a confident detection finds; `box_tightness`: mean IoU of the found
        masks' own boxes with the given ones, 1 for masks that touch all four sides. What is undefined is left out.
    """
    fits: list[float] = []
    boxes = 0
    for result in results:
        index = data.index_of(result.image_id)
        given, labels = data.boxes_and_labels(index)
        boxes += len(given)
        for row, detection in enumerate(match_boxes(given, labels, result)):
            if detection is not None:
                part = decode_part(result.rles[detection], data.size(index))
                fits += own_box_iou([part], given[row : row + 1]).tolist()
    metrics = {"box_recall": len(fits) / boxes} if boxes else {}
    return metrics | ({"box_tightness": float(np.mean(fits))} if fits else {})


def match_boxes(boxes: Tensor, labels: Tensor, result: ImageResult) -> list[int | None]:
    """For each box (N, 4) with its label (N,) the confident detection that fits it best, no detection twice."""
    chosen: list[int | None] = [None] * len(boxes)
    detected = box_convert(torch.from_numpy(result.boxes_xywh).float(), "xywh", "xyxy")
    is_of_class = labels.numpy()[:, None] == result.labels  # (N, D)
    eligible = is_of_class & (result.scores >= CONFIDENT)
    overlaps = [box_iou(some, detected).numpy() for some in boxes.split(ROWS)]
    iou = np.where(eligible, np.concatenate(overlaps), np.float32(0))
    for row, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[row, column] >= FOUND_IOU:
            chosen[row] = int(column)
    return chosen
