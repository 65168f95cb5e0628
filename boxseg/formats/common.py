"""What several formats share: text lists, turned pictures, pictures whose pixels are numbers of objects, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.picture_checks import exif_orientation
from boxseg.coco.segmentations import Size
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.reading import SIZE_RULE, UnreadableError, read_picture, read_text

Splits = dict[str, CocoSplit]
"""Name of a split -> its images and objects."""

MAX_OBJECTS = 2000
"""Most objects of one picture: nobody draws that many, and each costs a pass over all pixels."""
UNPACK = "unpack the archive again"
LIST_RULE = "lists and labels are text files in UTF-8"
ID_RULE = "masks are palette, grey or 16-bit pictures, a whole number for each pixel"


@dataclass(frozen=True)
class TurnedPicture:
    """Size of a stored picture, and how viewers turn it: YOLO's shares refer to the picture as seen."""

    size: Size
    """(height, width) as stored, pixels."""
    orientation: int
    """EXIF orientation, 1 … 8; 1 leaves it as it is."""

    @classmethod
    def of(cls, picture: Image.Image) -> TurnedPicture:
        """Of an opened picture; its pixels are not decoded."""
        return cls((picture.height, picture.width), exif_orientation(picture))

    def stored_pixels(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2), x y as shares of the picture as seen, in stored pixels."""
        if self.orientation > 4:
            shares = shares[:, ::-1]
        height, width = self.size
        return self._mirrored(shares) * [width, height]

    def seen_shares(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2), x y in stored pixels, as shares of the picture as seen."""
        height, width = self.size
        shares = self._mirrored(pixels / [width, height])
        return shares[:, ::-1] if self.orientation > 4 else shares

    def _mirrored(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of the picture as stored, counted from the other sides where viewers do."""
        x, y = shares.T
        if self.orientation in (2, 3, 7, 8):
            x = 1 - x
        if self.orientation in (3, 4, 6, 7):
            y = 1 - y
        return np.stack([x, y], axis=1)


def example_json(folder: Path) -> str:
    """Words that name a JSON file in a folder or below; empty if there is none."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    return f", perhaps {files[0]}" if files else ""


def read_listing(path: Path) -> str:
    """Text of a list, or of the labels of an image.

    Raises:
        DataError: it is no plain file, or not UTF-8.
    """
    return read_text(path, LIST_RULE)


def read_ids(path: Path) -> NDArray[Any]:
    """Pixels of a palette, grey or 16-bit picture as whole numbers (h, w), none negative.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    try:
        return read_picture(path, lambda picture: _ids(path, picture), ID_RULE, UNPACK)
    except UnreadableError as error:
        # The usual advice, to shrink the picture, would mix the numbers.
        way_out = UNPACK if error.rule == SIZE_RULE else error.way_out
        raise DataError(f"{path}: the picture {error.value}; {ID_RULE} ({way_out})") from error


def _ids(path: Path, picture: Image.Image) -> NDArray[Any]:
    if picture.mode not in ("P", "L", "I") and not picture.mode.startswith("I;16"):
        raise UnreadableError(path, f"has pixels of mode {picture.mode}", ID_RULE, UNPACK)
    ids = np.asarray(picture)  # of a palette picture the indices, not the colours
    if ids.min() < 0:
        raise UnreadableError(path, f"has the number {ids.min()}", ID_RULE, UNPACK)
    return ids


def find_objects(path: Path, ids: NDArray[Any], is_object: Callable[[int], bool]) -> list[int]:
    """Numbers of the objects in a picture, in order.

    Args:
        path: The picture, for the message.
        ids: Its pixels, whole numbers (h, w).
        is_object: Whether a number stands for an object.

    Raises:
        DataError: there are more than `MAX_OBJECTS`, so it is a picture of something else.
    """
    numbers = [number for number in np.unique(ids).tolist() if is_object(number)]
    # A photograph in place of a picture of ids has a number for each shade.
    if len(numbers) > MAX_OBJECTS:
        raise DataError(
            f"{path}: has {len(numbers)} objects, more than {MAX_OBJECTS}; {ID_RULE} ({UNPACK})"
        )
    return numbers


def require_splits(splits: Splits, source: Path, sign: str, folder: str) -> Splits:
    """Refuse a folder in which no split was found.

    Args:
        splits: What was found; given back.
        source: The folder.
        sign: A file that would have shown that it is the right folder.
        folder: Name of the right folder in the published archive.

    Raises:
        DataError: there is no split.
    """
    if not splits:
        raise DataError(
            f"{source}: has no {sign}; the source is the {folder} of the archive (correct the path)"
        )
    return splits
