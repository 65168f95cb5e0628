"""Where the masks of known boxes come from: a trained run, a file of any other tool, or the box itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor
from torchvision.ops import box_convert

from boxseg.coco.classes import ABSENT, find_labels
from boxseg.coco.entries import Entry
from boxseg.coco.masks import decode_part
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile, encode_entry, match_masks
from boxseg.errors import DataError
from boxseg.label.boxes import UNKNOWN, BoxLabels, label_together
from boxseg.mask_parts import NO_MASK
from boxseg.ops.box_parts import box_part, own_box_iou
from boxseg.ops.boxes import box_iou
from boxseg.predict import Predictor
from boxseg.structures import Sample

MATCH_IOU = 0.5
"""A mask of a file belongs to a box if the IoU of the two boxes is at least this."""
LARGEST_QUALITY = 2.0
"""A quality of a file above this must be a percentage; estimates of an IoU may be a little above 1."""
KnownBoxes = tuple[Sample, Sequence[int]]
"""An image with its boxes, and the ids of their annotations."""
Source = Callable[[Sequence[KnownBoxes]], list[BoxLabels]]
"""The boxes of some images -> a mask for each."""


def from_run(predictor: Predictor, data: CocoBoxes, *, others: Source | None = None) -> Source:
    """Masks by `label_together` from a trained network, with those of `others` as candidates; classes match by name."""
    labels_of_network = find_labels(data.class_names, predictor.class_names)
    labels = torch.tensor(
        [UNKNOWN if label == ABSENT else label for label in labels_of_network], dtype=torch.int64
    )

    def source(images: Sequence[KnownBoxes]) -> list[BoxLabels]:
        samples = [replace(sample, labels=labels[sample.labels]) for sample, _ in images]
        return label_together(predictor, samples, None if others is None else others(images))

    return source


def from_boxes(images: Sequence[KnownBoxes]) -> list[BoxLabels]:
    """The boxes themselves as masks, with quality 0; a source as it is."""
    labels = []
    for sample, _ in images:
        size, count = sample.original_size, len(sample.boxes)
        parts = [box_part(box, size) for box in sample.boxes]
        nothing = torch.zeros(count)
        labels.append(BoxLabels(parts, size, nothing, nothing.long()))
    return labels


def from_file(file: MaskFile, data: CocoBoxes) -> Source:
    """Masks that another tool made, each for one box at most: matched by class, overlap of the boxes, and id.

    The quality is the file's `quality` or `score`, or else how well the mask fits its box. Masks may reach beyond their
    box.

    Args:
        file: The masks; its images are matched to those of the data by file name, or else by id.
        data: Images and boxes that are labelled.

    Raises:
        DataError: none of its masks is for an image of the data, or their quality is not in 0 … 1.
    """
    path, masks_of = file.path, match_masks(file, data)
    largest = max(_stated_quality(entry) or 0 for entry in itertools.chain(*masks_of.values()))
    if largest > LARGEST_QUALITY:
        raise DataError(
            f"{path}: an entry has quality or score {largest:g}; a quality is a share from 0 to 1 "
            "(divide percentages by 100)"
        )

    def label(sample: Sample, annotation_ids: Sequence[int]) -> BoxLabels:
        size = sample.original_size
        entries = masks_of.get(sample.image_id, [])
        bboxes = [entry["bbox"] for entry in entries]
        boxes_xywh = torch.tensor(bboxes, dtype=torch.float32).reshape(-1, 4)
        iou = box_iou(sample.boxes, box_convert(boxes_xywh, "xywh", "xyxy"))
        chosen = _pair(iou, sample.labels, annotation_ids, entries)
        parts = [
            NO_MASK if entry is None else decode_part(encode_entry(path, entry, size), size)
            for entry in chosen
        ]
        quality = own_box_iou(parts, sample.boxes)
        for row, entry in enumerate(chosen):
            stated = None if entry is None else _stated_quality(entry)
            if stated is not None:
                quality[row] = min(max(stated, 0.0), 1.0)
        counts = torch.tensor([entry is not None for entry in chosen], dtype=torch.int64)
        return BoxLabels(parts, size, quality, counts)

    return lambda images: [label(*known) for known in images]


def _stated_quality(entry: Entry) -> float | None:
    stated = entry.get("quality", entry.get("score"))
    return None if stated is None else float(stated)


def _pair(
    iou: Tensor, labels: Tensor, annotation_ids: Sequence[int], entries: list[Entry]
) -> list[Entry | None]:
    """For each box its entry, or None; no entry serves two boxes.

    The boxes of a pair have an IoU of `MATCH_IOU` at least. Pairs of one class are formed first, then those that
    overlap most. Having the same annotation id only decides between overlaps that are about equal, as ids may agree by
    chance.
    """
    pairs = []
    for row, column in (iou >= MATCH_IOU).nonzero().tolist():
        entry, overlap = entries[column], float(iou[row, column])
        has_class = entry["label"] == int(labels[row])
        has_id = entry.get("id") == annotation_ids[row]
        pairs.append(((has_class, round(overlap, 1), has_id, overlap), row, column))
    chosen: list[Entry | None] = [None] * len(annotation_ids)
    used = set()
    for _, row, column in sorted(pairs, key=itemgetter(0), reverse=True):
        if chosen[row] is None and column not in used:
            chosen[row] = entries[column]
            used.add(column)
    return chosen
