"""Writes a copy of a data set without its faults; the original stays untouched."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from boxseg.coco.checks import REQUIRED_KEYS, RULES, read_whole
from boxseg.coco.masks import encode_segmentation
from boxseg.coco.mend import Done, mend_content, name_of
from boxseg.coco.picture_checks import image_fault
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.files.writing import naming_storage_faults, write_atomic

ANNOTATIONS, IMAGES = "annotations.json", "images"
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": "keep"},  # the tables of the file that was read
    "MPO": {"quality": 95},
    "WEBP": {"quality": 95},
}
"""Format of a rotated image -> how it is stored with little loss."""


def write_fixed(source: CocoSource, output: Path) -> Done:
    """Write `output/annotations.json` and `output/images/` (links) without what makes a data set unusable.

    What can be mended is: ids and sizes of another kind, file names of other systems, entries of one file, polygons of
    too few points or in shares, missing sizes and boxes. Images are left out if they are missing, damaged or of another
    size than listed; one that is listed as its EXIF rotation shows it is stored rotated. Annotations are left out if
    they are malformed or belong to nothing; boxes are cut to their image and left out if nothing remains. Ids that
    occur twice are given anew. All other fields stay.

    Args:
        source: Images and annotation file.
        output: A new or empty folder.

    Returns:
        What was done, how often, and to which entries.

    Raises:
        DataError: the file is no COCO file at all, or `output` holds something.
    """
    content = read_whole(source.annotations)
    if output.exists() and any(output.iterdir()):
        raise DataError(
            f"{output}: is not empty; a cleaned copy needs a folder of its own (name another)"
        )
    (output / IMAGES).mkdir(parents=True, exist_ok=True)
    done = Done()

    def keep(image: dict[str, Any]) -> bool:
        return _keep_image(image, source.images, output / IMAGES, done)

    clean_content(content, done, keep_image=keep, folder=source.images)
    write_atomic(output / ANNOTATIONS, json.dumps(content))
    return done


def clean_content(
    content: dict[str, Any],
    done: Done,
    *,
    keep_image: Callable[[dict[str, Any]], bool],
    folder: Path | None = None,
) -> None:
    """Mend the content of a COCO file, and take faulty entries and unwanted images out of it, in place.

    Args:
        content: COCO instances.
        done: Gets what was done.
        keep_image: Whether an image is wanted.
        folder: Of the images, to find and measure them.
    """
    mend_content(content, done, folder=folder)
    for group in REQUIRED_KEYS:
        content[group] = _sound_entries(content[group], group, done)
    content["images"] = [image for image in content["images"] if keep_image(image)]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    kept = []
    for annotation in content["annotations"]:
        size = sizes.get(annotation["image_id"])
        if size is None or annotation["category_id"] not in categories:
            done.add("annotations left out: no such image or category", name_of(annotation))
        elif annotation.get("iscrowd") or _cut_box(annotation, size, done):
            kept.append(annotation)
    content["annotations"] = kept


def _sound_entries(entries: list[Any], group: str, done: Done) -> list[dict[str, Any]]:
    """Entries with all the values they need; of several with one id the later ones go, or get another id."""
    first_of: dict[int, dict[str, Any]] = {}
    again = []
    for entry in entries:
        rules = REQUIRED_KEYS[group]
        if not isinstance(entry, dict) or not all(
            RULES[rule](entry.get(key)) for key, rule in rules.items()
        ):
            done.add(f"{group} left out: malformed", name_of(entry))
        elif entry["id"] not in first_of:
            first_of[entry["id"]] = entry
        elif group == "annotations" and entry != first_of[entry["id"]]:
            done.add("annotations given another id", name_of(entry))
            again.append(entry)
        else:
            done.add(f"{group} left out: id occurs before", name_of(entry))
    unused = max(first_of, default=0) + 1
    return [
        *first_of.values(),
        *(entry | {"id": unused + number} for number, entry in enumerate(again)),
    ]


def _keep_image(image: dict[str, Any], folder: Path, output: Path, done: Done) -> bool:
    """Link a sound image into the output, or store it rotated; False for one that cannot be used."""
    name = image["file_name"]
    target = output / name
    if not is_inside(name) or os.path.lexists(target):
        done.add("images left out: name leads out of the folder or occurs before", name)
        return False
    fault = image_fault(folder, image, decode=True)
    is_sound = fault is None or not fault.fatal
    turned = None if is_sound else _rotated(folder / name, (image["width"], image["height"]))
    if not is_sound and turned is None:
        done.add("images left out: missing, damaged or of another size", name)
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # an image has the name of this one's folder
        done.add("images left out: name leads out of the folder or occurs before", name)
        return False
    with naming_storage_faults(target):
        if turned is None:
            target.symlink_to((folder / name).absolute())
        else:
            turned.save(target, format=turned.format, **SAVE_OPTIONS.get(turned.format or "", {}))
    if turned is not None:
        done.add("images stored as their EXIF rotation shows them", name)
    return True


def _rotated(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """The image as its EXIF rotation shows it, of the same format, if that has the listed (width, height)."""
    try:
        with Image.open(path) as turned:
            turned.load()
            ImageOps.exif_transpose(turned, in_place=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return turned if turned.size == size else None


def _cut_box(annotation: dict[str, Any], size: tuple[int, int], done: Done) -> bool:
    """Cut the box to its image, in place; False if nothing remains."""
    x, y, width, height = bbox = annotation["bbox"]
    if all(map(math.isfinite, bbox)):
        left, top = min(max(x, 0), size[0]), min(max(y, 0), size[1])
        right, bottom = min(max(x + width, 0), size[0]), min(max(y + height, 0), size[1])
        if right > left and bottom > top and width > 0 and height > 0:
            if (left, top) != (x, y) or right - left < width or bottom - top < height:
                annotation["bbox"] = [left, top, right - left, bottom - top]
                annotation["area"] = _area(annotation, size)
                done.add("boxes cut to their image", name_of(annotation))
            return True
    done.add("annotations left out: box without area inside its image", name_of(annotation))
    return False


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    """Of the mask inside the image, (width, height), where there is one, or else of the box [px]."""
    if not annotation.get("segmentation"):
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    return float(
        coco_mask.area(encode_segmentation(annotation["segmentation"], (size[1], size[0])))
    )
