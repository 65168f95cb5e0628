"""Known boxes in, masks out: for every box the network's candidates are ranked, fused and scored by QAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.coco.masks import MaskPart
from boxseg.errors import ShapeError
from boxseg.label.maps import UNKNOWN, CloseUp, SoftMask, close_up, find_soft_masks
from boxseg.label.outlines import find_outline
from boxseg.label.quality import CLASH
from boxseg.ops.boxes import box_area, box_iou
from boxseg.ops.masks import tight_boxes
from boxseg.predict.predictor import Predictor, as_image
from boxseg.structures import Sample

LABEL_VERSION = 4
"""Raise it where the same source and boxes give other masks or qualities: labels of two versions are not mixed."""


@dataclass(frozen=True)
class BoxLabels:
    """Masks for the known boxes of one image."""

    mask: Tensor
    """Bool (N, height, width), pixels of the image, inside the box; empty only for a box without area."""
    quality: Tensor
    """Float (N,) in [0, 1]: the IoU to expect with a mask drawn by hand, see `boxseg.label.quality`, less what other
    masks claim of it; 0 where the mask is the box itself for want of another, or empty."""
    num_candidates: Tensor
    """int64 (N,): detections that were fused, of the close-up and its mirror image; 0 where the network found nothing,
    so that place, colours and edges alone made the mask."""

    def part(self, row: int) -> MaskPart:
        """The mask of a box, cut to its pixels."""
        return MaskPart(self.mask[row].numpy()).trimmed()


def label_boxes(
    predictor: Predictor,
    image: str | Path | Tensor | np.ndarray,
    boxes: Tensor,
    labels: Tensor | None = None,
    *,
    others: BoxLabels | None = None,
) -> BoxLabels:
    """The best mask for each known box of an image, and its quality.

    ```python
    predictor = Predictor("runs/mine/20261122-171500-k3f9")
    found = label_boxes(predictor, "street.jpg", torch.tensor([[40.0, 12.0, 96.0, 180.0]]))
    print(found.mask[0].sum(), found.quality[0])
    ```

    Args:
        predictor: A trained network.
        image: File, uint8 tensor (3, h, w) or uint8 array (h, w, 3), RGB.
        boxes: Float (N, 4), x1 y1 x2 y2 in pixels of the image.
        labels: int64 (N,), indices into `predictor.class_names`; -1, or None for all boxes: any class.
        others: Masks of another tool for the same boxes; each that is not empty joins the fusion as one more candidate.
            Where colours alone tell the object (`boxseg.label.cut`), neither they nor the network are heard.

    Returns:
        One mask per box. A box that no candidate fits gets a mask all the same: of another class, then from the
        detections nearest to it however weak, then from place, colours and edges alone.

    Raises:
        DataError: the file is missing or cannot be read.
        ShapeError: image, boxes or labels have another shape.

    Source: BoxSeg (arXiv 2504.05137), QAM with the user's boxes as the known truth; `docs/method.md#labelling`.
    """
    image = as_image(image)
    labels = torch.full((len(boxes),), UNKNOWN) if labels is None else labels
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeError(
            f"boxes {tuple(boxes.shape)}, labels {tuple(labels.shape)}; (N, 4) and (N,) are needed"
        )
    size = (image.shape[1], image.shape[2])
    sample = Sample(
        image, clip_boxes_to_image(boxes.float(), size), labels, image_id=-1, original_size=size
    )
    return label_together(predictor, [sample], [others])[0]


def label_together(
    predictor: Predictor, samples: Sequence[Sample], others: Sequence[BoxLabels | None]
) -> list[BoxLabels]:
    """`label_boxes` for several images at once, which saves time on a GPU; what a box gets depends on it alone."""
    rows = [(box_area(each.boxes) > 0).nonzero()[:, 0].tolist() for each in samples]
    close_ups = [
        [_close_up(predictor, sample, row, other) for row in of_sample]
        for sample, of_sample, other in zip(samples, rows, others, strict=True)
    ]
    soft_masks = iter(
        find_soft_masks(predictor, [each for of_sample in close_ups for each in of_sample])
    )
    return [
        _assemble(sample, of_sample, [(each, next(soft_masks)) for each in looked_at])
        for sample, of_sample, looked_at in zip(samples, rows, close_ups, strict=True)
    ]


def _close_up(predictor: Predictor, sample: Sample, row: int, others: BoxLabels | None) -> CloseUp:
    made = close_up(predictor, sample, row)
    if others is None or not bool(others.mask[row].any()):
        return made
    own_fit = float(fit(others.mask[row : row + 1], sample.boxes[row : row + 1])[0])
    return replace(made, other=(others.mask[row], float(others.quality[row]), own_fit))


def _assemble(
    sample: Sample, rows: Sequence[int], found: Sequence[tuple[CloseUp, SoftMask]]
) -> BoxLabels:
    """The masks of an image from the maps of its close-ups."""
    masks = torch.zeros(len(sample.boxes), *sample.image.shape[1:], dtype=torch.bool)
    quality, counts = torch.zeros(len(masks)), torch.zeros(len(masks), dtype=torch.int64)
    for row, (looked_at, soft_mask) in zip(rows, found, strict=True):
        window = looked_at.window
        rows_of, columns = window.rows_and_columns
        box = sample.boxes[row] - torch.tensor([window.left, window.top] * 2)
        outline = find_outline(
            sample.image[:, rows_of, columns].numpy(),
            box.numpy(),
            soft_mask.soft.numpy() if soft_mask.num_candidates else None,
        )
        masks[row, rows_of, columns] = torch.from_numpy(outline.mask)
        quality[row], counts[row] = outline.quality, soft_mask.num_candidates
    return BoxLabels(masks, (quality - CLASH * clash(masks, quality > 0)).clamp(min=0), counts)


def fit(masks: Tensor, boxes: Tensor) -> Tensor:
    """IoU (N,) of each mask's own box with the given one: 1 for a mask that touches all four sides from inside."""
    return box_iou(tight_boxes(masks), boxes).diagonal()


def clash(masks: Tensor, found: Tensor) -> Tensor:
    """Share (N,) of each mask (N, h, w) that another mask claims as well, of those that were found (N,).

    A pixel belongs to one object: where masks clash, one of them is wrong.
    """
    claimed = (masks & found[:, None, None]).sum(dim=0) > 1
    return (masks & claimed).sum(dim=(1, 2)) * found / masks.sum(dim=(1, 2)).clamp(min=1)
