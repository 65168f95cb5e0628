"""Losses of the detection head: classification, box and centre-ness at every location."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.config.method import FcosConfig
from boxseg.structures import LocationTargets, Predictions, check_same_shape


def detection_losses(
    predictions: Predictions,
    targets: LocationTargets,
    *,
    num_positive: Tensor,
    centerness_sum: Tensor,
    settings: FcosConfig,
) -> dict[str, Tensor]:
    """Classification, box and centre-ness losses of a batch.

    All locations are computed and the background is masked, so every output keeps a gradient path.

    Args:
        predictions: Raw outputs of the network.
        targets: What they should be.
        num_positive: Scalar tensor >= 1, normaliser of classification and centre-ness.
        centerness_sum: Scalar tensor > 0, normaliser of the box loss.
        settings: `use_vfl`, `alpha`, `gamma` and `iou_eps` count.

    Returns:
        `cls`, `loc` and `ctr`, float scalars.

    Raises:
        ShapeError: targets do not fit the predictions.

    Source: FCOS (arXiv 1904.01355), VarifocalNet (arXiv 2008.13367); `docs/method.md#detection-losses`.
    """
    check_same_shape(distances=predictions.distances, distance_targets=targets.distances)
    positive = targets.box_index >= 0
    iou, generalised = giou(
        predictions.distances.float(), targets.distances.float(), eps=settings.iou_eps
    )
    centerness = targets.centerness.float() * positive
    box_loss = ((1 - generalised) * centerness).sum() / centerness_sum
    centerness_bce = F.binary_cross_entropy_with_logits(
        predictions.centerness_logits.float(), centerness, reduction="none"
    )
    logits = predictions.class_logits.float()
    # Varifocal loss asks a positive for the IoU that its box reaches now; focal loss asks for 1.
    peak = iou.detach() if settings.use_vfl else torch.ones_like(iou)
    # `scatter` takes no -1 for the background; what it writes there is 0.
    labels = targets.labels.clamp(min=0).unsqueeze(-1)
    class_targets = torch.zeros_like(logits).scatter_(2, labels, (peak * positive).unsqueeze(-1))
    classification = varifocal_loss if settings.use_vfl else focal_loss
    class_loss = classification(logits, class_targets, alpha=settings.alpha, gamma=settings.gamma)
    return {
        "cls": class_loss.sum() / num_positive,
        "loc": box_loss,
        "ctr": (centerness_bce * positive).sum() / num_positive,
    }


def giou(predicted: Tensor, target: Tensor, *, eps: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlap of boxes that share their reference point.

    Args:
        predicted: Float (…, 4) >= 0: left, top, right, bottom distances, in strides.
        target: Float of the same shape.
        eps: Added to intersection and union [strides²]; 1 in the reference, which lifts the IoU of small boxes.

    Returns:
        Smoothed IoU (…) in [0, 1] and GIoU (…) in [-1, 1].

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: GIoU (arXiv 1902.09630); `docs/method.md#detection-losses`.

    >>> giou(torch.ones(1, 4), torch.full((1, 4), 2.0), eps=0)  # 2 x 2 in the middle of 4 x 4
    (tensor([0.2500]), tensor([0.2500]))
    """
    check_same_shape(predicted=predicted, target=target)
    # Both boxes contain their common reference point, so overlap and enclosing box follow side by side.
    intersection = _area(torch.minimum(predicted, target))
    enclosing = _area(torch.maximum(predicted, target))
    union = _area(predicted) + _area(target) - intersection
    # With eps 0 the union of two empty boxes would be 0.
    iou = (intersection + eps) / (union + max(eps, 1e-9))
    return iou, iou - (enclosing - union) / enclosing.clamp(min=1e-9)


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=-1)
    return (left + right) * (top + bottom)


def varifocal_loss(
    logits: Tensor, quality: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy that asks a positive for its quality and weights it so; negatives count by their error.

    Args:
        logits: Float, any shape.
        quality: Float of the same shape in [0, 1]; the target, 0 on negatives.
        alpha: Weight of negatives.
        gamma: Exponent of the predicted probability on negatives.

    Returns:
        Float of the same shape, >= 0. Not averaged.

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: VarifocalNet (arXiv 2008.13367); `docs/method.md#detection-losses`.

    >>> varifocal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))  # a positive, a negative
    tensor([0.6931, 0.0433])
    """
    check_same_shape(logits=logits, quality=quality)
    weight = torch.where(quality > 0, quality, alpha * logits.sigmoid().pow(gamma))
    return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy weighted with the error, so that easy locations do not drown the rest.

    Args:
        logits: Float, any shape.
        targets: Float of the same shape, 0 or 1.
        alpha: Weight of positives; negatives get 1 - alpha.
        gamma: Exponent of the error.

    Returns:
        Float of the same shape, >= 0. Not averaged.

    Raises:
        ShapeError: the two arguments differ in shape.

    Source: RetinaNet (arXiv 1708.02002).

    >>> focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))  # a positive, a negative
    tensor([0.0433, 0.1300])
    """
    check_same_shape(logits=logits, targets=targets)
    probs = logits.sigmoid()
    error = torch.where(targets > 0, 1 - probs, probs)
    weight = torch.where(targets > 0, alpha, 1 - alpha)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * error.pow(gamma) * cross_entropy
