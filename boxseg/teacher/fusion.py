"""Quality-aware Masks Fusion (QMF): the masks of all candidates of a box become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.ops.per_box import count_per_box, sum_per_box

Fusion = Literal["vote", "weighted"]
FuseMasks = Callable[..., Tensor]
"""Makes the map of each box, which is then cut to its mask."""


def fuse_masks(
    mask_probs: Tensor,
    box_index: Tensor,
    num_boxes: int,
    *,
    mask_thr: float = 0.5,
    vote_thr: float = 0.5,
    fusion: Fusion = "vote",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quality-aware Masks Fusion: the masks of all candidates of a box become one.

    Args:
        mask_probs: Float (C, h, w) in [0, 1].
        box_index: int64 (C,) in 0 … N-1, box that each candidate serves; any order.
        num_boxes: N.
        mask_thr: Probability above which a pixel is object.
        vote_thr: Share of candidates that must agree, strictly more; for `vote` only.
        fusion: `vote`: majority of binary masks, so K = 2 means both. `weighted`: mean probability above `mask_thr`.
        weights: Float (C,) >= 0, sqrt(score x IoU), for `weighted` only; need not sum to 1. None: all alike.

    Returns:
        `mask` bool (N, h, w) and the map that it cuts, `soft` float (N, h, w) in [0, 1]: share of votes, or weighted
        probability. Both empty for a box without candidate.

    Raises:
        ShapeError: `mask_probs` is not (C, h, w), or `box_index` not (C,).

    Source: BoxSeg (arXiv 2504.05137); `docs/method.md#fusion`.

    >>> import torch
    >>> three = torch.tensor([[[0.9, 0.9, 0.1]], [[0.8, 0.4, 0.2]], [[0.7, 0.6, 0.1]]])
    >>> mask, share = fuse_masks(three, torch.tensor([0, 0, 0]), num_boxes=1)
    >>> mask.int(), share
    (tensor([[[1, 1, 0]]], dtype=torch.int32), tensor([[[1.0000, 0.6667, 0.0000]]]))
    """
    check_candidates(mask_probs, box_index)
    if weights is None:
        weights = mask_probs.new_ones(len(mask_probs))
    soft = FUSIONS[fusion](mask_probs, box_index, num_boxes, mask_thr=mask_thr, weights=weights)
    return soft > (vote_thr if fusion == "vote" else mask_thr), soft


def fuse_by_vote(
    mask_probs: Tensor, box_index: Tensor, num_boxes: int, *, mask_thr: float, weights: Tensor
) -> Tensor:
    """Share of the candidates that have a pixel; `weights` has no part in it."""
    votes = sum_per_box((mask_probs > mask_thr).to(mask_probs.dtype), box_index, num_boxes)
    return votes / count_per_box(box_index, num_boxes).clamp(min=1)[:, None, None]


def fuse_by_weight(
    mask_probs: Tensor, box_index: Tensor, num_boxes: int, *, mask_thr: float, weights: Tensor
) -> Tensor:
    """Weighted mean of the probabilities; `mask_thr` has no part in it."""
    # All weights of a box may be 0, and 0 / 0 is no number.
    share = weights / sum_per_box(weights, box_index, num_boxes).clamp(min=1e-12)[box_index]
    return sum_per_box(mask_probs * share[:, None, None], box_index, num_boxes)


FUSIONS: dict[Fusion, FuseMasks] = {"vote": fuse_by_vote, "weighted": fuse_by_weight}


def check_candidates(mask_probs: Tensor, box_index: Tensor) -> None:
    """Raise ShapeError unless `mask_probs` is (C, h, w) and `box_index` (C,)."""
    if mask_probs.dim() != 3 or box_index.shape != mask_probs.shape[:1]:
        raise ShapeError(
            f"mask_probs {tuple(mask_probs.shape)}, box_index {tuple(box_index.shape)}; (C, h, w) and (C,) are needed"
        )
