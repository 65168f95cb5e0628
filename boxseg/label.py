"""Known boxes in, masks out: for every box the network's candidates are ranked, fused and scored by QAM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config import BoxSegConfig
from boxseg.engine.step import fuse_candidates
from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_area, box_iou, scale_boxes
from boxseg.ops.masks import resize_masks, tight_boxes
from boxseg.ops.neighbours import sample_cells
from boxseg.predict import Predictor, read_image
from boxseg.structures import Batch, Candidates
from boxseg.teacher.candidates import pick_candidates

UNKNOWN = -1
"""Label of a box whose class the network does not know, or may be any."""
EVERYTHING = 2**20
"""More locations than a pyramid level has."""
LABEL_SCALE = 1.5
"""Where a box is known, nothing is lost by looking closer: outlines gain more than the detector's scores lose."""
COLOR_WEIGHT = 1.0
"""Least trust in the colours of each box: a training run may leave them out, but labels gain by them."""
LAST_RESORT = 0.5
"""Factor on the quality of masks for which the limits of the run's settings had to be lifted."""


@dataclass(frozen=True)
class BoxLabels:
    """Masks for the known boxes of one image."""

    mask: Tensor
    """Bool (N, height, width), pixels of the image, inside the box; empty only for a box without area."""
    quality: Tensor
    """Float (N,) in [0, 1]: how far the mask can be trusted, QAM's quality times the fourth root of `fit`; 0 where the
    mask is the box itself, or empty."""
    num_candidates: Tensor
    """int64 (N,): detections that were fused; 0 where the mask is the box itself, or empty."""


@torch.no_grad()
def label_boxes(
    predictor: Predictor,
    image: str | Path | Tensor | np.ndarray,
    boxes: Tensor,
    labels: Tensor | None = None,
    *,
    scale: float = LABEL_SCALE,
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
        scale: Size of the network's input, relative to that of evaluation.
        others: Masks of another tool for the same boxes; each that is not empty joins the fusion as one more candidate.

    Returns:
        One mask per box. A box that no candidate fits gets a mask all the same: of another class, then from the
        detections nearest to it however weak, both of lowered quality, then the whole box with quality 0.

    Raises:
        DataError: the file is missing or cannot be read.
        ShapeError: image, boxes or labels have another shape.

    Source: BoxSeg (arXiv 2504.05137), QAM with the user's boxes as the known truth; `method.md` section (e).
    """
    pixels = read_image(image)
    labels = torch.full((len(boxes),), UNKNOWN) if labels is None else labels
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeError(f"boxes {tuple(boxes.shape)}, labels {tuple(labels.shape)}; (N, 4) and (N,) are needed")
    size = (pixels.shape[1], pixels.shape[2])
    boxes = clip_boxes_to_image(boxes.float(), size)
    mask = pixels_inside(boxes, size)
    quality, num_candidates = torch.zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    batch = predictor.view(pixels, scale=scale)
    predictions = predictor.network(batch.weak, batch.valid)
    for config, trust in attempts(predictor.config):
        left = ((num_candidates == 0) & (box_area(boxes) > 0)).nonzero()[:, 0]
        if not len(left):
            break
        scaled = scale_boxes(boxes[left], size, batch.sizes[0])
        part = replace(batch, boxes=[scaled], labels=[labels[left]]).to(predictor.device)
        candidates = pick_candidates(
            predictor.network, predictions, part, part, teacher=config.teacher, qam=config.qam, fcos=config.fcos
        )
        if others is not None:
            candidates = [_join(candidates[0], others, left, boxes, batch)]
        pseudo = fuse_candidates(config, candidates, part)[0]
        for row, place in enumerate(left.tolist()):
            soft = resize_masks(pseudo.soft[row : row + 1], size=batch.sizes[0], original_size=size)[0].cpu()
            found = (soft > config.qam.mask_thr) & mask[place]
            if found.any():
                mask[place], num_candidates[place] = found, pseudo.num_candidates[row].cpu()
                quality[place] = trust * pseudo.quality[row].cpu()
    return BoxLabels(mask, quality * fit(mask, boxes) ** 0.25, num_candidates)


def _join(candidates: Candidates, others: BoxLabels, left: Tensor, boxes: Tensor, batch: Batch) -> Candidates:
    """The candidates of the boxes that are `left`, and after those of each box the mask of the other tool."""
    has_mask = others.mask[left].flatten(1).any(dim=1)
    rows = left[has_mask]
    height, width = batch.sizes[0]
    small = F.interpolate(others.mask[rows, None].float(), (height, width), mode="bilinear", antialias=True)[:, 0]
    padded = F.pad(small, (0, batch.weak.shape[-1] - width, 0, batch.weak.shape[-2] - height))
    box_index = torch.cat([candidates.box_index, has_mask.nonzero()[:, 0].to(candidates.box_index)])
    order = box_index.argsort(stable=True)
    joined = (
        (candidates.mask_probs, sample_cells(padded)),
        (candidates.score, others.quality[rows]),
        (candidates.box_iou, fit(others.mask[rows], boxes[rows])),
    )
    probs, score, iou = (torch.cat([found, more.to(found)])[order] for found, more in joined)
    return Candidates(probs, score, iou, box_index[order])


def fit(masks: Tensor, boxes: Tensor) -> Tensor:
    """IoU (N,) of each mask's own box with the given one: 1 for a mask that touches all four sides from inside."""
    return box_iou(tight_boxes(masks), boxes).diagonal()


def attempts(config: BoxSegConfig) -> Iterator[tuple[BoxSegConfig, float]]:
    """Settings to find candidates with, strictest first, and the factor on the quality of what they find."""
    always = {"min_quality": 0.0, "fusion": "weighted", "full_resolution": False, "refined_quality": True}
    color_weight = max(config.qam.color_weight, COLOR_WEIGHT)
    own = config.qam.model_copy(update=always | {"color_weight": color_weight})
    teacher = config.teacher.model_copy(update={"with_nms": False})
    yield config.model_copy(update={"qam": own, "teacher": teacher}), 1.0
    any_class = own.model_copy(update={"class_match": False})
    yield config.model_copy(update={"qam": any_class, "teacher": teacher}), 1.0
    nearest = any_class.model_copy(update={"iou_thr": 0.0, "score_thr": 0.0, "k_top": 3, "adaptive_k": False})
    weakest = teacher.model_copy(update={"cand_score_thr": 0.0, "pre_topk": EVERYTHING})
    yield config.model_copy(update={"qam": nearest, "teacher": weakest}), LAST_RESORT


def pixels_inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool (N, h, w): pixels whose middle lies in the box, one column and row at least; none for a box without area."""
    sides = []
    for axis, length in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        middle = torch.arange(length, device=boxes.device) + 0.5
        nearest = middle == ((low + high) / 2).clamp(max=length - 0.5).floor() + 0.5
        sides.append(((middle >= low) & (middle <= high)) | nearest)
    return sides[0][:, :, None] & sides[1][:, None, :] & (box_area(boxes) > 0)[:, None, None]
