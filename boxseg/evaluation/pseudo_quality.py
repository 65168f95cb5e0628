"""How good pseudo masks are, and whether their quality predicts it; measured on drawn masks, never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boxseg.structures import check_same_shape

GOOD_IOU = 0.7
"""A pseudo mask from this IoU with the drawn mask on counts as good."""


def quality_metrics(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Summary of pseudo masks, each a pair of quality and IoU with its drawn mask, both in [0, 1].

    Returns:
        `pseudo_iou`, the mean IoU, where a box without a pseudo mask counts as 0; `quality_auroc`, how well the quality
        tells good masks from bad ones; `quality_rank`, its rank correlation with the IoU. What is undefined (no masks,
        all good, all alike) is left out.
    """
    if not pairs:
        return {}
    quality, iou = np.asarray(pairs, dtype=np.float64).T
    metrics = {"pseudo_iou": float(iou.mean())}
    metrics["quality_auroc"] = auroc(quality, iou >= GOOD_IOU)
    if np.ptp(quality) and np.ptp(iou):  # ranks of equal values have no correlation
        metrics["quality_rank"] = float(np.corrcoef(ranks(quality), ranks(iou))[0, 1])
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive has a higher score than a negative, ties half: (n,), bool (n,); NaN with one kind only."""
    wanted = np.asarray(positive, dtype=bool)
    hits, misses = int(wanted.sum()), int((~wanted).sum())
    if not hits or not misses:
        return float("nan")
    # Mann and Whitney: ranks of the positives less those that they have among themselves.
    above = ranks(scores)[wanted].sum() - hits * (hits + 1) / 2
    return float(above / (hits * misses))


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Places (n,) of values (n,) in their order, from 1; equal ones share the mean of theirs.

    As `scipy.stats.rankdata`, whose import takes longer than most evaluations.
    """
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """IoU (n,) of each pair of bool masks (n, h, w); 0 where both are empty.

    Raises:
        ShapeError: the two arguments differ in shape.
    """
    check_same_shape(masks=masks, others=others)
    union = (masks | others).flatten(1).sum(1)
    common = (masks & others).flatten(1).sum(1)
    return common / union.clamp(min=1)
