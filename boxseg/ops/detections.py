"""Dense predictions as lists of scored boxes, and the best of these."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from boxseg.config.method import FcosConfig
from boxseg.ops.boxes import decode_boxes
from boxseg.structures import Predictions, RawDetections


def decode_detections(
    predictions: Predictions, *, score_thr: float, pre_topk: int
) -> list[RawDetections]:
    """The best (location, class) pairs of every level.

    Args:
        predictions: Raw outputs for B images.
        score_thr: Class probability x centre-ness must exceed this.
        pre_topk: Pairs per level at most.

    Returns:
        B detections, each with the same number of places: boxes not clipped, score sqrt(class probability x
        centre-ness), the handle is the index of the location. They are in the order of locations, then of classes; at
        the cut of a level, equal confidence goes by that order too.

    Source: `docs/method.md#from-predictions-to-detections`.
    """
    class_probs = predictions.class_logits.float().sigmoid()
    centerness = predictions.centerness_logits.float().sigmoid()
    product = class_probs * centerness[..., None]  # (B, L, K)
    num_classes = product.shape[-1]
    scores, places = [], []
    start = 0
    # Level sizes follow from the image size, but only the network knows how: one small read from the device.
    for length in torch.bincount(predictions.levels).tolist():
        level = product[:, start : start + length].flatten(1)
        index = first_best(level, min(pre_topk, level.shape[1])).sort(dim=1).values
        scores.append(level.gather(1, index))
        places.append(index + start * num_classes)
        start += length
    score, place = torch.cat(scores, dim=1), torch.cat(places, dim=1)  # (B, M)
    used = score > score_thr
    location_index = place.div(num_classes, rounding_mode="floor")
    boxes = decode_boxes(predictions.locations, predictions.distances.float(), predictions.strides)
    boxes = boxes.gather(1, location_index[..., None].expand(-1, -1, 4)) * used[..., None]
    score = (score * used).sqrt()
    return [
        RawDetections(*image)
        for image in zip(boxes, place % num_classes, score, location_index, strict=True)
    ]


def choose_detections(raw: RawDetections, settings: FcosConfig) -> RawDetections:
    """The best detections after NMS, best first, at most `topk`; unused places are gone."""
    used = raw.take(raw.scores > 0)
    best = batched_nms(used.boxes, used.scores, used.labels, settings.nms_thr)
    return used.take(best[: settings.topk])


def first_best(values: Tensor, k: int) -> Tensor:
    """Index (N, k) of the largest of `values` (N, M), which are in [0, 1] or -1, best first; of equal ones the first.

    A stable sort of all of them takes ten times as long. The bits of a float that is not negative, read as an integer,
    are in the order of the floats; so value and place go into one integer, whose largest are looked for. The bits of -1
    make a negative integer, which comes last.
    """
    bits = values.float().view(torch.int32).long()
    place = torch.arange(values.shape[1], device=values.device)
    return ((bits << 32) - place).topk(k, dim=1).indices
