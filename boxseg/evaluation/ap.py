"""COCO box and mask AP of a network on a data set, and what its masks look like in numbers."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from boxseg.coco.entries import Entry
from boxseg.coco.masks import Rle, encode_part
from boxseg.engine.distributed import gather_objects
from boxseg.structures import Detections

CONFIDENT = 0.3
"""Score from which a detection counts where confident ones do; the others count for AP only."""

COCO_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Order of the first entries of pycocotools' summary."""


@dataclass(frozen=True)
class ImageResult:
    """Detections of one image in COCO's terms; masks are run-length encoded, so a data set fits in memory."""

    image_id: int
    boxes_xywh: np.ndarray
    """Float (D, 4), pixels of the original image."""
    scores: np.ndarray
    labels: np.ndarray
    rles: list[Rle]


@dataclass(frozen=True)
class CocoScores:
    """How good detections are by COCO's rules."""

    metrics: dict[str, float]
    """`mask_ap`, `mask_ap50`, … `box_ap` … in [0, 1], and `best_score`; what has no ground truth is left out."""
    precision: dict[str, NDArray[np.float64]]
    """`mask` and `box`, as far as drawn: (10 IoUs from 0.5, 101 recalls, classes), -1 where undefined."""
    image_ap: dict[int, float]
    """AP of each image that has objects, by masks where they are drawn, by boxes elsewhere."""

    def of_class(self, label: int) -> dict[str, float]:
        """`mask_ap`, `mask_ap50`, `mask_ap75`, `box_ap` … of one class; what has no ground truth is left out."""
        metrics = {}
        for kind, precision in self.precision.items():
            of_label = precision[:, :, label]
            # The rows are IoUs from 0.5 on in steps of 0.05.
            for name, part in (("ap", of_label), ("ap50", of_label[0]), ("ap75", of_label[5])):
                defined = part[part > -1]
                if defined.size:
                    metrics[f"{kind}_{name}"] = float(defined.mean())
        return metrics


@dataclass(frozen=True)
class Evaluation:
    """What a network found, and how good that is."""

    metrics: dict[str, float]
    """Those of `scores` as `val/mask_ap` …, with `health/mask_fill` and `health/box_likeness`."""
    results: list[ImageResult]
    """Of all images, over all processes."""
    scores: CocoScores


def measure_detections(
    own_results: list[ImageResult],
    *,
    ground_truth: COCO,
    image_ids: list[int],
    category_ids: Sequence[int],
) -> Evaluation:
    """Score what the processes found together.

    Args:
        own_results: Detections of this process's share of the images.
        ground_truth: Annotations with drawn masks.
        image_ids: All images to score, over all processes.
        category_ids: COCO category id of each label.

    Returns:
        All that was found, and metrics: those of COCO, of boxes `box_ap` alone, and of confident masks, where there are
        any, `mask_fill`, the mean share of its box that a mask fills, and `box_likeness`, the mean of the smaller over
        the larger of the two areas, 1 where all masks are their boxes. Their names begin with a group, whose metrics
        the tracking server shows side by side.
    """
    results = [result for of_process in gather_objects(own_results) for result in of_process]
    scores = coco_scores(ground_truth, results, image_ids=image_ids, category_ids=category_ids)
    metrics = {}
    for name, value in scores.metrics.items():
        if name == "box_ap" or not name.startswith("box_"):
            metrics[f"val/{name}"] = value
    ratios = np.concatenate([np.zeros(0), *map(area_ratios, results)])  # there may be no result
    if len(ratios):
        metrics["health/mask_fill"] = float(ratios.clip(max=1).mean())
        likeness = np.minimum(ratios, 1 / ratios.clip(min=1e-9))
        metrics["health/box_likeness"] = float(likeness.mean())
    return Evaluation(metrics, results, scores)


def area_ratios(result: ImageResult) -> np.ndarray:
    """Area of each confident mask over that of its box, (≤ D,); above 1 where a mask leaves its box."""
    areas = np.asarray(mask_utils.area(result.rles), dtype=np.float64).reshape(-1)  # [] if none
    box_areas = result.boxes_xywh[:, 2:].prod(axis=1)
    ratios: np.ndarray = areas / box_areas.clip(min=1)
    return ratios[result.scores >= CONFIDENT]


def encode_detections(detections: Detections) -> ImageResult:
    """Detections as arrays and run-length encoded masks on the host."""
    boxes = box_convert(detections.boxes.cpu().double(), "xyxy", "xywh").numpy()
    rles = [encode_part(part, detections.size) for part in detections.parts]
    return ImageResult(
        image_id=detections.image_id,
        boxes_xywh=boxes,
        scores=detections.scores.cpu().numpy(),
        labels=detections.labels.cpu().numpy(),
        rles=rles,
    )


