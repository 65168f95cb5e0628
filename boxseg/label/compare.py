"""How far sources of masks agree with one another, and with drawn masks where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.masks import decode_part
from boxseg.data.dataset import CocoBoxes
from boxseg.evaluation.pseudo_quality import quality_metrics
from boxseg.label.boxes import BoxLabels
from boxseg.label.sources import BatchSource
from boxseg.mask_parts import MaskPart

BEST_SHARE = 0.8
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
    pair_ious: dict[tuple[str, str], list[float]] = {}
    drawn_pairs: dict[str, list[tuple[float, float]]] = {}  # quality, IoU with the drawn mask
    for index in indices:
        ids = data.annotation_ids(index)
        if not ids:
            continue
        sample, drawn = data[index], _drawn_parts(data, index)
        labels = {}
        for name, source in sources.items():
            (labels[name],) = source([(sample, ids)])
        for name, of_source in labels.items():
            for other, of_other in labels.items():
                ious = _ious(of_source, of_other.parts)
                pair_ious.setdefault((name, other), []).extend(ious)
            if drawn is not None:
                qualities = of_source.quality.tolist()
                pairs = zip(qualities, _ious(of_source, drawn), strict=True)
                drawn_pairs.setdefault(name, []).extend(pairs)
    agreement: dict[str, dict[str, float]] = {}
    for (name, other), ious in pair_ious.items():
        agreement.setdefault(name, {})[other] = float(np.mean(ious))
    summaries = {name: _summary(np.array(pairs)) for name, pairs in drawn_pairs.items()}
    return {"agreement": agreement, "drawn": summaries}


def _drawn_parts(data: CocoBoxes, index: int) -> list[MaskPart] | None:
    """The drawn masks of all boxes of an image; None if one has none."""
    parts = []
    for rle in data.drawn_rles(index):
        if rle is None:
            return None
        parts.append(decode_part(rle, data.size(index)))
    return parts


def _ious(labels: BoxLabels, others: Sequence[MaskPart]) -> list[float]:
    """IoU of each mask with the one of another source for the same box."""
    return [part.iou(other) for part, other in zip(labels.parts, others, strict=True)]


def _summary(pairs: NDArray[np.float64]) -> dict[str, float]:
    """What the `drawn` of a source is, from the quality and IoU (N, 2) of its masks."""
    metrics = quality_metrics(pairs.tolist())
    best_first = np.argsort(-pairs[:, 0], kind="stable")
    best = best_first[: max(int(BEST_SHARE * len(pairs)), 1)]
    summary = {"iou": metrics["pseudo_iou"]}
    summary["best_iou"] = float(pairs[best, 1].mean())
    for name in ("quality_auroc", "quality_rank"):
        if name in metrics:  # undefined where all masks are alike
            summary[name] = metrics[name]
    return summary
