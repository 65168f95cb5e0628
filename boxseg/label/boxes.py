"""Known boxes in, masks with a quality out.

Each box gets a map from the network and an outline from that map; then pixels that two masks claim are settled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.coco.segmentations import Size
from boxseg.errors import ShapeError
from boxseg.label.claims import expect_losses, settle_claims
from boxseg.label.maps import (
    UNKNOWN,
    CloseUp,
    OtherMask,
    SoftMask,
    find_soft_masks,
    take_close_up,
)
from boxseg.label.outlines import Outline, find_outline
from boxseg.mask_parts import NO_MASK, MaskPart, place_masks
from boxseg.ops.box_parts import own_box_iou
from boxseg.ops.boxes import box_area
from boxseg.predict.predictor import Predictor, as_image
from boxseg.structures import Sample

LABEL_VERSION = 17
"""Raise it when the same source and boxes give other masks or qualities: labels of two versions are not mixed."""


@dataclass(frozen=True)
class BoxLabels:
    """Masks for the known boxes of one image."""

    parts: Sequence[MaskPart]
    """N masks, each in a rectangle around it; empty only for a box without area, and where a file has no mask."""
    size: Size
    """(height, width) of the image, pixels."""
    quality: Tensor
    """Float (N,) in [0, 1]: the IoU to expect with a mask drawn by hand, see `boxseg.label.quality`; 0 where no mask
    was found, so that the mask is the box itself or empty."""
    num_candidates: Tensor
    """int64 (N,): detections in the close-up and in its mirror image that were fused; 0 where the network found nothing
    and place, colours and edges alone made the mask."""

    @property
    def mask(self) -> Tensor:
        """Bool (N, height, width), made anew from `parts` at each call: costly for many boxes of a large image."""
        return torch.from_numpy(place_masks(self.parts, self.size))


def label_boxes(
    predictor: Predictor,
    image: str | Path | Tensor | np.ndarray,
    boxes: Tensor | np.ndarray | Sequence[Sequence[float]],
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
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
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        labels: (N,), whole numbers, indices into `predictor.class_names`; -1, or None for all boxes: any class.
        others: Masks of another tool for the same boxes; each that is not empty joins the fusion as one more candidate.
            Where colours alone tell the object (`boxseg.label.cut`), neither they nor the network are used.

    Returns:
        One mask per box. If no candidate fits a box, its mask is made from candidates of other classes; failing these,
        from the nearest detections, however weak; failing these too, from place, colours and edges alone.

    Raises:
        DataError: the file is missing or cannot be read.
        ShapeError: image, boxes or labels have another shape, a box is not finite, or a label is no class.

    Source: BoxSeg (arXiv 2504.05137), QAM with the user's boxes as the known truth; `docs/method.md#labelling`.
    """
    image = as_image(image)
    size = (image.shape[1], image.shape[2])
    rows = torch.as_tensor(boxes, dtype=torch.float32).detach()
    rows = rows if rows.numel() else rows.reshape(-1, 4)  # an empty list has no second side
    classes = torch.full((len(rows),), UNKNOWN) if labels is None else torch.as_tensor(labels)
    _check_boxes(rows, classes, len(predictor.class_names))
    sample = Sample(image, clip_boxes_to_image(rows, size), classes.long(), -1, size)
    return label_together(predictor, [sample], [others])[0]


def _check_boxes(boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse boxes and labels that a caller cannot have meant."""
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeError(
            f"boxes {tuple(boxes.shape)}, labels {tuple(labels.shape)}; (N, 4) and (N,) are needed"
        )
    for row, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        if not all(map(math.isfinite, box)):
            raise ShapeError(f"box {row} is {box}; x1 y1 x2 y2 are finite numbers of pixels")
        if label not in range(UNKNOWN, num_classes):
            raise ShapeError(
                f"label {row} is {label}; labels are indices into predictor.class_names, "
                f"0 … {num_classes - 1}, or {UNKNOWN} for any class"
            )


def label_together(
    predictor: Predictor,
    samples: Sequence[Sample],
    others: Sequence[BoxLabels | None] | None = None,
) -> list[BoxLabels]:
    """`label_boxes` for several images at once, which saves time on a GPU; each image gets what it would get alone."""
    # for each image: row of a box with an area -> its close-up
    close_ups: list[dict[int, CloseUp]] = []
    for sample, other in zip(samples, others or [None] * len(samples), strict=True):
        rows = (box_area(sample.boxes) > 0).nonzero()[:, 0].tolist()
        close_ups.append({row: _close_up(predictor, sample, row, other) for row in rows})
    all_close_ups = [close_up for by_row in close_ups for close_up in by_row.values()]
    # All boxes of all images at once, as a GPU takes hardly longer for a full batch than for one box.
    soft_masks = iter(find_soft_masks(predictor, all_close_ups))
    labels = []
    for sample, by_row in zip(samples, close_ups, strict=True):
        maps = {row: (close_up, next(soft_masks)) for row, close_up in by_row.items()}
        labels.append(_assemble(sample, maps))
    return labels


def _close_up(predictor: Predictor, sample: Sample, row: int, others: BoxLabels | None) -> CloseUp:
    """The close-up of a box, with the mask that another tool made for it, if there is one."""
    close_up = take_close_up(predictor, sample, row)
    if others is None or not others.parts[row].area:  # other tools may have no mask for a box
        return close_up
    part = others.parts[row]
    (fit,) = own_box_iou([part], sample.boxes[row : row + 1]).tolist()
    quality = float(others.quality[row])
    return replace(close_up, other=OtherMask(part, quality, fit))


def _assemble(sample: Sample, maps: dict[int, tuple[CloseUp, SoftMask]]) -> BoxLabels:
    """The masks of an image from `maps`: row of a box -> its close-up and what the network says of it."""
    count = len(sample.boxes)
    size = (sample.image.shape[1], sample.image.shape[2])
    parts = [NO_MASK] * count
    quality = torch.zeros(count)
    num_candidates = torch.zeros(count, dtype=torch.int64)
    clean: dict[int, MaskPart] = {}
    for row, (close_up, soft_mask) in maps.items():
        outline = outline_in(sample, row, close_up, soft_mask)
        window = close_up.window
        parts[row] = MaskPart(outline.mask, window.top, window.left).trimmed()
        if outline.is_clean:
            clean[row] = parts[row]
        quality[row] = outline.quality
        num_candidates[row] = soft_mask.num_candidates
    clean = settle_claims(sample.image.numpy(), sample.boxes, clean)
    losses = expect_losses(clean)
    for row, part in clean.items():
        parts[row] = part
        quality[row] = (quality[row] - losses[row]).clamp(min=0)
    return BoxLabels(parts, size, quality, num_candidates)


def outline_in(sample: Sample, row: int, close_up: CloseUp, soft_mask: SoftMask | None) -> Outline:
    """The mask of a box in the window of its close-up; `soft_mask` is what the network says about it, if anything."""
    window = close_up.window
    rows, columns = window.rows_and_columns
    boxes = (sample.boxes - torch.tensor([window.left, window.top] * 2)).numpy()
    others = np.delete(boxes, row, axis=0)
    soft = None
    # A map without candidates is zero everywhere: as evidence it would say that there is no object.
    if soft_mask is not None and soft_mask.num_candidates > 0:
        soft = soft_mask.soft.numpy()
    return find_outline(sample.image[:, rows, columns].numpy(), boxes[row], soft, others)
