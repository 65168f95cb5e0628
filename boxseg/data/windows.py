"""Square pieces of an image around one object, scaled so that the object has a wanted size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config.method import MAX_ENLARGEMENT
from boxseg.data.transforms import View, view_of
from boxseg.ops.boxes import box_area
from boxseg.structures import Sample

LEAST_VISIBLE = 0.25
"""A box of which a smaller share lies in a window is left out of it."""


@dataclass(frozen=True)
class Window:
    """A piece of an image, in whole pixels, and the size that it is scaled to."""

    left: int
    """First column of the piece."""
    top: int
    """First row of the piece."""
    width: int
    """Width of the piece, pixels of the image."""
    height: int
    """Height of the piece, pixels of the image."""
    size: tuple[int, int]
    """(h, w) that the piece is scaled to."""

    @property
    def rows_and_columns(self) -> tuple[slice, slice]:
        """Where the piece lies in the image."""
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        return rows, columns

    def to_window(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of the image in pixels of the scaled window; not clipped."""
        corner = boxes.new_tensor([self.left, self.top] * 2)
        scale = [self.size[1] / self.width, self.size[0] / self.height]
        return (boxes - corner) * boxes.new_tensor(scale * 2)


def place_window(
    box: Tensor,
    image_size: tuple[int, int],
    *,
    side: int,
    object_size: float,
    shift: tuple[float, float] = (0.5, 0.5),
) -> Window:
    """The window around a box.

    Args:
        box: Float (4,), x1 y1 x2 y2 in pixels of the image.
        image_size: (height, width) of the image, pixels.
        side: Side of the scaled window [px].
        object_size: What the longer side of the box becomes [px]; less where that would take `MAX_ENLARGEMENT`.
        shift: Where the window lies, as shares (x, y) of the room it has: at 0 and at 1 a side of the box is a side of
            the window, at 0.5 the box is in the middle.

    Returns:
        A window inside the image; shorter than `side` along an axis where the image ends.

    >>> box = torch.tensor([100.0, 100.0, 150.0, 140.0])
    >>> place_window(box, (300, 400), side=128, object_size=64)
    Window(left=75, top=70, width=100, height=100, size=(128, 128))
    """
    image_height, image_width = image_size
    x1, y1, x2, y2 = box.tolist()
    longer_side = max(x2 - x1, y2 - y1, 1e-6)
    scale = min(object_size / longer_side, MAX_ENLARGEMENT)
    left, width = _place(x1, x2, image_width, side / scale, shift[0])
    top, height = _place(y1, y2, image_height, side / scale, shift[1])
    # Rounding must not make the window larger than asked for, nor a side of it nothing.
    scaled_height = min(max(round(height * scale), 1), side)
    scaled_width = min(max(round(width * scale), 1), side)
    return Window(left, top, width, height, (scaled_height, scaled_width))


def _place(low: float, high: float, length: int, side: float, shift: float) -> tuple[int, int]:
    """Place a stretch of `side` around low … high on an axis of `length`: its first pixel and number of pixels."""
    count = min(max(round(side), 1), length)
    start = low - (side - (high - low)) * shift
    # Near an end of the axis the stretch moves inwards.
    first = min(max(round(start), 0), length - count)
    return first, count


def cut_window(sample: Sample, window: Window) -> tuple[View, Tensor]:
    """Cut a window out of a sample.

    Returns:
        The view of the window, boxes clipped to it, and which boxes of the sample these are, int64 (n,).
    """
    boxes = window.to_window(sample.boxes)
    clipped = clip_boxes_to_image(boxes, window.size)
    is_visible = box_area(clipped) > LEAST_VISIBLE * box_area(boxes)
    indices = is_visible.nonzero()[:, 0]
    place = window.rows_and_columns
    piece = sample.image[:, place[0], place[1]]
    return view_of(sample, piece, clipped, indices, window.size, place), indices


def random_window(
    sample: Sample, generator: torch.Generator, *, side: int, object_size: tuple[float, float]
) -> View:
    """A window of `side` px around a random box of the sample, at a random place.

    The longer side of the box becomes a size drawn between the two of `object_size` [px], uniform in its logarithm.
    """
    chance, size_chance, *shift = torch.rand(4, generator=generator).tolist()
    smallest, largest = object_size
    window = place_window(
        sample.boxes[int(chance * len(sample.boxes))],
        (sample.image.shape[1], sample.image.shape[2]),
        side=side,
        object_size=smallest * (largest / smallest) ** size_chance,
        shift=(shift[0], shift[1]),
    )
    view, _ = cut_window(sample, window)
    return view
