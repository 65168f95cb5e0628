"""How far sources of masks agree with one another, and with drawn masks where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from boxseg.data.coco import CocoBoxes
from boxseg.engine.quality import mask_iou, quality_metrics
from boxseg.label_sources import BatchSource

KEPT = 0.8
"""Share of the masks, those of best quality, for `best_iou`."""


@dataclass
class Comparison:
    """What was measured so far, box by box."""

    names: list[str]
    ious: list[NDArray[np.float64]] = field(default_factory=list)
    """For each box (S, S): IoU of the masks of every two sources."""
    drawn: list[NDArray[np.float64]] = field(default_factory=list)
    """For each box with a drawn mask (S, 2): quality, IoU with the drawn mask."""

    def agreement(self) -> dict[str, dict[str, float]]:
        """Mean IoU of the masks of every two sources over all boxes; empty without boxes."""
        if not self.ious:
            return {}
        mean = np.mean(self.ious, axis=0)
        return {
            name: dict(zip(self.names, row.tolist(), strict=True)) for name, row in zip(self.names, mean, strict=True)
        }

    def against_drawn(self) -> dict[str, dict[str, float]]:
        """For each source `iou`, the mean over all boxes with a drawn mask, `quality_auroc` (see `quality_metrics`) and
        `best_iou`, the mean over the 80 % of best quality; empty where nothing is drawn."""
        if not self.drawn:
            return {}
        return {name: _summary(pairs) for name, pairs in zip(self.names, np.stack(self.drawn, axis=1), strict=True)}


def compare_sources(data: CocoBoxes, sources: dict[str, BatchSource]) -> Iterator[Comparison]:
    """Label every image with every source; gives the comparison as it grows, after each image.

    Raises:
        DataError: an image cannot be read.
    """
    comparison = Comparison(list(sources))
    for index in range(len(data)):
        ids = data.annotation_ids(index)
        if ids:
            sample, true = data[index], data.true_masks(index)
            labels = [source([(sample, ids)])[0] for source in sources.values()]
            masks = torch.stack([each.mask for each in labels])  # (S, N, h, w)
            pairs = torch.stack([torch.stack([mask_iou(here, there) for there in masks]) for here in masks])
            comparison.ious.extend(pairs.permute(2, 0, 1).double().numpy())
            if true is not None:
                iou = torch.stack([mask_iou(each, true) for each in masks])
                quality = torch.stack([each.quality for each in labels])
                comparison.drawn.extend(torch.stack([quality, iou], dim=2).transpose(0, 1).double().numpy())
        yield comparison


def _summary(pairs: NDArray[np.float64]) -> dict[str, float]:
    """Of (N, 2): quality, IoU."""
    metrics = quality_metrics([(quality, iou) for quality, iou in pairs.tolist()])
    best = pairs[np.argsort(-pairs[:, 0], kind="stable")[: max(int(KEPT * len(pairs)), 1)], 1]
    told = {"iou": metrics["pseudo_iou"], "best_iou": float(best.mean())}
    return told | {name: metrics[name] for name in ("quality_auroc", "quality_rank") if name in metrics}
