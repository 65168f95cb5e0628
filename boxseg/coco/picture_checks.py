"""Whether the pictures of a data set are there, whole, and as its annotation file says; needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxseg.coco.faults import Fault
from boxseg.files.jpeg import find_damage
from boxseg.files.names import Names, is_inside
from boxseg.files.reading import (
    COLOURS,
    DOES_NOT_EXIST,
    IMAGE_RULE,
    NO_COLOURS,
    REPLACE,
    UnreadableError,
    read_picture,
)

IMAGE_THREADS = 8
JPEG_END = b"\xff\xd9"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
EXIF_ORIENTATION = 0x0112
FEWEST_LEVELS = 16
"""Of 256; a picture with fewer brightnesses shows nothing, and its file holds more or something else."""


def picture_faults(folder: Path, images: list[dict[str, Any]], *, decode: bool) -> Iterator[Fault]:
    """What is wrong with the files of the images that an annotation file lists, see `image_fault`."""
    if images and not folder.is_dir():
        yield Fault(
            folder,
            "is not a folder",
            "a data source needs its folder of images",
            "correct the path",
        )
        return
    with ThreadPoolExecutor(IMAGE_THREADS) as pool:
        faults = pool.map(lambda image: image_fault(folder, image, decode=decode), images)
        there = functools.cache(lambda: Names.below(folder))
        for image, fault in zip(images, faults, strict=True):
            if fault is not None:
                lacks_file = fault.value == DOES_NOT_EXIST or fault.file == folder
                found = there().find(image["file_name"]) if lacks_file else None
                yield fault if found is None else _with_file(fault, image["file_name"], found)


def _with_file(fault: Fault, name: str, found: str) -> Fault:
    """The fault of a file that is not there, where one of almost the same name is."""
    way_out = (
        f"the file {found!r} is there: write that name, or let `boxseg data check --fix` do it"
    )
    rule = "file names are as on the disk, with /" if fault.value == DOES_NOT_EXIST else fault.rule
    return replace(fault, value=f"does not exist as {name!r}", rule=rule, way_out=way_out)


def image_fault(folder: Path, image: dict[str, Any], *, decode: bool) -> Fault | None:
    """What is wrong with the file of an image; None if nothing is. Not all of it is fatal."""
    image_id, name = image["id"], image["file_name"]
    if not is_inside(name):
        rule = "file names are relative to the image folder and stay inside"
        return Fault(
            folder,
            f"has file name {name!r}",
            rule,
            "correct the name in the file",
            image_id=image_id,
        )
    path = folder / name
    try:
        fault = read_picture(
            path, lambda picture: _picture_fault(path, image, picture, decode=decode)
        )
    except UnreadableError as error:
        if error.value == DOES_NOT_EXIST:
            return Fault(
                path,
                error.value,
                "every listed image needs its file",
                "add or unlist it",
                image_id=image_id,
            )
        return Fault(path, error.value, IMAGE_RULE, error.way_out, image_id=image_id)
    return None if fault is None else replace(fault, image_id=image_id)


def _picture_fault(
    path: Path, image: dict[str, Any], picture: Image.Image, *, decode: bool
) -> Fault | None:
    """A picture that is not as listed, or whose pixels are not colours."""
    if picture.size != (image["width"], image["height"]):
        return Fault(path, *_size_mismatch(image, picture))
    if picture.mode in NO_COLOURS:
        return Fault(path, NO_COLOURS[picture.mode], *COLOURS)
    # of 16 bits or more; few are, and many hold less than they could
    is_deep = picture.mode.startswith("I")
    has_end = _has_end(path, picture.format or "")
    if decode or is_deep or not has_end:
        picture.load()
    if decode and has_end and picture.format in ("JPEG", "MPO"):
        damage = find_damage(path)
        if damage is not None:
            return Fault(path, f"is damaged: {damage}", IMAGE_RULE, REPLACE)
    levels = _brightness(picture) if decode or is_deep else (0, 255)
    if levels[1] - levels[0] < FEWEST_LEVELS:
        found = f"has brightnesses from {levels[0]} to {levels[1]} of 255 alone once it is read"
        return Fault(
            path,
            found,
            "pictures use the range of their type",
            "scale its values and store it again",
            fatal=False,
        )
    return _exif_fault(path, picture)


def _brightness(picture: Image.Image) -> tuple[int, int]:
    """Least and largest value of all pixels, as `boxseg.data.dataset.read_image` gives them."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        low, high = (int(each) for each in (values.min(), values.max()))
        return min(max(low, 0), 0xFFFF) >> 8, min(max(high, 0), 0xFFFF) >> 8
    of_bands = picture.convert("RGB").getextrema()
    return min(int(low) for low, _ in of_bands), max(int(high) for _, high in of_bands)  # type: ignore[misc]


def _exif_fault(path: Path, picture: Image.Image) -> Fault | None:
    """A picture that viewers turn or mirror, where its size does not tell which of both its boxes are for."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return None  # PIL would decode all of it to find out
    turn = picture.getexif().get(EXIF_ORIENTATION, 1)
    if turn not in range(2, 9) or (turn > 4 and picture.width != picture.height):
        return None
    found = f"asks viewers to turn or mirror it (EXIF orientation {turn}), which is ignored here"
    way_out = (
        "look at a few boxes; if they are for the picture as shown, store it turned, without EXIF"
    )
    return Fault(path, found, "boxes refer to the stored pixels", way_out, fatal=False)


def _size_mismatch(image: dict[str, Any], picture: Image.Image) -> tuple[str, str, str]:
    way_out = "correct width and height, and the boxes with them, or replace the file"
    if picture.getexif().get(EXIF_ORIENTATION, 1) > 4:
        way_out = (
            "the file asks viewers to rotate it by EXIF, which is ignored here: store it rotated"
        )
    listed = f"{image['width']} x {image['height']}"
    found = f"is {picture.width} x {picture.height} px, but the annotation file says {listed}"
    return found, "boxes refer to the stored pixels", way_out


def _has_end(path: Path, kind: str) -> bool:
    """Whether the file ends with its format's end marker; True for formats without one."""
    marker = {"JPEG": JPEG_END, "MPO": JPEG_END, "PNG": PNG_END}.get(kind, b"")
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - len(marker), 0))
        return file.read() == marker
