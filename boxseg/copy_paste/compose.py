"""Put instances on top of an image and settle what they cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.ops.masks import tight_boxes, visible_boxes


@dataclass(frozen=True)
class Limits:
    """What happens to instances that a paste covers."""

    min_area: float
    """Floor of the remaining mask area [px]."""
    box_shift_px: float
    """Limit of a side's movement [px]."""
    keep_sides: bool
    """Change a side only if the paste moved it; the reference rounds every box outward to whole pixels."""
    drop_slivers: bool
    """Drop instances of which the paste leaves less than 1 px in width or height. The reference keeps covered ones near
    the origin, with a box of zeros."""


@dataclass(frozen=True)
class Composition:
    """An image after a paste: what is left of its own instances, then the pasted ones."""

    image: Tensor
    """uint8 (c, H, W)."""
    masks: Tensor
    """Bool (N' + P, H/s, W/s)."""
    boxes: Tensor
    """Float (N' + P, 4), pixels."""
    labels: Tensor
    """int64 (N' + P,)."""
    kept: Tensor
    """int64 (N',): which of the image's own instances are left."""


def compose(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor,
    labels: Tensor,
    pasted_image: Tensor,
    pasted_masks: Tensor,
    pasted_labels: Tensor,
    *,
    valid: Tensor | None = None,
    min_area: float = 300.0,
    box_shift_px: float = 10.0,
    keep_sides: bool = False,
    drop_slivers: bool = False,
) -> Composition:
    """Paste instances over an image; the arguments are left unchanged.

    The boxes of the image shrink to what is visible of them. An instance stays if no side of its box moved by more
    than `box_shift_px`, or if more than `min_area` of its mask is left.

    Args:
        image: uint8 (c, H, W); any number of channels, so two views can go together.
        masks: Bool (N, H/s, W/s), masks of the image's instances; s = 1, or s = 4 for masks at cell centres.
        boxes: Float (N, 4), pixels.
        labels: int64 (N,).
        pasted_image: uint8 (c, H, W).
        pasted_masks: Bool (P, H, W), pixels to take from `pasted_image`.
        pasted_labels: int64 (P,).
        valid: Bool (H, W), False on padding, where no box reaches; None: no padding.
        min_area, box_shift_px, keep_sides, drop_slivers: See `Limits`.

    Returns:
        The image, the remaining instances in their order, then the pasted ones with tight boxes.

    Raises:
        ShapeError: images, or masks and images, do not fit.

    Source: BoxSeg's code; `docs/method.md#composition`.
    """
    limits = Limits(min_area, box_shift_px, keep_sides, drop_slivers)
    draft = draft_composition(
        image, masks, boxes, pasted_image, pasted_masks, valid=valid, limits=limits
    )
    return draft.finish(labels, pasted_labels, kept=draft.keep.nonzero()[:, 0])


@dataclass(frozen=True)
class Draft:
    """A composition that still has all instances of the image, and a flag for those that are left.

    Dropping the others needs their number, which has to be read from the device. A draft is made without any read, so
    that the drafts of a whole batch can share one.
    """

    image: Tensor
    """uint8 (c, H, W)."""
    remaining: Tensor
    """Bool (N, H/s, W/s): the parts of the masks that are not covered."""
    visible: Tensor
    """Float (N, 4): the boxes, reduced to the parts that are not covered."""
    keep: Tensor
    """Bool (N,): which instances stay in the image."""
    pasted: Tensor
    """Bool (P, H/s, W/s)."""
    pasted_boxes: Tensor
    """Float (P, 4), tight."""

    def finish(
        self,
        labels: Tensor,
        pasted_labels: Tensor,
        *,
        kept: Tensor,
        placed: Tensor | slice = slice(None),
    ) -> Composition:
        """The composition; `kept` int64 (N',) are the indices where `keep` is True, which the caller has read.

        `placed` int64 (P',) are those of the pasted instances, whose labels are given; the masks of others are empty.
        """
        return Composition(
            image=self.image,
            masks=torch.cat([self.remaining[kept], self.pasted[placed]]),
            boxes=torch.cat([self.visible[kept], self.pasted_boxes[placed]]),
            labels=torch.cat([labels[kept], pasted_labels]),
            kept=kept,
        )


def draft_composition(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor,
    pasted_image: Tensor,
    pasted_masks: Tensor,
    *,
    valid: Tensor | None,
    limits: Limits,
) -> Draft:
    """All that `compose` computes; arguments and errors as there."""
    stride = _stride(image, masks, pasted_image, pasted_masks)
    covered = pasted_masks.any(dim=0)
    # The pixel that a cell stands for, 4k + 2 where s is 4; with s = 1 each pixel.
    pasted_cells = pasted_masks[:, stride // 2 :: stride, stride // 2 :: stride]
    remaining = masks & ~pasted_cells.any(dim=0)

    real = torch.ones_like(covered) if valid is None else valid
    # Boxes of masks have whole pixels: a side that only this rounding moved was not touched by the paste.
    rounded = visible_boxes(boxes, real).to(boxes.dtype)
    visible = visible_boxes(boxes, real & ~covered).to(boxes.dtype)
    touched = (visible != rounded).any(dim=1)
    if limits.keep_sides:
        visible = torch.where(visible == rounded, boxes, visible)

    has_its_box = (visible - boxes).abs().amax(dim=1) <= limits.box_shift_px
    remaining_px = remaining.sum(dim=(1, 2)) * stride**2
    keep = has_its_box | (remaining_px > limits.min_area)
    if limits.drop_slivers:
        has_both_sides = (visible[:, 2:] - visible[:, :2] >= 1).all(dim=1)
        # A box that was a sliver before the paste stays.
        keep &= ~touched | has_both_sides
    return Draft(
        image=torch.where(covered, pasted_image, image),
        remaining=remaining,
        visible=visible,
        keep=keep,
        pasted=pasted_cells,
        pasted_boxes=tight_boxes(pasted_masks).to(boxes.dtype),
    )


def _stride(image: Tensor, masks: Tensor, pasted_image: Tensor, pasted_masks: Tensor) -> int:
    """Pixels per cell of `masks`."""
    height, width = image.shape[-2:]
    stride = height // max(masks.shape[-2], 1)
    fits = (
        pasted_image.shape == image.shape
        and pasted_masks.shape[-2:] == image.shape[-2:]
        and (masks.shape[-2] * stride, masks.shape[-1] * stride) == (height, width)
    )
    if not fits:
        raise ShapeError(
            f"image {tuple(image.shape)}, pasted_image {tuple(pasted_image.shape)} and pasted_masks "
            f"{tuple(pasted_masks.shape)} need one (H, W); masks {tuple(masks.shape)} need (H/s, W/s)"
        )
    return stride
