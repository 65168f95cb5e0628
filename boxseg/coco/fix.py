"""Writes a copy of a data set without its faults; the original stays untouched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from boxseg.coco.checks import read_whole
from boxseg.coco.entries import (
    REQUIRED_KEYS,
    Content,
    Entry,
    has_area,
    image_sizes,
    is_well_formed,
    objects_of,
)
from boxseg.coco.masks import object_area
from boxseg.coco.mend import Changes, mend_content, name_of
from boxseg.coco.odd_boxes import shift_faults
from boxseg.coco.picture_checks import image_fault
from boxseg.coco.segmentations import Size
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.files.writing import naming_storage_faults, write_atomic

ANNOTATIONS, IMAGES = "annotations.json", "images"
"""File and folder of a cleaned copy."""
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": "keep"},  # compressed again with the tables of the original file
    "MPO": {"quality": 95},
    "WEBP": {"quality": 95},
}
"""Format of a rotated image -> how it is stored with little loss."""
BAD_NAME = "images left out: name leads out of the folder or occurs before"
BAD_FILE = "images left out: missing, damaged or of another size"


def write_fixed(source: CocoSource, output: Path) -> Changes:
    """Write `output/annotations.json` and `output/images/` (links) without what makes a data set unusable.

    What can be mended is: ids and sizes of another kind, file names of other systems, entries of one file, polygons of
    too few points or in shares, missing sizes and boxes. Images are left out if they are missing, damaged or of another
    size than listed; one that is listed as its EXIF rotation shows it is stored rotated. Annotations are left out if
    they are malformed or belong to nothing; boxes are cut to their image and left out if nothing remains. If an id
    occurs twice, the second entry gets a new one. All other fields stay.

    Args:
        source: Images and annotation file.
        output: A new or empty folder.

    Returns:
        What was changed, how often, and in which entries.

    Raises:
        DataError: the file is no COCO file at all, its boxes look moved, or `output` holds something.
    """
    content = read_whole(source.annotations)
    images, is_new = output / IMAGES, not output.exists()
    try:
        if not is_new and any(output.iterdir()):
            raise FileExistsError
        # of two commands at once, one gets it; each would leave out the images that the other has linked
        images.mkdir(parents=True)
    except FileExistsError:
        way_out = "a cleaned copy needs a folder of its own (name another)"
        raise DataError(f"{output}: is not empty; {way_out}") from None
    changes = Changes()
    keep = partial(_keep_image, folder=source.images, output=images, changes=changes)
    try:
        clean_content(
            content, changes, path=source.annotations, keep_image=keep, folder=source.images
        )
    except DataError:
        images.rmdir()  # data are refused before the first image is kept
        if is_new:
            output.rmdir()
        raise
    write_atomic(output / ANNOTATIONS, json.dumps(content))
    return changes


def clean_content(
    content: Content,
    changes: Changes,
    *,
    path: Path,
    keep_image: Callable[[Entry], bool],
    folder: Path | None = None,
) -> None:
    """Mend the content of a COCO file, and take faulty entries and unwanted images out of it, in place.

    Args:
        content: COCO instances.
        changes: Gets what was changed.
        path: The file, for the message.
        keep_image: Whether an image is wanted.
        folder: Of the images, to find and measure them.

    Raises:
        DataError: the boxes look moved, see `shift_faults`.
    """
    mend_content(content, changes, folder=folder)
    for group in REQUIRED_KEYS:
        content[group] = _sound_entries(content[group], group, changes)
    _refuse_shifted(content, path)
    content["images"] = [image for image in content["images"] if keep_image(image)]
    sizes = image_sizes(content)
    category_ids = {category["id"] for category in content["categories"]}
    annotations = []
    for annotation in content["annotations"]:
        size = sizes.get(annotation["image_id"])
        if size is None or annotation["category_id"] not in category_ids:
            changes.add("annotations left out: no such image or category", name_of(annotation))
        elif annotation.get("iscrowd") or _cut_box(annotation, size, changes):
            annotations.append(annotation)
    content["annotations"] = annotations


def _refuse_shifted(content: Content, path: Path) -> None:
    """Refuse boxes that look moved: cut to their image, they would be wrong and look right."""
    sizes = image_sizes(content)
    listed = [entry for entry in objects_of(content) if entry["image_id"] in sizes]
    for fault in shift_faults(path, listed, sizes):
        raise DataError(str(fault))


def _sound_entries(entries: list[Any], group: str, changes: Changes) -> list[Entry]:
    """Well-formed entries, the first of each id; other annotations of that id go to the end and get another id."""
    first_of: dict[int, Entry] = {}
    later = []
    for entry in entries:
        if not is_well_formed(entry, group):
            changes.add(f"{group} left out: malformed", name_of(entry))
        elif entry["id"] not in first_of:
            first_of[entry["id"]] = entry
        # Nothing refers to an annotation by its id, so a new one harms nothing; image and category ids are referred to.
        elif group == "annotations" and entry != first_of[entry["id"]]:
            changes.add("annotations given another id", name_of(entry))
            later.append(entry)
        else:
            changes.add(f"{group} left out: id occurs before", name_of(entry))
    unused = max(first_of, default=0) + 1
    renumbered = [entry | {"id": number} for number, entry in enumerate(later, start=unused)]
    return [*first_of.values(), *renumbered]


def _keep_image(image: Entry, folder: Path, output: Path, changes: Changes) -> bool:
    """Link a sound image into the output, or store it rotated; False for one that cannot be used."""
    name = image["file_name"]
    target = output / name
    if not is_inside(name) or os.path.lexists(target):
        changes.add(BAD_NAME, name)
        return False
    fault = image_fault(folder, image, decode=True)
    rotated = None
    if fault is not None and fault.fatal:
        rotated = _rotated(folder / name, (image["width"], image["height"]))
        if rotated is None:
            changes.add(BAD_FILE, name)
            return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (
        FileExistsError,
        NotADirectoryError,
    ):  # another image has the name of this one's folder
        changes.add(BAD_NAME, name)
        return False
    with naming_storage_faults(target):
        if rotated is None:
            target.symlink_to((folder / name).absolute())
        else:
            options = SAVE_OPTIONS.get(rotated.format or "", {})
            rotated.save(target, format=rotated.format, **options)
    if rotated is not None:
        changes.add("images stored as their EXIF rotation shows them", name)
    return True


def _rotated(path: Path, size: Size) -> Image.Image | None:
    """The image as its EXIF rotation shows it, if that has the listed (width, height); the format stays."""
    try:
        with Image.open(path) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)  # in place, as a copy has no `format`
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return picture if picture.size == size else None


def _cut_box(annotation: Entry, size: Size, changes: Changes) -> bool:
    """Cut a box to its image of (height, width), in place; False if nothing remains."""
    if has_area(annotation["bbox"]):
        x, y, width, height = annotation["bbox"]
        image_height, image_width = size
        left, right = _clip(x, image_width), _clip(x + width, image_width)
        top, bottom = _clip(y, image_height), _clip(y + height, image_height)
        if right > left and bottom > top:
            cut = max(left - x, top - y, x + width - right, y + height - bottom)
            if cut > 0:
                annotation["bbox"] = [left, top, right - left, bottom - top]
                annotation["area"] = object_area(annotation, size)
                changes.add("boxes cut to their image", name_of(annotation))
            return True
    changes.add("annotations left out: box without area inside its image", name_of(annotation))
    return False


def _clip(position: float, length: int) -> float:
    return min(max(position, 0), length)
