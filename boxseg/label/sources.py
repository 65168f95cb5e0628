"""Where the masks of known boxes come from: a trained run, GrabCut, a file of any other tool, or the box itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from boxseg.coco.classes import ABSENT, find_labels
from boxseg.coco.entries import Entry
from boxseg.coco.masks import decode_part
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import encode_entry, read_masks
from boxseg.label.boxes import UNKNOWN, BoxLabels, label_together
from boxseg.label.cut import ROUNDS, grabcut, sharpen, shrink
from boxseg.label.parts import Rectangle, box_fits, box_part, inside_window, window_around
from boxseg.mask_parts import NO_MASK, MaskPart
from boxseg.ops.boxes import box_iou
from boxseg.ops.pixels import BoolArray, FloatArray, pixels_of_box, resize
from boxseg.predict import Predictor
from boxseg.structures import Sample

MATCH_IOU = 0.5
"""A mask of a file belongs to a box that its own overlaps by this much."""
LEAST_VIEW = 512
"""What GrabCut sees at least on each side of a box [px]: the rest of a small photograph."""
LARGE_VIEW = 400_000
"""A view of more pixels takes GrabCut a second or more. It is made smaller, which costs no IoU: on boxes of
photographs, as they are and enlarged four times, it gained some."""
LEAST_VIEW_OF_LARGE = 128
"""As `LEAST_VIEW`, where that would be a large view [px]."""
CUT_PIXELS = 75_000
"""Pixels that a large view is shrunk to."""
SHARP_PIXELS = 262_144
"""Pixels of the box that the outline of a mask from a large view is found again with."""

Source = Callable[[Sample, Sequence[int]], BoxLabels]
"""An image with its boxes, and the ids of their annotations -> a mask for each."""

BatchSource = Callable[[Sequence[tuple[Sample, Sequence[int]]]], Sequence[BoxLabels]]
"""The same for several images at once."""


def one_by_one(source: Source) -> BatchSource:
    """A source that takes several images, one after the other."""
    return lambda items: [source(*item) for item in items]


def from_run(
    predictor: Predictor, data: CocoBoxes, *, others: Source | None = None
) -> BatchSource:
    """The candidates of a trained network, with the masks of `others`, fused and scored; classes match by name."""
    labels_of_network = find_labels(data.class_names, predictor.class_names)
    labels = torch.tensor(
        [UNKNOWN if label == ABSENT else label for label in labels_of_network], dtype=torch.int64
    )

    def source(items: Sequence[tuple[Sample, Sequence[int]]]) -> list[BoxLabels]:
        samples = [replace(sample, labels=labels[sample.labels]) for sample, _ in items]
        return label_together(
            predictor, samples, [None if others is None else others(*item) for item in items]
        )

    return source


def from_boxes(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
    """The boxes themselves, with quality 0: what nothing but the box can tell."""
    parts = [box_part(box, sample.original_size) for box in sample.boxes]
    return BoxLabels(
        parts,
        sample.original_size,
        torch.zeros(len(parts)),
        torch.zeros(len(parts), dtype=torch.int64),
    )


def from_grabcut(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
    """GrabCut started from each box by OpenCV; the quality is how well the mask fits its box.

    On each side of the box it sees as much again as the longer side of the box, and `LEAST_VIEW` pixels at least. What
    is large is seen with fewer pixels first, and then the outline alone with more.
    """
    parts = [_grabcut_box(sample, box) for box in sample.boxes]
    return BoxLabels(
        parts,
        sample.original_size,
        box_fits(parts, sample.boxes),
        torch.ones(len(parts), dtype=torch.int64),
    )


def _grabcut_box(sample: Sample, box: Tensor) -> MaskPart:
    """The mask of a box (4,); the box itself where GrabCut finds nothing."""
    window = _view(sample, box, LEAST_VIEW)
    is_large = window[2] * window[3] > LARGE_VIEW
    if is_large:
        window = _view(sample, box, LEAST_VIEW_OF_LARGE)
    top, left, height, width = window
    inside = inside_window(box, window)
    piece = sample.image[:, top : top + height, left : left + width]
    picture = np.ascontiguousarray(piece.permute(1, 2, 0).numpy())
    if is_large:
        in_window = box - torch.tensor([left, top] * 2)
        mask = _cut_large(picture, in_window.numpy())
    else:
        mask = _cut(picture, inside)[0]
    mask &= inside
    return MaskPart(mask if mask.any() else inside, top, left).trimmed()


def _view(sample: Sample, box: Tensor, least: int) -> Rectangle:
    """The window of the image that GrabCut sees of a box (4,), with `least` pixels or more on each side of it."""
    reach = max(float((box[2:] - box[:2]).max()), least)
    surroundings = torch.cat([box[:2] - reach, box[2:] + reach])
    return window_around(surroundings, None, sample.original_size)


def _cut(picture: NDArray[np.uint8], inside: BoolArray) -> tuple[BoolArray, FloatArray | None]:
    """GrabCut started from the pixels (h, w) inside a box; as `grabcut` gives it."""
    regions = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    return grabcut(picture, regions, ROUNDS)


def _cut_large(picture: NDArray[np.uint8], box: FloatArray) -> BoolArray:
    """The mask (h, w) of a box (4,) in a large picture (h, w, 3): found with few pixels, its outline with more."""
    size = (picture.shape[0], picture.shape[1])
    few, box_in_few = shrink(picture, box, _scale_to(CUT_PIXELS, size))
    inside = pixels_of_box(box_in_few, (few.shape[0], few.shape[1]))
    mask, models = _cut(few, inside)
    mask &= inside
    if models is not None and mask.any():
        side_x, side_y = (box[2:] - box[:2]).tolist()
        scale = max(_scale_to(SHARP_PIXELS, (side_y, side_x)), _scale_to(CUT_PIXELS, size))
        mask = sharpen(mask, models, *shrink(picture, box, scale))
    return resize(mask.astype(np.float32), size) > 0.5


def _scale_to(pixels: int, size: tuple[float, float]) -> float:
    """The scale, 1 at most, that leaves so many pixels of a (height, width)."""
    return min(1.0, math.sqrt(pixels / (size[0] * size[1])))


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
        bboxes = [entry["bbox"] for entry in entries]
        boxes_xywh = torch.tensor(bboxes, dtype=torch.float32).reshape(-1, 4)
        iou = box_iou(sample.boxes, box_convert(boxes_xywh, "xywh", "xyxy"))
        # For each box its entry, or None.
        chosen = [
            _choose(iou[row], entries, annotation_id)
            for row, annotation_id in enumerate(annotation_ids)
        ]
        parts = [
            NO_MASK if entry is None else decode_part(encode_entry(path, entry, size), size)
            for entry in chosen
        ]
        quality = box_fits(parts, sample.boxes)
        for row, entry in enumerate(chosen):
            told = None if entry is None else entry.get("quality", entry.get("score"))
            # Some tools write null, others percents.
            if isinstance(told, int | float):
                quality[row] = min(max(float(told), 0.0), 1.0)
        counts = torch.tensor([entry is not None for entry in chosen], dtype=torch.int64)
        return BoxLabels(parts, size, quality, counts)

    return source


def _choose(iou: Tensor, entries: list[Entry], annotation_id: int) -> Entry | None:
    """The entry of the annotation, or else the one whose box overlaps most, if by half."""
    best: Entry | None = None
    best_rank = (False, 0.0)
    for overlap, entry in zip(iou.tolist(), entries, strict=True):
        # An id may be the same by chance, so such an entry has to overlap as well.
        rank = (entry.get("id") == annotation_id, overlap)
        if overlap >= MATCH_IOU and rank > best_rank:
            best, best_rank = entry, rank
    return best
