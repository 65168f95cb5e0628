"""Where the masks of known boxes come from: a trained run, GrabCut, a file of any other tool, or the box itself."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor
from torchvision.ops import box_convert

from boxseg.data.classes import find_labels
from boxseg.data.coco import CocoBoxes, encode_segmentation
from boxseg.data.reading import is_number, is_whole, read_json
from boxseg.data.segmentations import MASKS_RULE, Problem, find_problem
from boxseg.errors import DataError
from boxseg.label import BoxLabels, fit, label_together
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import pixels_inside
from boxseg.predict import Predictor
from boxseg.structures import Sample

GRABCUT_ROUNDS = 5
MATCH_IOU = 0.5
"""A mask of a file belongs to a box that its own overlaps by this much."""

logger = logging.getLogger(__name__)

Source = Callable[[Sample, Sequence[int]], BoxLabels]
"""An image with its boxes, and the ids of their annotations -> a mask for each."""

BatchSource = Callable[[Sequence[tuple[Sample, Sequence[int]]]], list[BoxLabels]]
"""The same for several images at once."""


def one_by_one(source: Source) -> BatchSource:
    """A source that takes several images, one after the other."""
    return lambda items: [source(*item) for item in items]


def from_run(predictor: Predictor, data: CocoBoxes, *, others: Source | None = None) -> BatchSource:
    """The candidates of a trained network, with the masks of `others`, fused and scored; classes match by name."""
    labels = torch.tensor(find_labels(data.class_names, predictor.class_names), dtype=torch.int64)

    def source(items: Sequence[tuple[Sample, Sequence[int]]]) -> list[BoxLabels]:
        samples = [replace(sample, labels=labels[sample.labels]) for sample, _ in items]
        return label_together(predictor, samples, [None if others is None else others(*item) for item in items])

    return source


def from_boxes(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
    """The boxes themselves, with quality 0: what nothing but the box can tell."""
    mask = pixels_inside(sample.boxes, sample.original_size)
    return BoxLabels(mask, torch.zeros(len(mask)), torch.zeros(len(mask), dtype=torch.int64))


def from_grabcut(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
    """GrabCut started from each box by OpenCV; the quality is how well the mask fits its box."""
    import cv2  # takes a while to load

    picture = sample.image.permute(1, 2, 0).numpy()[..., ::-1].copy()
    inside = pixels_inside(sample.boxes, sample.original_size)
    masks = inside.clone()
    for row, box in enumerate(inside):
        if bool(box.all()):
            continue  # no background to learn from
        cut = torch.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).to(torch.uint8).numpy()
        cv2.setRNGSeed(0)
        colours = np.zeros((2, 1, 65))  # OpenCV fills in its two colour models
        cv2.grabCut(picture, cut, (0, 0, 0, 0), colours[0], colours[1], GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
        found = torch.from_numpy((cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)) & box
        masks[row] = found if found.any() else box
    return BoxLabels(masks, fit(masks, sample.boxes), torch.ones(len(masks), dtype=torch.int64))


def from_file(path: Path, data: CocoBoxes) -> Source:
    """Masks that another tool made, matched to the boxes: by annotation id, or else the box that fits best.

    Args:
        path: COCO instances, or a COCO list of results. The images are those of the same file name, or of the same id.
        data: What is labelled.

    The quality is the file's `quality` or `score`, or else how well the mask fits its box. Masks are not cut.

    Raises:
        DataError: the file is missing or holds something else.
    """
    masks_of = read_masks(path, data)

    def source(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
        size = sample.original_size
        entries = masks_of.get(sample.image_id, [])
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
        iou = box_iou(sample.boxes, box_convert(boxes, "xywh", "xyxy"))
        chosen = [_choose(iou[row], entries, annotation_id) for row, annotation_id in enumerate(annotation_ids)]
        masks = torch.zeros(len(chosen), *size, dtype=torch.bool)
        for row, entry in enumerate(chosen):
            if entry is not None:
                masks[row] = torch.from_numpy(mask_utils.decode(encode_entry(path, entry, size))).bool()
        quality = fit(masks, sample.boxes)
        for row, entry in enumerate(chosen):
            told = None if entry is None else entry.get("quality", entry.get("score"))
            if isinstance(told, int | float):
                quality[row] = min(max(float(told), 0.0), 1.0)
        return BoxLabels(masks, quality, torch.tensor([entry is not None for entry in chosen], dtype=torch.int64))

    return source


def read_masks(path: Path, data: CocoBoxes) -> dict[int, list[dict[str, Any]]]:
    """Entries of COCO instances or results that have a mask, with a box each, by image id of the data.

    Raises:
        DataError: the file is missing or holds something else, or none of its masks is for an image of the data.
    """
    content = read_json(path, MASKS_RULE)
    entries, images = content, None
    if isinstance(content, dict):
        entries, images = content.get("annotations"), content.get("images")
    if not isinstance(entries, list):
        raise DataError(f"{path}: has no list of annotations; {MASKS_RULE} (name another file)")
    ours = _ids_of_images(path, images, data) if images else {data.image_id(index): index for index in range(len(data))}
    masks_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    foreign = 0
    for number, entry in enumerate(entries):
        problem = _entry_problem(entry)
        if problem is not None:
            raise DataError(f"{path}: entry {number} {problem[0]}; {problem[1]} (correct or remove it)")
        index = ours.get(entry["image_id"])
        if index is None:
            foreign += 1
        elif entry.get("segmentation"):
            box = list(map(float, entry.get("bbox") or _box_of(path, entry, data.size(index))))
            masks_of[data.image_id(index)].append(entry | {"bbox": box})
    if not masks_of:
        told = f"has no mask for any image of {data.source.annotations}"
        how = "same file names" if images else "same image ids"
        raise DataError(f"{path}: {told}; {MASKS_RULE}, for images of the {how} (name the file made for these images)")
    if foreign and not images:
        logger.warning("%s: %d of %d entries are for other images than those listed", path, foreign, len(entries))
    return masks_of


def _ids_of_images(path: Path, images: Any, data: CocoBoxes) -> dict[int, int]:
    """Image id of a file of masks -> index in the data of the same image: the same name, or the same file."""
    index_of = {data.file_name(index): index for index in range(len(data))}
    folder = data.source.images.absolute()
    found = {}
    for number, image in enumerate(images if isinstance(images, list) else [None]):
        if not isinstance(image, dict) or not is_whole(image.get("id")) or not isinstance(image.get("file_name"), str):
            told = f"images[{number}] has no whole number `id` and text `file_name`"
            raise DataError(f"{path}: {told}; {MASKS_RULE} (correct the file)")
        name = image["file_name"]
        same_file = os.path.relpath(os.path.abspath(name), folder)  # noqa: PTH100 - links are kept
        index = index_of.get(name, index_of.get(same_file))
        if index is not None:
            found[image["id"]] = index
    return found


def _entry_problem(entry: Any) -> Problem | None:
    """What keeps an entry from being used: the value found and the rule."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}", "entries are objects"
    for key in ("image_id", "category_id"):
        if not is_whole(entry.get(key)) and (key in entry or key == "image_id"):
            return f"has {key} {entry.get(key)!r:.40}", "ids are whole numbers, those of the annotation file"
    for key in ("score", "quality"):
        if key in entry and not is_number(entry[key]):
            return f"has {key} {entry[key]!r:.40}", f"a {key} is a finite number"
    bbox = entry.get("bbox")
    if bbox and (not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox))):
        return f"has bbox {bbox!r:.80}", "a bbox is the four numbers x, y, width, height"
    return find_problem(entry["segmentation"]) if entry.get("segmentation") else None


def _box_of(path: Path, entry: dict[str, Any], size: tuple[int, int]) -> list[float]:
    return mask_utils.toBbox(encode_entry(path, entry, size)).tolist()


def _choose(iou: Tensor, entries: list[dict[str, Any]], annotation_id: int) -> dict[str, Any] | None:
    """The entry of the annotation, or else the one whose box overlaps most, if by half."""
    fitting = [(float(overlap), entry) for overlap, entry in zip(iou, entries, strict=True) if overlap >= MATCH_IOU]
    own = [pair for pair in fitting if pair[1].get("id") == annotation_id]
    return max(own or fitting, key=lambda pair: pair[0], default=(0.0, None))[1]


def encode_entry(path: Path, entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Mask of an entry that `read_masks` gave, of an image of (height, width), run-length encoded.

    Raises:
        DataError: it is made for another size; names the entry.
    """
    try:
        return encode_segmentation(entry["segmentation"], size)
    except DataError as error:
        raise DataError(f"{path}: the mask of annotation {entry.get('id')!r:.40} {error}") from error
