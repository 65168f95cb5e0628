"""Raw detections -> final detections with masks, at the size of the image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from boxseg.config.method import FcosConfig
from boxseg.mask_parts import NO_MASK, Mask, MaskPart
from boxseg.ops.boxes import scale_boxes
from boxseg.ops.detections import choose_detections
from boxseg.ops.masks import resize_mask_part, tight_boxes
from boxseg.structures import Batch, Detections, MaskNetwork


@torch.no_grad()
def postprocess(
    network: MaskNetwork, predictions: Any, batch: Batch, settings: FcosConfig
) -> list[Detections]:
    """Detections of all images of a batch, scored by the detector and the certainty of the mask.

    Args:
        network: The network that made `predictions`.
        predictions: For the B images of the batch.
        batch: Tells sizes and ids; its boxes are not looked at.
        settings: `score_thr`, `pre_topk`, `nms_thr` and `topk` count.

    Returns:
        B times at most `topk` detections, best first.

    Source: CondInst (arXiv 2003.05664), BoxTeacher (arXiv 2210.05174); `docs/method.md#from-predictions-to-detections`.
    """
    of_images = network.detect(
        predictions, score_thr=settings.score_thr, pre_topk=settings.pre_topk
    )
    detections = []
    for image, raw in enumerate(of_images):
        size, original_size = batch.sizes[image], batch.original_sizes[image]
        chosen = choose_detections(raw, settings)
        boxes = clip_boxes_to_image(scale_boxes(chosen.boxes, size, original_size), original_size)
        # Before masks are drawn: those of boxes that lie off the image would be for nothing.
        not_empty = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        chosen, boxes = chosen.take(not_empty), boxes[not_empty]

        image_index = torch.full_like(chosen.labels, image)
        mask_probs = network.mask_logits(predictions, image_index, chosen.handle).sigmoid()
        parts, certainty = finish_masks(mask_probs, size, original_size)
        scores = (chosen.scores * certainty).sqrt()
        image_id = batch.image_ids[image]
        found = Detections(boxes, scores, chosen.labels, parts, original_size, image_id)
        detections.append(found.take(scores.argsort(descending=True, stable=True)))
    return detections


def with_mask_boxes(found: Detections, nms_thr: float) -> Detections:
    """Detections with the bounds of their masks as boxes; the weaker of two that then overlap too much is dropped.

    An empty mask leaves its box as it is.
    """
    boxes = found.boxes.clone()
    for row, part in enumerate(found.parts):
        if part.area:
            boxes[row] = torch.tensor(part.bounds())
    kept = batched_nms(boxes, found.scores, found.labels, nms_thr)
    return replace(found, boxes=boxes).take(kept)


def finish_masks(
    mask_probs: Tensor, size: tuple[int, int], original_size: tuple[int, int]
) -> tuple[list[MaskPart], Tensor]:
    """Probabilities (n, H/4, W/4) -> n masks of an image of (height, width), and their mean probability inside (n,).

    A pixel is a mean of cells, so it exceeds one half only if one of its cells does. Each map is enlarged only around
    such cells.
    """
    parts = [NO_MASK] * len(mask_probs)
    certainty = mask_probs.new_zeros(len(mask_probs))
    masks: dict[int, Tensor] = {}
    places: dict[int, tuple[slice, slice]] = {}
    for index, corners in enumerate(tight_boxes(mask_probs > 0.5).int().tolist()):
        left, top, right, bottom = corners
        if right > left:
            cells = (slice(top, bottom), slice(left, right))
            probs, places[index] = resize_mask_part(
                mask_probs[index], cells, size=size, original_size=original_size
            )
            masks[index] = mask = probs > 0.5
            certainty[index] = (probs * mask).sum() / (mask.sum() + 1e-6)
    for index, pixels in zip(masks, _to_host(list(masks.values())), strict=True):
        rows, columns = places[index]
        parts[index] = MaskPart(pixels, rows.start, columns.start)
    return parts, certainty


def _to_host(masks: Sequence[Tensor]) -> list[Mask]:
    """Masks of any sizes as arrays."""
    if not masks or masks[0].device.type == "cpu":
        return [mask.numpy() for mask in masks]
    # One transfer: each of many would wait for the device.
    pixels = torch.cat([mask.flatten() for mask in masks]).cpu().numpy()
    ends = np.cumsum([mask.numel() for mask in masks])
    pieces = np.split(pixels, ends[:-1])
    return [piece.reshape(mask.shape) for piece, mask in zip(pieces, masks, strict=True)]
