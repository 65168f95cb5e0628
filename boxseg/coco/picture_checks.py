"""Whether the pictures of a data set are there, whole, and as its annotation file says; needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.entries import Entry
from boxseg.coco.faults import Fault
from boxseg.files.images import FIRST_PAGE, STORE_PAGES, count_pages
from boxseg.files.jpeg import find_damage
from boxseg.files.names import INSIDE_RULE, Names, is_inside
from boxseg.files.pixels import LARGEST_VALUE, is_deep, require_colours, rgb_pixels
from boxseg.files.reading import (
    DOES_NOT_EXIST,
    IMAGE_RULE,
    REPLACE,
    UnreadableError,
    look_at,
    read_picture,
)
from boxseg.files.same import find_same, listed_files

IMAGE_THREADS = 8
"""Opening a file is mostly waiting for the disk, and decoding leaves Python's lock."""
END_MARKERS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82",
}
"""PIL's name of a format -> the bytes that its files end with."""
EXIF_ORIENTATION = 0x0112
"""Tag of the EXIF orientation: 1 as stored, 2 … 8 turned or mirrored, from 5 on with width and height exchanged."""
FEWEST_LEVELS = 16
"""Of 256; a picture with fewer levels of brightness shows nothing, and its file holds more or something else."""
SPREAD = (
    "subtract the least value of all pictures from each, multiply all by one factor so that they use 16 bits, "
    "and store them again"
)
"""What to do where the values of pictures are too close to each other, or too large."""
PIXEL_RULE = "boxes refer to the stored pixels"


def picture_faults(folder: Path, images: list[Entry], *, decode: bool) -> Iterator[Fault]:
    """What is wrong with the files of the images that an annotation file lists, see `image_fault`."""
    if images and not folder.is_dir():
        rule = "a data source needs its folder of images"
        yield Fault(folder, "is not a folder", rule, "correct the path")
        return
    names = functools.cache(lambda: Names.below(folder))  # listed only if a file is missing
    with ThreadPoolExecutor(IMAGE_THREADS) as pool:
        faults = pool.map(lambda image: image_fault(folder, image, decode=decode), images)
        for image, fault in zip(images, faults, strict=True):
            if fault is None:
                continue
            # The place of a fault is the folder where the name leads out of it.
            if fault.value == DOES_NOT_EXIST or fault.file == folder:
                match = names().find(image["file_name"])
                # A link that leads nowhere has exactly the listed name.
                if match not in (None, image["file_name"]):
                    fault = _with_match(fault, image["file_name"], match)
            yield fault
    yield from _repeated_faults(folder, images)


def _repeated_faults(folder: Path, images: list[Entry]) -> Iterator[Fault]:
    """One fault if pictures have the same bytes as another one."""
    names = listed_files(folder, images)
    repeated = [(first, other) for first, *others in find_same(list(names)) for other in others]
    if repeated:
        first, other = (names[path] for path in repeated[0])
        value = f"has {len(repeated)} pictures that are another one byte for byte, such as {other!r} and {first!r}"
        rule = "what is an object in one is background in the other where it has no box there"
        yield Fault(folder, value, rule, "list each picture once, with all its boxes", fatal=False)


def _with_match(fault: Fault, name: str, match: str) -> Fault:
    """The fault of a missing file, given the one of almost the same name."""
    way_out = (
        f"the file {match!r} is there: write that name, or let `boxseg data check --fix` do it"
    )
    rule = fault.rule
    if fault.value == DOES_NOT_EXIST:
        rule = "file names are as on the disk, with /"
    return replace(fault, value=f"does not exist as {name!r}", rule=rule, way_out=way_out)


def image_fault(folder: Path, image: Entry, *, decode: bool) -> Fault | None:
    """What is wrong with the file of an image; None if nothing is. Not all of it is fatal.

    Args:
        folder: Of the images.
        image: Its entry in the annotation file.
        decode: Whether to decode all its pixels; else only those of suspicious files.
    """
    image_id, name = image["id"], image["file_name"]
    if not is_inside(name):
        value = f"has file name {name!r}"
        way_out = "correct the name in the file"
        return Fault(folder, value, INSIDE_RULE, way_out, image_id=image_id)
    path = folder / name
    try:
        fault = read_picture(
            path, lambda picture: _picture_fault(path, image, picture, decode=decode)
        )
    except UnreadableError as error:
        rule, way_out = error.rule, error.way_out
        if error.value == DOES_NOT_EXIST:
            rule, way_out = "every listed image needs its file", "add or unlist it"
        return Fault(path, error.value, rule, way_out, image_id=image_id)
    return None if fault is None else replace(fault, image_id=image_id)


