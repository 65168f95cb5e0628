"""Dynamic mask thresholds: per class, the one at which candidates disagree least."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ThresholdTable(nn.Module):
    """The current mask threshold of every class; a buffer, so that it survives a resume."""

    table: Tensor

    def __init__(self, num_classes: int, *, start: float = 0.5) -> None:
        """Begin with threshold `start` for each of `num_classes` classes."""
        super().__init__()
        self.register_buffer("table", torch.full((num_classes,), start))

    @torch.no_grad()
    def update(self, labels: Tensor, chosen: Tensor, decided: Tensor, *, ema: float) -> Tensor:
        """Learn from the boxes of one image and say which threshold each of them uses.

        Args:
            labels: int64 (N,).
            chosen: Float (N,), best threshold of each box.
            decided: Bool (N,), boxes that have a say.
            ema: Share of the old threshold kept for each box in [0, 1). 0 overwrites: each box uses its own.

        Returns:
            Float (N,), threshold of each box.
        """
        zeros = torch.zeros_like(self.table)
        count = zeros.index_add(0, labels, decided.to(zeros.dtype))
        mean = zeros.index_add(0, labels, chosen * decided) / count.clamp(min=1)
        kept = torch.pow(torch.tensor(ema, device=zeros.device), count)  # 1 for a class without a say
        self.table.copy_(kept * self.table + (1 - kept) * mean)
        of_class = self.table[labels]
        return of_class if ema > 0 else torch.where(decided, chosen, of_class)


def threshold_grid(centre: float, half: float, step: float) -> list[float]:
    """Thresholds from `centre - half` to `centre + half`, `step` apart, counted in whole steps."""
    count = round(2 * half / step)
    return [centre - half + index * step for index in range(count + 1)]


def choose_thresholds(
    mask_probs: Tensor, box_index: Tensor, num_boxes: int, *, grid: list[float], per_union: bool
) -> tuple[Tensor, Tensor]:
    """The threshold of the grid at which the candidates of a box differ least.

    The measure is the standard deviation (unbiased, over the candidates) of "above the threshold", summed over pixels.

    Args:
        mask_probs: Float (C, h, w) in [0, 1].
        box_index: int64 (C,) in 0 … N-1.
        num_boxes: N.
        grid: Rising thresholds.
        per_union: Divide by the area of the candidates' union, and need two candidates. Otherwise, as in the reference,
            divide by the image, which favours small masks, and give a single candidate the first threshold.

    Returns:
        `chosen` float (N,), the first minimum, and `decided` bool (N,), False for boxes with too few candidates.

    Source: BoxSeg's code.
    """
    shape = (num_boxes, *mask_probs.shape[1:])
    count = mask_probs.new_zeros(num_boxes).index_add_(0, box_index, torch.ones_like(mask_probs[:, 0, 0]))
    measures = []
    for threshold in grid:
        votes = mask_probs.new_zeros(shape).index_add_(0, box_index, (mask_probs > threshold).to(mask_probs.dtype))
        share = votes / count.clamp(min=1)[:, None, None]
        bessel = count / (count - 1).clamp(min=1)
        spread = (bessel[:, None, None] * share * (1 - share)).sqrt()
        if per_union:
            union = (votes > 0).sum(dim=(1, 2))
            # A threshold that leaves nothing cannot be the best one.
            measures.append(torch.where(union > 0, spread.sum(dim=(1, 2)) / union.clamp(min=1), torch.inf))
        else:
            measures.append(spread.mean(dim=(1, 2)))
    first_minimum = torch.stack(measures, dim=1).argmin(dim=1) if num_boxes else count.long()
    chosen = torch.tensor(grid, device=mask_probs.device)[torch.where(count >= 2, first_minimum, 0)]
    return chosen, count >= (2 if per_union else 1)
