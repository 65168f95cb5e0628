"""GrabCut as people use it by hand, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from boxseg.label.boxes import BoxLabels
from boxseg.label.cut import ROUNDS, grabcut
from boxseg.label.sources import KnownBoxes
from boxseg.mask_parts import MaskPart
from boxseg.ops.box_parts import box_part, own_box_iou
from boxseg.structures import Sample

LEAST_VIEW = 512
"""What GrabCut sees at least on each side of a box [px]: the rest of a small photograph, a piece of a camera's."""


def from_grabcut(images: Sequence[KnownBoxes]) -> list[BoxLabels]:
    """GrabCut started from each box by OpenCV; the quality is how well the mask fits its box.

    On each side of the box it sees as much again as the longer side of the box, and `LEAST_VIEW` pixels at least. The
    whole of a large photograph would take half a minute for each object.
    """
    labels = []
    for sample, _ in images:
        parts = [_grabcut_box(sample, box) for box in sample.boxes]
        fits = own_box_iou(parts, sample.boxes)
        counts = torch.ones(len(parts), dtype=torch.int64)
        labels.append(BoxLabels(parts, sample.original_size, fits, counts))
    return labels


def _grabcut_box(sample: Sample, box: Tensor) -> MaskPart:
    """The mask of a box (4,); the box itself where GrabCut finds nothing."""
    reach = max(float((box[2:] - box[:2]).max()), LEAST_VIEW)
    surroundings = torch.cat([(box[:2] - reach).floor(), (box[2:] + reach).ceil()])
    seen = box_part(surroundings, sample.original_size)
    rows, columns = seen.place
    height, width = seen.pixels.shape
    inside = box_part(box, sample.original_size).within(seen.top, seen.left, (height, width))
    piece = sample.image[:, rows, columns]
    regions = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    picture = np.ascontiguousarray(piece.permute(1, 2, 0).numpy())
    mask = grabcut(picture, regions, ROUNDS)[0] & inside
    return MaskPart(mask if mask.any() else inside, seen.top, seen.left).trimmed()