def _picture_fault(
    path: Path, image: Entry, picture: Image.Image, *, decode: bool
) -> Fault | None:
    """A picture that is not as listed, is damaged, or whose pixels are not colours."""
    if picture.size != (image["width"], image["height"]):
        return _size_fault(path, image, picture)
    require_colours(picture)
    # Before pixels are decoded, after which PIL may have closed the file.
    pages = count_pages(picture)
    # Pictures of 16 bits are few, and some use little of their range.
    pixels = rgb_pixels(picture) if decode or is_deep(picture) else None
    has_end = _has_end(path, picture.format or "")
    if not has_end:
        picture.load()  # raises if there are too few bytes
    # A file without its end marker is judged by PIL alone, which has just decoded it.
    if decode and has_end and picture.format in ("JPEG", "MPO"):
        damage = find_damage(path)
        if damage is not None:
            return Fault(path, f"is damaged: {damage}", IMAGE_RULE, REPLACE)
    if pixels is not None and (fault := _brightness_fault(path, picture, pixels)):
        return fault
    if pages > 1:
        value = f"has {pages} pages or frames"
        return Fault(path, value, FIRST_PAGE, STORE_PAGES, fatal=False)
    return _exif_fault(path, picture)


def _brightness_fault(path: Path, picture: Image.Image, pixels: NDArray[np.uint8]) -> Fault | None:
    """A picture of which nothing is left to see, or not all, as `pixels` is what is read of it."""
    # Only these modes hold more than is read.
    values = np.asarray(picture) if picture.mode.startswith("I") else pixels
    darkest, brightest = int(pixels.min()), int(pixels.max())
    if brightest - darkest < FEWEST_LEVELS:
        value = f"has only brightnesses {darkest} to {brightest} of 0 to 255 once it is read"
    elif values.min() < 0 or values.max() > LARGEST_VALUE:
        outside = f"those outside of 0 to {LARGEST_VALUE} are cut off"
        value = f"has values from {values.min()} to {values.max()}, and {outside}"
    else:
        return None
    rule = "pictures use the range of their type"
    return Fault(path, value, rule, SPREAD, fatal=False)


def _exif_fault(path: Path, picture: Image.Image) -> Fault | None:
    """A picture that viewers turn or mirror, if its size does not show whether its boxes fit it turned or stored."""
    orientation = exif_orientation(picture)
    exchanges_sides = orientation > 4
    if orientation == 1 or (exchanges_sides and picture.width != picture.height):
        return None
    value = (
        f"asks viewers to turn or mirror it (EXIF orientation {orientation}), "
        "which is ignored here"
    )
    way_out = (
        "look at a few boxes; if they are for the picture as shown, store it turned, without EXIF"
    )
    return Fault(path, value, PIXEL_RULE, way_out, fatal=False)


def exif_orientation(picture: Image.Image) -> int:
    """EXIF orientation of an opened picture, 1 … 8; 1 if it has none, or one that means nothing.

    1 for a TIFF: PIL turns its pixels as it reads them, and gives the size that they have then.
    """
    if picture.format == "TIFF":
        return 1
    # PIL would decode a PNG to find EXIF data behind the pixels.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def describe_turned(paths: Iterable[Path]) -> str | None:
    """A sentence about the pictures that viewers turn or mirror by EXIF; None if there are none."""
    orientations = look_at(paths, exif_orientation)
    turned = [path for path, orientation in orientations.items() if orientation != 1]
    if not turned:
        return None
    path, orientation = turned[0], orientations[turned[0]]
    return (
        f"{len(turned)} pictures, such as {path} with EXIF orientation {orientation}, ask viewers to turn or mirror "
        "them, which is ignored here: boxes and masks are those of the stored pixels (store them turned, without EXIF)"
    )


def _size_fault(path: Path, image: Entry, picture: Image.Image) -> Fault:
    listed = f"{image['width']} x {image['height']}"
    value = f"is {picture.width} x {picture.height} px, but the annotation file says {listed}"
    way_out = "correct width and height, and the boxes with them, or replace the file"
    # Tools that obey EXIF list such a picture with width and height exchanged.
    if exif_orientation(picture) > 4:
        way_out = (
            "the file asks viewers to rotate it by EXIF, which is ignored here: "
            "store it rotated, or let `boxseg data check --fix` do it"
        )
    return Fault(path, value, PIXEL_RULE, way_out)


def _has_end(path: Path, image_format: str) -> bool:
    """Whether the file ends with its format's end marker; True for formats without one."""
    marker = END_MARKERS.get(image_format, b"")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - len(marker), 0))
        return file.read() == marker
