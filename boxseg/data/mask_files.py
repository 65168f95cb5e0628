"""Masks that a file holds, COCO instances or a COCO list of results, for the images and classes of a data set."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from boxseg.coco.classes import ABSENT, find_labels, fold_name
from boxseg.coco.masks import encode_segmentation
from boxseg.coco.segmentations import MASKS_RULE, Problem, find_problem
from boxseg.data.dataset import CocoBoxes
from boxseg.errors import DataError
from boxseg.files.names import Names, is_tail
from boxseg.files.reading import is_number, is_whole, read_json

logger = logging.getLogger(__name__)


def read_masks(path: Path, data: CocoBoxes) -> dict[int, list[dict[str, Any]]]:
    """Entries of COCO instances or results that have a mask, with a box and a label each, by image id of the data.

    The `label` is the index of the data's class: of the same name where the file lists its categories, of the same id
    elsewhere; `ABSENT` where the data has no such class. What is for other images, or has no mask, is left out, and
    counted in a warning.

    Raises:
        DataError: the file is missing or holds something else, or none of its masks is for an image of the data.
    """
    content = read_json(path, MASKS_RULE)
    entries, images, categories = content, None, None
    if isinstance(content, dict):
        entries, images, categories = (
            content.get(key) for key in ("annotations", "images", "categories")
        )
    if not isinstance(entries, list):
        raise DataError(f"{path}: has no list of annotations; {MASKS_RULE} (name another file)")
    ours = (
        _match_images(path, images, data)
        if images
        else {data.image_id(index): index for index in range(len(data))}
    )
    label_of = _match_classes(categories, data)
    masks_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    foreign = without_mask = 0
    for number, entry in enumerate(entries):
        problem = _entry_problem(entry)
        if problem is not None:
            raise DataError(
                f"{path}: entry {number} {problem[0]}; {problem[1]} (correct or remove it)"
            )
        index = ours.get(entry["image_id"])
        if index is None:
            foreign += 1
        elif not entry.get("segmentation"):
            without_mask += 1
        else:
            box = list(map(float, entry.get("bbox") or _box_of(path, entry, data.size(index))))
            label = label_of.get(entry.get("category_id"), ABSENT)
            masks_of[data.image_id(index)].append(entry | {"bbox": box, "label": label})
    if not masks_of:
        raise DataError(_nothing_found(path, images, data))
    for count, what in (
        (foreign, "are for other images than those listed"),
        (without_mask, "have no mask"),
    ):
        if count:
            logger.warning(
                "%s: %d of %d entries %s; they are left out", path, count, len(entries), what
            )
    return masks_of


def _match_images(path: Path, images: Any, data: CocoBoxes) -> dict[int, int]:
    """Image id of a file of masks -> index in the data of the same image.

    That is the one of the same name, the same file, or else the only one of which one name is the end of the other:
    `set/val/a.png` is `a.png` of the folder `set/val`, and none of the folder `set/train`.
    """
    index_of = {data.file_name(index): index for index in range(len(data))}
    folder = data.source.images.absolute()
    names = Names(index_of)
    found: dict[int, int] = {}
    for number, image in enumerate(images if isinstance(images, list) else [None]):
        if (
            not isinstance(image, dict)
            or not is_whole(image.get("id"))
            or not isinstance(image.get("file_name"), str)
        ):
            told = f"images[{number}] has no whole number `id` and text `file_name`"
            raise DataError(f"{path}: {told}; {MASKS_RULE} (correct the file)")
        name = image["file_name"]
        same_file = os.path.relpath(os.path.abspath(name), folder)  # noqa: PTH100 - links are kept
        near = [each for each in names.alike(name) if is_tail(name, (folder / each).as_posix())]
        known = [
            each
            for each in (name, same_file, *(near if len(near) == 1 else ()))
            if each in index_of
        ]
        if known:
            found[image["id"]] = index_of[known[0]]
            _require_same_size(path, image, data, index_of[known[0]])
    _require_distinct(path, found, data)
    listed = len(images)
    if 0 < len(found) < listed:
        logger.warning(
            "%s: %d of its %d images are none of %s",
            path,
            listed - len(found),
            listed,
            _place(data),
        )
    if 0 < len(found) < len(data):
        logger.warning(
            "%s: lists %d of the %d images of %s", path, len(found), len(data), _place(data)
        )
    return found


def _require_same_size(path: Path, image: dict[str, Any], data: CocoBoxes, index: int) -> None:
    size, listed = data.size(index), (image.get("height"), image.get("width"))
    if all(map(is_whole, listed)) and listed != size:
        told = f"image {image['id']} is {listed[1]} x {listed[0]} px, and {size[1]} x {size[0]} px"
        raise DataError(
            f"{path}: {told} in {_place(data)}; masks are for images of the same size (name another file)"
        )


def _require_distinct(path: Path, found: dict[int, int], data: CocoBoxes) -> None:
    first: dict[int, int] = {}
    for image_id, index in found.items():
        if index in first:
            told = f"images {first[index]} and {image_id} are both {data.file_name(index)!r}"
            raise DataError(f"{path}: {told}; each image is listed once (name another file)")
        first[index] = image_id


def _match_classes(categories: Any, data: CocoBoxes) -> dict[int, int]:
    """Category id of a file of masks -> label of the data."""
    own = {category_id: label for label, category_id in enumerate(data.category_ids)}
    if not isinstance(categories, list):
        return own
    found: dict[int, int] = {}
    for each in categories:
        if (
            isinstance(each, dict)
            and is_whole(each.get("id"))
            and isinstance(each.get("name"), str)
        ):
            label, name = own.get(each["id"], ABSENT), each["name"]
            is_same = label != ABSENT and fold_name(name) == fold_name(data.class_names[label])
            found[each["id"]] = label if is_same else find_labels([name], data.class_names)[0]
    return found


def _nothing_found(path: Path, images: Any, data: CocoBoxes) -> str:
    """Why a file has no mask for any image, with names or ids to compare."""
    told = f"{path}: has no mask for any image of {data.source.annotations}"
    if not images:
        return f"{told}; {MASKS_RULE}, for images of the same image ids (name the file made for these images)"
    theirs = next((each["file_name"] for each in images if isinstance(each, dict)), "")
    ours = f"{data.file_name(0)!r} in {data.source.images}" if len(data) else "none"
    rule = (
        f"images are those of the same file name: its first is {theirs!r}, that of the data {ours}"
    )
    return (
        f"{told}; {rule} (correct the names, or --images, or name the file made for these images)"
    )


def _place(data: CocoBoxes) -> str:
    return str(data.source.annotations)


def _entry_problem(entry: Any) -> Problem | None:
    """What keeps an entry from being used: the value found and the rule."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}", "entries are objects"
    for key in ("image_id", "category_id"):
        if not is_whole(entry.get(key)) and (key in entry or key == "image_id"):
            return (
                f"has {key} {entry.get(key)!r:.40}",
                "ids are whole numbers, those of the annotation file",
            )
    for key in ("score", "quality"):
        if key in entry and not is_number(entry[key]):
            return f"has {key} {entry[key]!r:.40}", f"a {key} is a finite number"
    bbox = entry.get("bbox")
    if bbox and (not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox))):
        return f"has bbox {bbox!r:.80}", "a bbox is the four numbers x, y, width, height"
    return find_problem(entry["segmentation"]) if entry.get("segmentation") else None


def _box_of(path: Path, entry: dict[str, Any], size: tuple[int, int]) -> list[float]:
    return mask_utils.toBbox(encode_entry(path, entry, size)).tolist()


def encode_entry(path: Path, entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Mask of an entry that `read_masks` gave, of an image of (height, width), run-length encoded.

    Raises:
        DataError: it is made for another size; names the entry.
    """
    try:
        return encode_segmentation(entry["segmentation"], size)
    except DataError as error:
        raise DataError(
            f"{path}: the mask of annotation {entry.get('id')!r:.40} {error}"
        ) from error