def coco_scores(
    ground_truth: COCO,
    results: list[ImageResult],
    *,
    image_ids: list[int],
    category_ids: Sequence[int],
    of_masks: Mapping[str, type[COCOeval]] = MappingProxyType({"mask": COCOeval}),
) -> CocoScores:
    """Box and mask AP as COCO defines them.

    What has no ground truth is left out, since its AP is undefined: sizes, and masks where any box lacks one.
    `of_masks` are the kinds of mask AP.
    """
    metrics: dict[str, float] = {}
    precision = {}
    image_ap: dict[int, float] = {}
    kinds = [("box", "bbox", COCOeval)]
    if has_all_masks(ground_truth, image_ids):
        # Masks first: they are what the AP of single images is taken from, where they are drawn.
        kinds = [*((prefix, "segm", evaluator) for prefix, evaluator in of_masks.items()), *kinds]
    for prefix, kind, evaluator in kinds:
        entries = coco_results(results, category_ids, kind)
        evaluation = run_coco_eval(ground_truth, entries, image_ids, kind, evaluator)
        stats = zip(COCO_STATS, evaluation.stats[: len(COCO_STATS)], strict=True)
        metrics |= {f"{prefix}_{name}": float(value) for name, value in stats if value >= 0}
        # Of objects of any area, with the most detections that pycocotools counts.
        precision[prefix] = evaluation.eval["precision"][:, :, :, 0, -1]
        image_ap = image_ap or average_precision_of_images(evaluation)
        if prefix == "box" and (score := best_score(evaluation)) is not None:
            metrics["best_score"] = score
    return CocoScores(metrics, precision, image_ap)


def average_precision_of_images(evaluation: COCOeval) -> dict[int, float]:
    """AP of each image alone, by id: mean over its classes and over the IoUs; images without objects are left out."""
    by_class: dict[int, list[float]] = {}  # image id -> AP of each of its classes
    for matches in _matches(evaluation):
        objects = _num_objects(matches)
        if objects:
            ap = _average_precision(matches, objects)
            by_class.setdefault(matches["image_id"], []).append(ap)
    return {image_id: float(np.mean(values)) for image_id, values in by_class.items()}


def best_score(evaluation: COCOeval) -> float | None:
    """Score from which on detections are right and complete most often: the best F1 of all classes at an IoU of 0.5.

    Rounded down to two digits; None if no detection is right.
    """
    objects = 0
    scores, hits = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for matches in _matches(evaluation):
        objects += _num_objects(matches)
        counted = ~np.asarray(matches["dtIgnore"], dtype=bool)[0]  # the first IoU is 0.5
        scores.append(np.asarray(matches["dtScores"])[counted])
        hits.append(np.asarray(matches["dtMatches"])[0, counted] > 0)
    all_scores, all_hits = np.concatenate(scores), np.concatenate(hits)
    if not all_hits.any():
        return None
    best_first = np.argsort(-all_scores, kind="stable")
    found = np.arange(1, len(best_first) + 1)
    f1 = 2 * all_hits[best_first].cumsum() / (found + objects)
    return math.floor(100 * float(all_scores[best_first][f1.argmax()])) / 100


def _matches(evaluation: COCOeval) -> Iterator[dict[str, Any]]:
    """What pycocotools matched of each class in each image, of any area, where it has objects or detections."""
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    for number in range(len(evaluation.params.catIds)):
        # One list for all classes, areas and images; the first area of each class is any.
        start = number * areas * images
        yield from filter(None, evaluation.evalImgs[start : start + images])


def _num_objects(matches: dict[str, Any]) -> int:
    return int((np.asarray(matches["gtIgnore"]) == 0).sum())


def _average_precision(matches: dict[str, Any], objects: int) -> float:
    """AP of one class in one image, mean over the IoUs, from pycocotools' matches."""
    counted = ~np.asarray(matches["dtIgnore"], dtype=bool)  # (IoUs, detections), best score first
    hits = (np.asarray(matches["dtMatches"]) > 0) & counted
    precision = hits.cumsum(axis=1) / counted.cumsum(axis=1).clip(min=1)
    # As COCO has it: at each recall the best precision at this or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return float((precision * hits).sum(axis=1).mean() / objects)


def has_all_masks(ground_truth: COCO, image_ids: list[int]) -> bool:
    """Whether every annotation of the images, crowds apart, has a drawn mask."""
    annotations = ground_truth.loadAnns(ground_truth.getAnnIds(imgIds=image_ids, iscrowd=False))
    return all(annotation.get("segmentation") for annotation in annotations)


def coco_results(
    results: list[ImageResult], category_ids: Sequence[int], kind: str
) -> list[dict[str, Any]]:
    """COCO result entries of one kind; boxes and masks apart, since pycocotools takes a mask's area from its box."""
    entries = []
    for result in results:
        for row, label in enumerate(result.labels):
            entry = {"image_id": result.image_id, "category_id": category_ids[label]}
            entry["score"] = float(result.scores[row])
            if kind == "segm":
                entry["segmentation"] = result.rles[row]
            else:
                entry["bbox"] = result.boxes_xywh[row].tolist()
            entries.append(entry)
    return entries


def run_coco_eval(
    ground_truth: COCO,
    entries: list[Entry],
    image_ids: list[int],
    kind: str,
    evaluator: type[COCOeval],
) -> COCOeval:
    """pycocotools' evaluation of COCO results, summarised, without its printing; `kind` is segm or bbox."""
    with contextlib.redirect_stdout(io.StringIO()):
        if entries:
            results = ground_truth.loadRes(entries)
        else:  # which `loadRes` cannot take
            results = COCO()
            results.dataset = {
                "images": ground_truth.dataset["images"],
                "annotations": [],
                "categories": [],
            }
            results.createIndex()
        evaluation = evaluator(ground_truth, results, iouType=kind)
        # Images without a detection count as well.
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
