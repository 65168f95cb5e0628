"""Pictures of what a run sees: one row per image, `image | boxes | teacher mask | student mask`, with quality."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

TILE = 224
"""Longest side of one tile [px]."""
GAP = 4
CAPTION = 16
COLUMNS = ("image", "boxes", "teacher mask (quality)", "student mask (score)")
COLOURS = ((228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 127, 0), (166, 86, 40), (247, 129, 191))
OPACITY = 0.55


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


def draw_panels(rows: list[PanelRow], path: Path) -> Path:
    """Write the rows as one PNG (beside, then renamed) and return its path."""
    width = len(COLUMNS) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, CAPTION + len(rows) * (TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((GAP + column * (TILE + GAP), 2), title, fill="black")
    for index, row in enumerate(rows):
        for column, tile in enumerate(_tiles(row)):
            sheet.paste(tile, (GAP + column * (TILE + GAP), CAPTION + index * (TILE + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{os.getpid()}.png")
    sheet.save(scratch)
    scratch.replace(path)
    return path


def _tiles(row: PanelRow) -> list[Image.Image]:
    picture = row.image.permute(1, 2, 0).cpu().numpy()
    size = picture.shape[:2]
    scale = TILE / max(size)
    plain = _resize(Image.fromarray(picture), scale)
    boxes = plain.copy()
    _draw_boxes(boxes, row.boxes.cpu().numpy() * scale)
    tiles = [plain, boxes]
    for masks, numbers in ((row.teacher_masks, row.quality), (row.student_masks, row.scores)):
        if masks is None or numbers is None:
            tiles.append(Image.new("RGB", plain.size, (230, 230, 230)))
        else:
            tiles.append(_overlay(picture, masks.cpu().numpy(), numbers.tolist(), scale))
    return tiles


def _resize(picture: Image.Image, scale: float) -> Image.Image:
    return picture.resize(
        (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), Image.Resampling.BICUBIC
    )


def _draw_boxes(picture: Image.Image, boxes: np.ndarray) -> None:
    draw = ImageDraw.Draw(picture)
    for index, box in enumerate(boxes):
        draw.rectangle(box.tolist(), outline=COLOURS[index % len(COLOURS)], width=2)


def _overlay(picture: np.ndarray, masks: np.ndarray, numbers: list[float], scale: float) -> Image.Image:
    """Masks in colour over the picture, each with its number at its top left corner."""
    blended = picture.astype(np.float32)
    corners = []
    for index, mask in enumerate(masks):
        colour = np.array(COLOURS[index % len(COLOURS)], dtype=np.float32)
        blended[mask] = (1 - OPACITY) * blended[mask] + OPACITY * colour
        ys, xs = np.nonzero(mask)
        corners.append((xs.min() * scale, ys.min() * scale) if len(xs) else None)
    tile = _resize(Image.fromarray(blended.round().astype(np.uint8)), scale)
    draw = ImageDraw.Draw(tile)
    for corner, number in zip(corners, numbers, strict=True):
        if corner is not None:
            draw.text(corner, f"{number:.2f}", fill="white", stroke_width=1, stroke_fill="black")
    return tile
