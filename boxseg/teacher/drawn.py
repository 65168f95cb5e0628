"""Drawn masks in the place of pseudo masks: mixed supervision, and the fully supervised twin."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.ops.masks import aligned_bilinear
from boxseg.structures import MASK_STRIDE, DrawnMasks, PseudoMasks


def prefer_drawn(
    drawn: list[DrawnMasks], pseudo_masks: list[PseudoMasks] | None
) -> list[PseudoMasks]:
    """What the mask losses learn from: the drawn mask where there is one, else what the teacher says.

    Args:
        drawn: B times the drawn masks of an image, at the cells of the padded batch.
        pseudo_masks: B times the teacher's opinion on the same boxes; None without a teacher. Unchanged.

    Returns:
        B times PseudoMasks in which a drawn mask has quality and score 1; boxes without one keep the teacher's, or get
        quality 0. A drawn mask so small that it holds no cell centre counts as none.
    """
    teacher: list[PseudoMasks | None] = (
        [None] * len(drawn) if pseudo_masks is None else list(pseudo_masks)
    )
    return [_prefer_drawn(masks, pseudo) for masks, pseudo in zip(drawn, teacher, strict=True)]


def _prefer_drawn(drawn: DrawnMasks, pseudo: PseudoMasks | None) -> PseudoMasks:
    used = drawn.present & drawn.mask.flatten(1).any(dim=1)
    if pseudo is None:
        number = used.float()
        mask = drawn.mask & used[:, None, None]  # (N, H/4, W/4) & (N, 1, 1)
        return PseudoMasks(mask, mask.float(), number, number, number.long())
    chosen = used[:, None, None]
    return PseudoMasks(
        mask=torch.where(chosen, drawn.mask, pseudo.mask),
        soft=torch.where(chosen, drawn.mask.to(pseudo.soft.dtype), pseudo.soft),
        quality=torch.where(used, 1.0, pseudo.quality),
        score=torch.where(used, 1.0, pseudo.score),
        num_candidates=pseudo.num_candidates,
        full=None
        if pseudo.full is None
        else torch.where(chosen, _on_pixels(drawn.mask), pseudo.full),
    )


def _on_pixels(mask: Tensor) -> Tensor:
    """Bool (N, H/4, W/4) on every pixel; cell centres keep their value."""
    return aligned_bilinear(mask.float(), MASK_STRIDE) > 0.5
