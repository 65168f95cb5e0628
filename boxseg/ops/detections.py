"""Dense predictions as lists of scored boxes, before any choice among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boxseg.ops.boxes import decode_boxes
from boxseg.structures import Predictions


@dataclass(frozen=True)
class RawDetections:
    """Detections of one image without NMS; M places, unused ones have box and score 0."""

    boxes: Tensor
    """Float (M, 4), pixels of the padded image, not clipped."""
    labels: Tensor
    """int64 (M,)."""
    scores: Tensor
    """Float (M,), sqrt(class probability x centre-ness)."""
    location_index: Tensor
    """int64 (M,)."""

    def take(self, index: Tensor) -> RawDetections:
        """The detections of an index int64 (K,) or of a mask bool (M,)."""
        return RawDetections(self.boxes[index], self.labels[index], self.scores[index], self.location_index[index])


def decode_detections(predictions: Predictions, *, score_thr: float, pre_topk: int) -> list[RawDetections]:
    """The best (location, class) pairs of every level.

    Args:
        predictions: Raw outputs for B images.
        score_thr: Class probability x centre-ness must exceed this.
        pre_topk: Pairs per level at most.

    Returns:
        B detections, each with the same number of places.

    Source: `method.md` section (b.7).
    """
    product = predictions.class_logits.float().sigmoid() * predictions.centerness_logits.float().sigmoid()[..., None]
    num_classes = product.shape[-1]
    scores, places = [], []
    start = 0
    # Level sizes follow from the image size, but only the network knows how: one small read from the device.
    for length in torch.bincount(predictions.levels).tolist():
        level = product[:, start : start + length].flatten(1)
        top, index = level.topk(min(pre_topk, level.shape[1]), dim=1)
        scores.append(top)
        places.append(index + start * num_classes)
        start += length
    score, place = torch.cat(scores, dim=1), torch.cat(places, dim=1)  # (B, M)
    used = score > score_thr
    location_index = place.div(num_classes, rounding_mode="floor")
    boxes = decode_boxes(predictions.locations, predictions.distances.float(), predictions.strides)
    boxes = boxes.gather(1, location_index[..., None].expand(-1, -1, 4)) * used[..., None]
    score = (score * used).sqrt()
    return [RawDetections(*image) for image in zip(boxes, place % num_classes, score, location_index, strict=True)]
