"""How far sources of masks agree with one another, and with drawn masks where there are any."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from boxseg.data.dataset import CocoBoxes
from boxseg.evaluation.pseudo_quality import mask_iou, quality_metrics
from boxseg.label.sources import BatchSource

KEPT = 0.8
"""Share of the masks, those of best quality, for `best_iou`."""


def compare_sources(
    data: CocoBoxes, sources: dict[str, BatchSource], indices: Iterable[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Label images with every source, and measure how alike the masks are.

    Args:
        data: Images and boxes.
        sources: By name.
        indices: Of the images.

    Returns:
        `agreement`: for every two sources the mean IoU of their masks over all boxes; `drawn`: for each source `iou`,
        the mean over all boxes with a drawn mask, `best_iou`, the mean over the 80 % of best quality, `quality_auroc`
        and `quality_rank` (see `quality_metrics`). Either is empty where there are no such boxes.

    Raises:
        DataError: an image cannot be read.
    """
    # for each box (S, S): IoU of the masks of every two sources
    ious: list[NDArray[np.float64]] = []
    # for each box with a drawn mask (S, 2): quality, IoU with the drawn mask
    drawn: list[NDArray[np.float64]] = []
    for index in indices:
        ids = data.annotation_ids(index)
        if ids:
            sample, true = data[index], data.true_masks(index)
            labels = [source([(sample, ids)])[0] for source in sources.values()]
            masks = torch.stack([each.mask for each in labels])  # (S, N, h, w)
            pairs = torch.stack(
                [torch.stack([mask_iou(here, there) for there in masks]) for here in masks]
            )
            ious.extend(pairs.permute(2, 0, 1).double().numpy())
            if true is not None:
                iou = torch.stack([mask_iou(each, true) for each in masks])
                quality = torch.stack([each.quality for each in labels])
                drawn.extend(torch.stack([quality, iou], dim=2).transpose(0, 1).double().numpy())
    means = np.mean(ious, axis=0).tolist() if ious else ()
    of_source = np.stack(drawn, axis=1) if drawn else ()  # (S, boxes, 2)
    agreement = {
        name: dict(zip(sources, row, strict=True))
        for name, row in zip(sources, means, strict=False)
    }
    return {
        "agreement": agreement,
        "drawn": {name: _summary(pairs) for name, pairs in zip(sources, of_source, strict=False)},
    }


def _summary(pairs: NDArray[np.float64]) -> dict[str, float]:
    """Of (N, 2): quality, IoU."""
    metrics = quality_metrics(pairs.tolist())
    best = pairs[np.argsort(-pairs[:, 0], kind="stable")[: max(int(KEPT * len(pairs)), 1)], 1]
    told = {"iou": metrics["pseudo_iou"], "best_iou": float(best.mean())}
    return told | {
        name: metrics[name] for name in ("quality_auroc", "quality_rank") if name in metrics
    }
