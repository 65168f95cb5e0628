"""The detections of a data set that are to be measured: those of a run, or of a file of results."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_convert

from boxseg.coco.classes import ABSENT, SHOWN, find_labels, require_shared_class
from boxseg.coco.entries import Entry
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile, encode_entry, labels_of_file, match_masks
from boxseg.errors import DataError
from boxseg.evaluation.ap import ImageResult, encode_detections
from boxseg.evaluation.scoring import FOUND_IOU, ROWS
from boxseg.ops.boxes import box_iou
from boxseg.predict import Predictor

SAME_IN = ("image_id", "category_id", "score", "quality")
"""Detections with the same box that agree in these keys are one detection."""

logger = logging.getLogger(__name__)


def find_objects(predictor: Predictor, data: CocoBoxes) -> Iterator[ImageResult]:
    """Detections of every image of a data set, in the labels of the data; classes are matched by name.

    Raises:
        ConfigError: see `match_classes`.
        DataError: an image cannot be read.
    """
    labels = match_classes(predictor, data)
    for index in range(len(data)):
        result = encode_detections(predictor([data[index].image])[0])
        mapped = labels[result.labels]
        known = np.flatnonzero(mapped != ABSENT)
        yield ImageResult(
            data.image_id(index),
            result.boxes_xywh[known],
            result.scores[known],
            mapped[known],
            [result.rles[row] for row in known.tolist()],
        )


def match_classes(predictor: Predictor, data: CocoBoxes) -> NDArray[np.int64]:
    """Label of the data for each class of a network, -1 where it has none; classes that are not in both are logged.

    Raises:
        ConfigError: no class of the network is one of the data.
    """
    place, names = data.source.annotations, predictor.class_names
    # Exactly the classes that were trained on, even if two of them have the same name.
    if (tuple(predictor.category_ids), tuple(names)) == (data.category_ids, data.class_names):
        return np.arange(len(names))
    require_shared_class(names, data.class_names, place)
    labels = find_labels(names, data.class_names)
    _warn_of_classes("the network", names, labels, data)
    return np.array(labels, dtype=np.int64)


def _warn_of_classes(
    whose: str, names: Sequence[str], labels: Sequence[int], data: CocoBoxes
) -> None:
    """Log which classes of the data the network or file lacks, and which of its own the data lacks."""
    place = data.source.annotations
    unknown = [name for label, name in enumerate(data.class_names) if label not in labels]
    foreign = [name for name, label in zip(names, labels, strict=True) if label == ABSENT]
    if unknown:
        warning = f"classes that {whose} lacks, or that share a name, count as never found"
        logger.warning("%s: %d %s: %s", place, len(unknown), warning, ", ".join(unknown[:SHOWN]))
    if foreign:
        warning = f"classes of {whose} are not in these data and are left out"
        logger.warning("%s: %d %s: %s", place, len(foreign), warning, ", ".join(foreign[:SHOWN]))


def read_objects(file: MaskFile, data: CocoBoxes) -> list[ImageResult]:
    """Detections that a file holds, COCO instances or results; the score is `score`, else `quality`, else 1.

    Raises:
        DataError: the file has no masks for the data's images, a class that the data has not, or a score for some of
            its entries only.
    """
    path, masks_of = file.path, match_masks(file, data)
    entries = [entry for group in masks_of.values() for entry in group]
    without_score = sum(_score_of(entry) is None for entry in entries)
    if 0 < without_score < len(entries):
        problem = f"{without_score} of {len(entries)} entries have neither score nor quality"
        raise DataError(f"{path}: {problem}; AP ranks all of them by it (add them, or remove all)")
    masks_of = _of_known_classes(file, data, masks_of)
    entries = [entry for group in masks_of.values() for entry in group]
    if without_score:
        problem = "no entry has a score or quality: equal scores count in the order of the file"
        logger.warning("%s: %s", path, problem)
    _warn_of_repeated(path, entries)
    results = []
    for index in range(len(data)):  # images without an entry too: nothing was found in them
        results.append(_read_image(path, data, index, masks_of.get(data.image_id(index), [])))
    _warn_of_other_classes(path, data, results)
    return results


def _of_known_classes(
    file: MaskFile, data: CocoBoxes, masks_of: dict[int, list[Entry]]
) -> dict[int, list[Entry]]:
    """The entries by image id, without those of classes that the file lists and the data has not; these are logged.

    Raises:
        DataError: an entry is of a class that neither lists, or none is of a class of the data.
    """
    names = file.class_names()
    known = {
        image_id: [entry for entry in entries if entry["label"] != ABSENT]
        for image_id, entries in masks_of.items()
    }
    for entry in itertools.chain(*masks_of.values()):
        category_id = entry.get("category_id")
        if entry["label"] == ABSENT and (category_id not in names or not any(known.values())):
            problem = f"category id {category_id}, which {data.source.annotations} lacks"
            raise DataError(f"{file.path}: an entry has {problem}; both need the same categories")
    if names:
        labels = labels_of_file(file, data)
        _warn_of_classes("the file", list(names.values()), list(labels.values()), data)
    return known


def _warn_of_repeated(path: Path, entries: Sequence[Entry]) -> None:
    """Log how many detections are repeated, as when two processes wrote the same images."""
    keys = [(*(entry.get(key) for key in SAME_IN), *entry["bbox"]) for entry in entries]
    repeated = len(keys) - len(set(keys))
    if repeated:
        warning = (
            "entries repeat another of the same image, class, score and box: they count as wrong"
        )
        logger.warning("%s: %d of %d %s", path, repeated, len(keys), warning)


def _warn_of_other_classes(path: Path, data: CocoBoxes, results: Sequence[ImageResult]) -> None:
    """Log if most objects are found as another class, or not at all: the files may count or measure differently."""
    objects = own = other = 0
    for result in results:
        boxes, labels = data.boxes_and_labels(data.index_of(result.image_id))
        detected = box_convert(torch.from_numpy(result.boxes_xywh).float(), "xywh", "xyxy")
        objects += len(boxes)
        for some, of_some in zip(boxes.split(ROWS), labels.split(ROWS), strict=True):
            covers = box_iou(some, detected).numpy() >= FOUND_IOU  # (ROWS, D)
            is_own = (covers & (of_some.numpy()[:, None] == result.labels)).any(axis=1)
            own += int(is_own.sum())
            other += int((covers.any(axis=1) & ~is_own).sum())
    if objects and not own and not other:
        what = "are found; are both files in pixels of images of the same size, with the same image ids?"
        logger.warning("%s: 0 of %d objects %s", path, objects, what)
    if other > max(own, objects / 2):
        warning = (
            "objects are only found as another class; do category ids mean the same in both files?"
        )
        logger.warning("%s: %d of %d %s", path, other, objects, warning)


def _score_of(entry: Entry) -> float | None:
    score = entry.get("score", entry.get("quality"))
    return None if score is None else float(score)


def _read_image(path: Path, data: CocoBoxes, index: int, entries: list[Entry]) -> ImageResult:
    boxes = [entry["bbox"] for entry in entries]
    scores = [1.0 if score is None else score for score in map(_score_of, entries)]
    labels = [entry["label"] for entry in entries]
    return ImageResult(
        image_id=data.image_id(index),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=np.array(scores, dtype=np.float64),
        labels=np.array(labels, dtype=np.int64),
        rles=[encode_entry(path, entry, data.size(index)) for entry in entries],
    )
