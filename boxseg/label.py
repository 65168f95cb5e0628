"""Known boxes in, masks out: for every box the network's candidates are ranked, fused and scored by QAM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config import BoxSegConfig
from boxseg.data.transforms import flip_boxes
from boxseg.engine.step import fuse_candidates
from boxseg.errors import ShapeError
from boxseg.ops.boxes import box_area, box_iou, scale_boxes
from boxseg.ops.masks import resize_mask_part, tight_boxes
from boxseg.ops.neighbours import sample_cells
from boxseg.predict import Predictor, read_image
from boxseg.structures import MASK_STRIDE, Batch, Candidates, Sample
from boxseg.teacher.candidates import pick_candidates

LABEL_VERSION = 2
"""Raise it where the same run and boxes give other masks or qualities: labels of two versions are not mixed."""
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
    """Float (N,) in [0, 1]: how far the mask can be trusted: QAM's quality, the mean of the image and its mirror image,
    times the fourth root of `fit` and the square root of 1 - `clash` / 2; 0 where the mask is the box itself, or
    empty."""
    num_candidates: Tensor
    """int64 (N,): detections that were fused, of the image and its mirror image; 0 where the mask is the box itself, or
    empty."""


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
    image = read_image(image)
    labels = torch.full((len(boxes),), UNKNOWN) if labels is None else labels
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeError(f"boxes {tuple(boxes.shape)}, labels {tuple(labels.shape)}; (N, 4) and (N,) are needed")
    size = (image.shape[1], image.shape[2])
    sample = Sample(image, clip_boxes_to_image(boxes.float(), size), labels, image_id=-1, original_size=size)
    return label_together(predictor, [sample], [others], scale=scale)[0]


@torch.no_grad()
def label_together(
    predictor: Predictor, samples: Sequence[Sample], others: Sequence[BoxLabels | None], *, scale: float = LABEL_SCALE
) -> list[BoxLabels]:
    """`label_boxes` for several images at once, which saves time on a GPU; what an image gets depends on it alone."""
    mirrored = [None if each is None else replace(each, mask=each.mask.flip(2)) for each in others]
    plain = _find_maps(predictor, samples, others, scale)
    flipped = _find_maps(predictor, [_mirror(each) for each in samples], mirrored, scale)
    mask_thr = predictor.config.qam.mask_thr
    return [_merge(each, (here, there), mask_thr) for each, here, there in zip(samples, plain, flipped, strict=True)]


def _mirror(sample: Sample) -> Sample:
    boxes = flip_boxes(sample.boxes, width=sample.image.shape[2])
    return replace(sample, image=sample.image.flip(2), boxes=boxes)


@dataclass(frozen=True)
class _BoxMaps:
    """What the network and QAM say about the boxes of one image."""

    soft: Tensor
    """Float (N, H/4, W/4) in [0, 1], see `PseudoMasks`."""
    quality: Tensor
    """Float (N,)."""
    num_candidates: Tensor
    """int64 (N,), 0 where nothing was found."""
    size: tuple[int, int]
    """Of the image in the network, before padding."""


def _find_maps(
    predictor: Predictor, samples: Sequence[Sample], others: Sequence[BoxLabels | None], scale: float
) -> list[_BoxMaps]:
    found: dict[int, _BoxMaps] = {}
    for places, batch, predictions in predictor.look([each.image for each in samples], scale=scale):
        known = [(samples[place], others[place]) for place in places]
        found |= dict(zip(places, _maps_of_batch(predictor, known, batch, predictions), strict=True))
    return [found[place] for place in range(len(samples))]


def _maps_of_batch(
    predictor: Predictor, known: list[tuple[Sample, BoxLabels | None]], batch: Batch, predictions: Any
) -> list[_BoxMaps]:
    """Maps of the images of a batch; boxes that find nothing go through the next attempt."""
    device, cells = predictor.device, [side // MASK_STRIDE for side in batch.weak.shape[-2:]]
    found = []
    for (sample, _), size in zip(known, batch.sizes, strict=True):
        count = len(sample.boxes)
        zeros = torch.zeros(count, device=device)
        found.append(_BoxMaps(torch.zeros(count, *cells, device=device), zeros, zeros.long(), size))
    for config, trust in attempts(predictor.config):
        left = [
            ((maps.num_candidates.cpu() == 0) & (box_area(sample.boxes) > 0)).nonzero()[:, 0]
            for maps, (sample, _) in zip(found, known, strict=True)
        ]
        if not any(map(len, left)):
            break
        everything = zip(known, left, batch.original_sizes, batch.sizes, strict=True)
        boxes = [scale_boxes(sample.boxes[rows], size, seen) for (sample, _), rows, size, seen in everything]
        labels = [sample.labels[rows] for (sample, _), rows in zip(known, left, strict=True)]
        part = replace(batch, boxes=boxes, labels=labels).to(device)
        candidates = pick_candidates(
            predictor.network, predictions, part, part, teacher=config.teacher, qam=config.qam, fcos=config.fcos
        )
        for image, (sample, others) in enumerate(known):
            if others is not None:
                candidates[image] = _join(candidates[image], others, left[image], sample.boxes, part, image)
        for maps, rows, pseudo in zip(found, left, fuse_candidates(config, candidates, part), strict=True):
            hit = pseudo.mask.flatten(1).any(dim=1)
            rows = rows.to(device)[hit]
            maps.soft[rows], maps.quality[rows] = pseudo.soft[hit], trust * pseudo.quality[hit]
            maps.num_candidates[rows] = pseudo.num_candidates[hit]
    return found


def _merge(sample: Sample, views: tuple[_BoxMaps, _BoxMaps], mask_thr: float) -> BoxLabels:
    """Masks from the mean maps of an image and its mirror image."""
    size = (sample.image.shape[1], sample.image.shape[2])
    masks = pixels_inside(sample.boxes.to(views[0].soft.device), size)
    counts = torch.stack([maps.num_candidates for maps in views]).cpu()
    quality = torch.stack([maps.quality for maps in views]).sum(dim=0).cpu() / (counts > 0).sum(dim=0).clamp(min=1)
    for row in counts.sum(dim=0).nonzero()[:, 0].tolist():
        rows, columns = window = _window(sample.boxes[row], size)
        opposite = slice(size[1] - columns.stop, size[1] - columns.start)
        parts = [_cut(views[0], row, window, size)] if counts[0, row] else []
        if counts[1, row]:
            parts.append(_cut(views[1], row, (rows, opposite), size).flip(1))
        mask = (torch.stack(parts).mean(dim=0) > mask_thr) & masks[(row, *window)]
        if mask.any():
            masks[(row, *window)] = mask
        else:
            counts[:, row] = quality[row] = 0
    masks, found = masks.cpu(), counts.sum(dim=0)
    trust = fit(masks, sample.boxes) ** 0.25 * (1 - clash(masks, found > 0) / 2).sqrt()
    return BoxLabels(masks, quality * trust, found)


def _window(box: Tensor, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that a box touches, one at least."""
    x1, y1, x2, y2 = box.tolist()
    top, left = min(int(y1), size[0] - 1), min(int(x1), size[1] - 1)
    return slice(top, max(math.ceil(y2), top + 1)), slice(left, max(math.ceil(x2), left + 1))


