"""How good the detections of a data set are: COCO and boundary AP by class and size, or what boxes alone can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from boxseg.data.classes import ABSENT, find_labels, require_shared_class
from boxseg.data.coco import CocoBoxes, coco_ground_truth
from boxseg.engine.evaluate import CONFIDENT, CocoScores, ImageResult, coco_scores, encode_detections
from boxseg.engine.pictures import decode_masks
from boxseg.errors import DataError
from boxseg.label_sources import encode_entry, read_masks
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import tight_boxes
from boxseg.predict import Predictor

BOUNDARY_SHARE = 0.02
"""Width of the boundary region, as a share of the image's diagonal."""
FOUND_IOU = 0.5
"""A box counts as found by a detection of its class whose box overlaps it this much."""


class BoundaryEval(COCOeval):
    """COCO evaluation by the smaller of mask IoU and IoU of the regions along the two outlines.

    Source: Boundary IoU (arXiv 2103.16562).
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        true, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-each["score"] for each in found], kind="mergesort")[: self.params.maxDets[-1]]
        boundaries = [boundary_rle(found[index]["segmentation"]) for index in order]
        crowds = [int(each["iscrowd"]) for each in true]
        return np.minimum(
            ious, mask_utils.iou(boundaries, [boundary_rle(each["segmentation"]) for each in true], crowds)
        )


def boundary_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """The pixels of a mask that are near its outline, run-length encoded like the mask."""
    height, width = rle["size"]
    distance = max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))
    mask = mask_utils.decode(rle)
    place = ndimage.find_objects(mask)
    if not place:
        return rle
    part = np.pad(mask[place[0]], 1)
    depth = ndimage.distance_transform_cdt(part, metric="chessboard")
    boundary = np.zeros_like(mask)
    boundary[place[0]] = ((depth > 0) & (depth <= distance))[1:-1, 1:-1]
    return mask_utils.encode(np.asfortranarray(boundary))


def find_objects(predictor: Predictor, data: CocoBoxes) -> Iterator[ImageResult]:
    """Detections of every image of a data set, in the labels of the data; classes are matched by name.

    Raises:
        ConfigError: no class of the network is one of the data.
        DataError: an image cannot be read.
    """
    require_shared_class(predictor.class_names, data.class_names, data.source.annotations)
    labels = np.array(find_labels(predictor.class_names, data.class_names))
    for index in range(len(data)):
        result = encode_detections(predictor([data[index].image])[0])
        mapped = labels[result.labels]
        kept = np.flatnonzero(mapped != ABSENT)
        yield ImageResult(
            data.image_id(index),
            result.boxes_xywh[kept],
            result.scores[kept],
            mapped[kept],
            [result.rles[row] for row in kept.tolist()],
        )


def read_objects(path: Path, data: CocoBoxes) -> list[ImageResult]:
    """Detections that a file holds, COCO instances or results; the score is `score`, else `quality`, else 1.

    Raises:
        DataError: the file has no masks for the data's images, or a class that the data has not.
    """
    masks_of = read_masks(path, data)
    label_of = {category_id: label for label, category_id in enumerate(data.category_ids)}
    results = []
    for index in range(len(data)):
        entries = masks_of.get(data.image_id(index), [])
        unknown = [each for each in entries if each.get("category_id") not in label_of]
        if unknown:
            told = f"category id {unknown[0].get('category_id')}, which {data.source.annotations} has not"
            raise DataError(f"{path}: an entry has {told}; both need the same categories")
        rles = [encode_entry(path, each, data.size(index)) for each in entries]
        scores = [float(each.get("score", each.get("quality", 1.0))) for each in entries]
        boxes = np.array([each["bbox"] for each in entries], dtype=np.float64).reshape(-1, 4)
        labels = np.array([label_of[each["category_id"]] for each in entries], dtype=np.int64)
        results.append(ImageResult(data.image_id(index), boxes, np.array(scores), labels, rles))
    return results


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
    """What boxes alone can tell about masks; neither is a mask AP.

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
        for row, found in enumerate(match_boxes(given, labels, result)):
            if found is not None:
                masks = decode_masks(result, [found], data.size(index))
                fits.append(float(box_iou(tight_boxes(masks), given[row : row + 1])[0, 0]))
    metrics = {"box_recall": len(fits) / boxes} if boxes else {}
    return metrics | ({"box_tightness": float(np.mean(fits))} if fits else {})


def mask_agreement(data: CocoBoxes, results: list[ImageResult], others: list[ImageResult]) -> float | None:
    """Mean IoU of the masks that two sets of detections give the boxes that both find; None if there is no such box."""
    ious: list[float] = []
    by_image = {result.image_id: result for result in others}
    for result in results:
        other = by_image.get(result.image_id)
        given, labels = data.boxes_and_labels(data.index_of(result.image_id))
        if other is not None:
            pairs = zip(match_boxes(given, labels, result), match_boxes(given, labels, other), strict=True)
            both = [(here, there) for here, there in pairs if here is not None and there is not None]
            ious += [float(mask_utils.iou([result.rles[here]], [other.rles[there]], [0])[0, 0]) for here, there in both]
    return float(np.mean(ious)) if ious else None


def match_boxes(boxes: Tensor, labels: Tensor, result: ImageResult) -> list[int | None]:
    """For each box (N, 4) with its label (N,) the confident detection that fits it best, no detection twice."""
    chosen: list[int | None] = [None] * len(boxes)
    found = box_convert(torch.from_numpy(result.boxes_xywh).float(), "xywh", "xyxy")
    eligible = (labels.numpy()[:, None] == result.labels) & (result.scores >= CONFIDENT)
    iou = np.where(eligible, box_iou(boxes, found).double().numpy(), 0.0)
    for row, column in zip(*linear_sum_assignment(-iou), strict=True):
        if iou[row, column] >= FOUND_IOU:
            chosen[row] = int(column)
    return chosen
