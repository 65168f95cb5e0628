"""What the review page shows of a mask: a crop of the picture, the outline as polygons, and the whole picture."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.odd_entries import corners
from boxseg.coco.picture_checks import EXIF_ORIENTATION
from boxseg.evaluation.panels import MARGIN, scale_picture
from boxseg.files.images import count_pages
from boxseg.files.pixels import is_deep
from boxseg.files.reading import UnreadableError, read_picture
from boxseg.files.writing import write_picture
from boxseg.mask_parts import MaskPart

TILE = 240
"""Longest side of a crop [px]."""
WHOLE = 1600
"""Longest side of a copy of a whole picture [px]."""
FINE = 200
"""Masks with shorter sides are enlarged before their outline is found: OpenCV's outline runs through the middle of the
border pixels, which would make small masks visibly smaller."""
CORNERS = 300
"""Corners of an outline are left out as long as it moves by less than the longer side of its mask over this."""
BROWSER_FORMATS = frozenset(("BMP", "GIF", "JPEG", "PNG", "WEBP"))
"""Formats of PIL that every browser shows."""


def write_crop(picture: NDArray[np.uint8], bbox: list[float], path: Path) -> list[int]:
    """Write the surroundings of a box as JPEG; gives their place, x y width height in pixels of the picture."""
    limits = picture.shape[1::-1] * 2
    x1, y1, x2, y2 = np.clip(corners(bbox), 0, limits).tolist()
    margin = MARGIN * max(x2 - x1, y2 - y1)
    left, top = max(int(x1 - margin), 0), max(int(y1 - margin), 0)
    bottom, right = int(y2 + margin) + 1, int(x2 + margin) + 1
    crop = Image.fromarray(picture[top:bottom, left:right])
    _write_jpeg(scale_picture(crop, TILE / max(crop.size)), path)
    return [left, top, crop.width, crop.height]


def find_outlines(part: MaskPart) -> list[list[float]]:
    """The outlines of a mask and of its holes, x y x y … in pixels of the picture, with few corners."""
    longest = max(1, *part.pixels.shape)
    finer = int(np.clip(FINE // longest, 1, 8))
    padded = np.pad(part.pixels.astype(np.uint8), 1)  # outlines at the edge of an array are cut
    pixels = padded.repeat(finer, axis=0).repeat(finer, axis=1)
    place = np.array([part.left - 1, part.top - 1])
    outlines = []
    for outline in cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
        corners = cv2.approxPolyDP(outline, longest * finer / CORNERS, closed=True)[:, 0]
        # OpenCV counts from the middle of pixels.
        in_picture = (corners + 0.5) / finer + place
        outlines.append(np.round(in_picture, 1).ravel().tolist())
    return outlines


def find_whole(path: Path, picture: NDArray[np.uint8], folder: Path, name: str) -> str:
    """URL of a whole picture for a page in `folder`: the file itself, or `folder/name` where browsers do not know its
    format or would show something else: it turned, moving, or 12 of 16 bits nearly black."""
    try:
        is_plain = read_picture(path, _is_plain)
    except UnreadableError:  # a damaged EXIF block: the pixels were read already
        is_plain = False
    if is_plain:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    scale = min(1.0, WHOLE / max(picture.shape[:2]))
    _write_jpeg(scale_picture(Image.fromarray(picture), scale), folder / name)
    return quote(name)


def _is_plain(picture: Image.Image) -> bool:
    # Before EXIF is read, for which PIL may decode all pixels.
    is_other = is_deep(picture) or count_pages(picture) > 1
    is_turned = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
    return picture.format in BROWSER_FORMATS and not is_other and not is_turned


def _write_jpeg(picture: Image.Image, path: Path) -> None:
    write_picture(path, partial(picture.save, quality=80), form="jpeg", durable=False)
