"""The geometry of a training image: its size and mirroring. With its colours as read this is the weak view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxFormat

from boxseg.data.colors import COLOR_CHANGES, Recoloring, Strong, draw_recoloring
from boxseg.ops.boxes import scale_boxes
from boxseg.ops.images import resized_shape
from boxseg.ops.masks import resize_bool
from boxseg.structures import DrawnMasks, Sample


@dataclass(frozen=True)
class View:
    """One image and what is to become of it.

    Loader processes make views; enlarging and mirroring wait for `weak`, which is called where the step runs.
    """

    pixels: Tensor
    """uint8 (3, h', w'), RGB: as in the file, or as large as the view where that is smaller."""
    boxes: Tensor
    """Float (N, 4), x1 y1 x2 y2 in pixels of the view."""
    labels: Tensor
    """int64 (N,)."""
    image_id: int
    """Id of the image in the COCO file."""
    original_size: tuple[int, int]
    """(height, width) of the image file, in pixels."""
    size: tuple[int, int]
    """(h, w) of the view, in pixels."""
    is_flipped: bool = False
    """Whether the view is the mirror image of `pixels`."""
    drawn: DrawnMasks | None = None
    """Drawn masks at the size of the view, where they are to be used."""
    recoloring: Recoloring | None = None
    """What makes the strong view of the weak one; None where both are the same."""

    def __getstate__(self) -> dict[str, Any]:
        # Sending a tensor to another process moves all of its memory to an open shared file: of a piece of an image
        # nothing but the piece.
        return self.__dict__ | {"pixels": self.pixels.clone()}

    def weak(self, device: torch.device | str = "cpu") -> Tensor:
        """The image of the view, uint8 (3, h, w), made on that device."""
        image = resize_image(self.pixels.to(device, non_blocking=True), self.size)
        return image.flip(-1) if self.is_flipped else image


Shape = Callable[[Sample, Generator], View]
"""Makes a view of a sample, neither flipped nor recoloured; draws its random numbers from the generator."""


def make_view(
    sample: Sample, *, shape: Shape, flip: float, strong: Strong, generator: Generator
) -> View:
    """Shape and perhaps flip a sample, and draw how colours change in its strong view.

    Args:
        sample: Image and boxes; left unchanged.
        shape: See `random_size` and `boxseg.data.windows.random_window`.
        flip: Probability of a horizontal flip.
        strong: Name in COLOR_CHANGES.
        generator: Source of all randomness. Its first numbers settle the geometry, so that this does not depend on
            `strong`.

    Returns:
        A View; boxes are clipped to it and those without area removed.

    Source: `docs/method.md#views`.
    """
    view = shape(sample, generator)
    if float(torch.rand(1, generator=generator)) < flip:
        view = flip_view(view)
    changes = COLOR_CHANGES[strong]
    if changes is None:
        return view
    return replace(view, recoloring=draw_recoloring(changes, generator))


def random_size(
    sample: Sample, generator: Generator, *, short_sides: Sequence[int], max_size: int
) -> View:
    """The whole image with one of the short sides [px], less where the long side would exceed `max_size` [px]."""
    chance = float(torch.rand(1, generator=generator))
    short_side = short_sides[int(chance * len(short_sides))]
    return resize_only(sample, short_side=short_side, max_size=max_size)


def resize_only(sample: Sample, short_side: int, max_size: int) -> View:
    """The view that evaluation uses: resized, neither flipped nor recoloured.

    Boxes are clipped to it; they keep their order, and their number as long as they have an area.
    """
    size = (sample.image.shape[1], sample.image.shape[2])
    new_size = resized_shape(size, short_side=short_side, max_size=max_size)
    boxes = clip_boxes_to_image(scale_boxes(sample.boxes, size, new_size), new_size)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
    return view_of(sample, sample.image, boxes, kept, new_size)


def view_of(
    sample: Sample,
    piece: Tensor,
    boxes: Tensor,
    kept: Tensor,
    size: tuple[int, int],
    place: tuple[slice, slice] = (slice(None), slice(None)),
) -> View:
    """The view of an image or of a piece of it.

    Args:
        sample: The image.
        piece: uint8 (3, h', w'), all of its pixels or those of the piece.
        boxes: Float (N, 4), in pixels of the view and clipped to it.
        kept: int64 (n,), the boxes that the view has.
        size: (h, w) of the view.
        place: Rows and columns of the image that the piece is.
    """
    # What becomes larger is resized only in `View.weak`: so less travels between processes.
    is_smaller = size < tuple(piece.shape[1:])
    drawn = sample.drawn
    if drawn is not None:
        masks = drawn.mask[kept][:, place[0], place[1]]
        drawn = DrawnMasks(resize_bool(masks, size), drawn.present[kept])
    return View(
        pixels=resize_image(piece, size) if is_smaller else piece,
        boxes=boxes[kept],
        labels=sample.labels[kept],
        image_id=sample.image_id,
        original_size=(piece.shape[1], piece.shape[2]),
        size=size,
        drawn=drawn,
    )


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image uint8 (3, h, w) at another size; the same tensor where it has that size."""
    if image.shape[-2:] == size:
        return image
    bilinear = InterpolationMode.BILINEAR
    return F.resize_image(image, list(size), interpolation=bilinear, antialias=True)


def flip_view(view: View) -> View:
    """The horizontally mirrored view; its pixels are mirrored in `View.weak`."""
    drawn = view.drawn
    if drawn is not None:
        drawn = replace(drawn, mask=drawn.mask.flip(-1))
    boxes = F.horizontal_flip_bounding_boxes(view.boxes, BoundingBoxFormat.XYXY, view.size)
    return replace(view, is_flipped=not view.is_flipped, boxes=boxes, drawn=drawn)