def _cut(maps: _BoxMaps, row: int, window: tuple[slice, slice], size: tuple[int, int]) -> Tensor:
    """The map of a box in a window of the image, float (h', w')."""
    rows, columns = (
        slice(int(part.start * seen / side) // MASK_STRIDE, math.ceil(part.stop * seen / side) // MASK_STRIDE + 1)
        for part, seen, side in zip(window, maps.size, size, strict=True)
    )
    wide = slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1)
    probs, pixels = resize_mask_part(maps.soft[row], wide, size=maps.size, original_size=size)
    top, left = (part.start - there.start for part, there in zip(window, pixels, strict=True))
    return probs[top : top + window[0].stop - window[0].start, left : left + window[1].stop - window[1].start]


def _join(
    candidates: Candidates, others: BoxLabels, left: Tensor, boxes: Tensor, batch: Batch, image: int
) -> Candidates:
    """The candidates of the boxes that are `left`, and after those of each box the mask of the other tool."""
    has_mask = others.mask[left].flatten(1).any(dim=1)
    rows = left[has_mask]
    height, width = batch.sizes[image]
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


def clash(masks: Tensor, found: Tensor) -> Tensor:
    """Share (N,) of each mask (N, h, w) that another mask claims as well, of those that were found (N,).

    A pixel belongs to one object: where masks clash, one of them is wrong.
    """
    claimed = (masks & found[:, None, None]).sum(dim=0) > 1
    return (masks & claimed).sum(dim=(1, 2)) * found / masks.sum(dim=(1, 2)).clamp(min=1)


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
