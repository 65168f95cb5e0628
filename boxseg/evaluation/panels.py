"""Pictures of what a run sees: one row per image, `image | boxes | teacher mask | student mask`, with quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from boxseg.files.writing import write_picture

TILE = 224
"""Longest side of one tile [px]."""
GAP = 4
CAPTION = 24
TITLE_PX = 18
COLUMNS = ("image", "boxes", "teacher mask (quality)", "student mask (score)")
COLOURS = (
    (228, 26, 28),
    (55, 126, 184),
    (77, 175, 74),
    (152, 78, 163),
    (255, 127, 0),
    (166, 86, 40),
    (247, 129, 191),
)
OPACITY = 0.4
NUMBER_PX = (26, 12)
"""Width and height of a number on a picture."""
MARGIN = 0.2
"""Width of what is shown around a box, as a share of its longer side."""

Point = tuple[int, int]
"""x, y in pixels of a picture."""


@dataclass(frozen=True)
class PanelRow:
    """What one row shows; all at the size of `image`."""

    image: Tensor
    """uint8 (3, h, w), RGB."""
    boxes: Tensor
    """Float (N, 4), pixels: the ground-truth boxes."""
    teacher_masks: Tensor | None
    """Bool (N, h, w): pseudo mask of each box; None without a teacher."""
    quality: Tensor | None
    """Float (N,) in [0, 1]."""
    student_masks: Tensor
    """Bool (D, h, w): the best detection at each box that was found."""
    scores: Tensor
    """Float (D,) in [0, 1]."""


def draw_panels(rows: list[PanelRow], path: Path, *, columns: Sequence[str] = COLUMNS) -> Path:
    """Write the rows as one PNG (beside, then renamed) under these headings and return its path."""
    width = len(columns) * (TILE + GAP) + GAP
    height = CAPTION + len(rows) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (TILE + GAP), 2), title, fill="black", font_size=TITLE_PX)
    for index, row in enumerate(rows):
        top = CAPTION + index * (TILE + GAP)
        for column, tile in enumerate(_tiles(row)):
            sheet.paste(tile, (GAP + column * (TILE + GAP), top))
    return write_picture(path, sheet.save)


def _tiles(row: PanelRow) -> list[Image.Image]:
    picture = row.image.permute(1, 2, 0).cpu().numpy()
    size = picture.shape[:2]
    scale = TILE / max(size)
    plain = scale_picture(Image.fromarray(picture), scale)
    boxes = plain.copy()  # every column shows the image anew
    draw = ImageDraw.Draw(boxes)
    for index, box in enumerate(row.boxes.cpu().numpy() * scale):
        draw.rectangle(box.tolist(), outline=COLOURS[index % len(COLOURS)], width=2)
    tiles = [plain, boxes]
    for masks, numbers in ((row.teacher_masks, row.quality), (row.student_masks, row.scores)):
        if masks is None or numbers is None:
            tiles.append(Image.new("RGB", plain.size, (230, 230, 230)))
        else:
            tiles.append(_overlay(plain, masks.cpu().numpy(), numbers.tolist()))
    return tiles


def scale_picture(picture: Image.Image, scale: float) -> Image.Image:
    """A picture of `scale` times the size, no side below one pixel."""
    width = max(round(picture.width * scale), 1)
    height = max(round(picture.height * scale), 1)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _overlay(plain: Image.Image, masks: np.ndarray, numbers: list[float]) -> Image.Image:
    """Tinted masks, each with its number at its top left corner."""
    shown = [fit_mask(mask, plain) for mask in masks]
    tile = tint_masks(plain, shown)
    draw = ImageDraw.Draw(tile)
    for place, text in place_numbers(shown, numbers):
        draw.text(place, text, fill="white", stroke_width=1, stroke_fill="black")
    return tile


def place_numbers(
    masks: Sequence[np.ndarray], numbers: Sequence[float]
) -> list[tuple[Point, str]]:
    """Where to write the number of each mask, x y, and how: it hides neither its mask nor another number.

    Args:
        masks: Bool (h, w), at the size of the picture.
        numbers: One for each.
    """
    written: list[tuple[Point, str]] = []
    largest_first = sorted(range(len(masks)), key=lambda row: -int(masks[row].sum()))
    for row in largest_first:
        ys, xs = np.nonzero(masks[row])
        # A number in a smaller mask would hide it.
        if (
            len(xs) == 0
            or xs.max() - xs.min() < NUMBER_PX[0]
            or ys.max() - ys.min() < 2 * NUMBER_PX[1]
        ):
            continue
        x, y = int(xs.min()), int(ys.min())
        if not any(_is_near((x, y), other) for other, _ in written):
            written.append(((x, y), f"{numbers[row]:.2f}"))
    return written


def _is_near(place: Point, other: Point) -> bool:
    """Whether numbers at two places would overlap."""
    across, down = abs(place[0] - other[0]), abs(place[1] - other[1])
    return across < NUMBER_PX[0] and down < NUMBER_PX[1]


def tint_masks(plain: Image.Image, masks: Sequence[np.ndarray]) -> Image.Image:
    """The picture with masks, bool (h, w) at its size, in colour with a solid outline."""
    blended = np.asarray(plain).astype(np.float32)  # masks may lie on one another
    for index, shape in enumerate(masks):
        colour = np.array(COLOURS[index % len(COLOURS)], dtype=np.float32)
        blended[shape] = (1 - OPACITY) * blended[shape] + OPACITY * colour
        blended[shape & ~ndimage.binary_erosion(shape)] = colour
    return Image.fromarray(blended.round().astype(np.uint8))


def fit_mask(mask: np.ndarray, picture: Image.Image) -> np.ndarray:
    """A mask at the size of a picture."""
    return np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
