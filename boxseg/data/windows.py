"""Square pieces of an image around one object, scaled so that the object has a wanted size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boxseg.config.method import MAX_ENLARGEMENT
from boxseg.data.transforms import View, resize_image
from boxseg.ops.boxes import box_area
from boxseg.ops.masks import resize_bool
from boxseg.structures import DrawnMasks, Sample

LEAST_VISIBLE = 0.25
"""Boxes of which a smaller share lies in a window are not there."""


@dataclass(frozen=True)
class Window:
    """A piece of an image, in whole pixels, and the size that it is scaled to."""

    left: int
    top: int
    width: int
    height: int
    """Of the piece, pixels of the image."""
    size: tuple[int, int]
    """(h, w) that the piece is scaled to."""

    @property
    def rows_and_columns(self) -> tuple[slice, slice]:
        """Where the piece lies in the image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def to_window(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of the image in pixels of the scaled window; not clipped."""
        corner = boxes.new_tensor([self.left, self.top] * 2)
        return (boxes - corner) * boxes.new_tensor(
            [self.size[1] / self.width, self.size[0] / self.height] * 2
        )


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
        shift: Where the window lies, as shares (x, y) of its room: at 0 and at 1 a side of the box is a side of the
            window, at 0.5 the box is in the middle.

    Returns:
        A window inside the image; shorter than `side` along an axis where the image ends.
    """
    x1, y1, x2, y2 = box.tolist()
    scale = min(object_size / max(x2 - x1, y2 - y1, 1e-6), MAX_ENLARGEMENT)
    left, width = _place(x1, x2, image_size[1], side / scale, shift[0])
    top, height = _place(y1, y2, image_size[0], side / scale, shift[1])
    scaled = (min(max(round(height * scale), 1), side), min(max(round(width * scale), 1), side))
    return Window(left, top, width, height, scaled)


def _place(low: float, high: float, length: int, side: float, shift: float) -> tuple[int, int]:
    """First pixel and number of pixels of a stretch of `side` around low … high on an axis of `length`."""
    whole = min(max(round(side), 1), length)
    start = low - (side - (high - low)) * shift
    return min(max(round(start), 0), length - whole), whole


def cut_window(sample: Sample, window: Window) -> tuple[View, Tensor]:
    """The view of a window, and which boxes of the sample, int64 (n,), are in it; these are clipped to it."""
    rows, columns = window.rows_and_columns
    piece = sample.image[:, rows, columns]
    pixels = resize_image(piece, window.size) if window.size[0] < window.height else piece
    boxes = window.to_window(sample.boxes)
    clipped = boxes.clamp(min=0).minimum(boxes.new_tensor(window.size[::-1] * 2))
    kept = (box_area(clipped) > LEAST_VISIBLE * box_area(boxes)).nonzero()[:, 0]
    drawn = None
    if sample.drawn is not None:
        masks = resize_bool(sample.drawn.mask[kept][:, rows, columns], window.size)
        drawn = DrawnMasks(masks, sample.drawn.present[kept])
    piece_size = (window.height, window.width)
    return View(
        pixels,
        clipped[kept],
        sample.labels[kept],
        sample.image_id,
        piece_size,
        window.size,
        drawn=drawn,
    ), kept


def random_window(
    sample: Sample, generator: torch.Generator, *, side: int, object_size: tuple[float, float]
) -> View:
    """A window of `side` px around a random box of the sample, at a random place.

    The longer side of the box becomes a log-uniform draw of `object_size` [px].
    """
    which, size, *shift = torch.rand(4, generator=generator).tolist()
    smallest, largest = object_size
    window = place_window(
        sample.boxes[min(int(which * len(sample.boxes)), len(sample.boxes) - 1)],
        (sample.image.shape[1], sample.image.shape[2]),
        side=side,
        object_size=smallest * (largest / smallest) ** size,
        shift=(shift[0], shift[1]),
    )
    return cut_window(sample, window)[0]
