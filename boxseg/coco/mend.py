"""Mends entries of a COCO file that are right but written in another way than COCO's; in place, and counted."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boxseg.coco.entries import (
    Content,
    Entry,
    has_area,
    has_id_and_name,
    is_finite_bbox,
    plain_box,
    to_numbers,
)
from boxseg.coco.odd_boxes import LARGEST_SHARE, sign_of_corners
from boxseg.coco.odd_entries import corners, has_wrong_area, is_fitting, place_problem
from boxseg.coco.segmentations import MaskSummary, Size, find_extent, find_problem, is_side
from boxseg.files.names import Names, is_file_inside, is_inside, listed_name
from boxseg.files.reading import UnreadableError, is_float, is_whole, read_picture

NUMBERS = ("id", "image_id", "category_id", "width", "height")
"""Keys whose values COCO wants as whole numbers."""
IDENTITY = ("image_id", "category_id", "bbox", "segmentation", "iscrowd")
"""Annotations that agree in these keys are the same object."""
MAX_ID_DIGITS = 18
"""Ids are numbers of 64 bits, which have no more digits."""
NAMED_ENTRIES = 5
"""Entries that are named for each kind of change."""

Polygons = list[list[float]]


class Changes(Counter[str]):
    """What was changed, and how often; with the names of the first few entries of each kind of change."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, change: str, name: object) -> None:
        """Count a change, and remember what the changed entry is called."""
        self[change] += 1
        if len(self._names[change]) < NAMED_ENTRIES:
            self._names[change].append(str(name))

    def lines(self) -> list[str]:
        """A line for each kind of change: how often, what, and the names."""
        lines = []
        for change, count in self.items():
            names = ", ".join(self._names[change])
            more = ", …" if count > NAMED_ENTRIES else ""
            lines.append(f"{count} {change} ({names}{more})")
        return lines


def name_of(entry: Any) -> str:
    """How messages name an entry: the file of an image, the name of a category, the id of an annotation."""
    if not isinstance(entry, dict):
        return repr(entry)[:40]
    return str(entry.get("file_name", entry.get("name", f"id {entry.get('id')!r:.40}")))


def mend_content(content: Content, changes: Changes, *, folder: Path | None) -> None:
    """Mend what can be mended; the rest stays as it is.

    Args:
        content: A COCO instance file.
        changes: Gets what was changed.
        folder: Of the images, to find and measure them. None: image files are not looked for.
    """
    images, categories, annotations = (
        [entry for entry in content[group] if isinstance(entry, dict)]
        for group in ("images", "categories", "annotations")
    )
    for entry in (*images, *categories, *annotations):
        _write_whole_numbers(entry, changes)
    for annotation in annotations:
        _write_numbers(annotation, changes)
    _name_categories(content, categories, annotations, changes)
    new_image_id = _renumber(images, "images", changes)
    new_category_id = _renumber(categories, "categories", changes)
    # An annotation may name its image; where two images have the name, it says nothing.
    named = [image for image in images if has_id_and_name(image)]
    counts = Counter(image["file_name"] for image in named)
    id_of_name = {
        image["file_name"]: image["id"] for image in named if counts[image["file_name"]] == 1
    }
    for annotation in annotations:
        annotation["image_id"] = new_image_id(annotation.get("image_id"))
        if isinstance(annotation["image_id"], str) and annotation["image_id"] in id_of_name:
            annotation["image_id"] = id_of_name[annotation["image_id"]]
            changes.add("file names of images written as ids", name_of(annotation))
        annotation["category_id"] = new_category_id(annotation.get("category_id"))
    _renumber(annotations, "annotations", changes)
    renamed = _find_files(images, folder, changes) if folder is not None else []
    _join_images(content, folder, changes)
    # Counted only now, so that no message names an entry that was joined with another.
    remaining = {id(image) for image in content["images"]}
    for image in renamed:
        if id(image) in remaining:
            changes.add("file names written as on the disk", image["file_name"])
    content["annotations"] = _without_repeated(content["annotations"], changes)
    sizes = {}
    for image in images:
        if _has_size(image) and is_whole(image.get("id")):
            sizes[image["id"]] = image["height"], image["width"]
    _write_sides(annotations, sizes, changes)
    for annotation in annotations:
        image_id = annotation["image_id"]
        if is_whole(image_id) and image_id in sizes:
            _mend_mask(annotation, sizes[image_id], changes)


def _has_size(image: Entry) -> bool:
    return is_side(image.get("width")) and is_side(image.get("height"))


def _write_whole_numbers(entry: Entry, changes: Changes) -> None:
    """Write 64.0 as 64: pandas makes floats of all whole numbers of a column in which some are missing."""
    is_changed = False
    for key in NUMBERS:
        value = entry.get(key)
        if isinstance(value, float) and value.is_integer():
            entry[key] = int(value)
            is_changed = True
    if is_changed:
        changes.add("entries with whole numbers written as such", name_of(entry))


def _write_numbers(annotation: Entry, changes: Changes) -> None:
    """Write boxes in another form, crowd flags that are texts, and sides that count backwards, as COCO wants them."""
    bbox: Any = annotation.get("bbox")
    flag: Any = annotation.get("iscrowd")
    if not is_finite_bbox(bbox) and (numbers := plain_box(bbox)) is not None:
        annotation["bbox"] = numbers
        changes.add("boxes written as a list of four numbers", name_of(annotation))
    if flag in ("0", "1"):
        annotation["iscrowd"] = int(flag)
        changes.add("crowd flags written as numbers", name_of(annotation))
    bbox = annotation.get("bbox")
    if is_finite_bbox(bbox) and min(bbox[2:]) < 0:
        # Drawn from the right or from below, a box has negative sides in some tools.
        x, y, width, height = bbox
        annotation["bbox"] = [min(x, x + width), min(y, y + height), abs(width), abs(height)]
        changes.add("boxes with sides that count backwards turned round", name_of(annotation))


def _name_categories(
    content: Content, categories: list[Entry], annotations: list[Entry], changes: Changes
) -> None:
    """Give categories that have none a name from their id, and annotations that name their category its id."""
    if not content["categories"]:
        ids: list[Any] = [annotation.get("category_id") for annotation in annotations]
        for category_id in sorted({number for number in ids if is_whole(number)}):
            categories.append({"id": category_id, "name": f"class {category_id}"})
            changes.add("categories made for the ids of annotations", category_id)
        content["categories"] = categories
    for category in categories:
        name = category.get("name")
        if isinstance(name, str) and name.strip():
            continue
        is_number = is_float(name)
        category["name"] = str(name) if is_number else f"class {category.get('id')}"
        changes.add("categories given a name", category["name"])
    id_of = {category["name"]: category.get("id") for category in categories}
    for annotation in annotations:
        named = annotation.get("category_id")
        if isinstance(named, str) and named in id_of and not named.strip().isdecimal():
            annotation["category_id"] = id_of[named]
            changes.add("categories of annotations written as ids", name_of(annotation))


def _without_repeated(annotations: list[Any], changes: Changes) -> list[Any]:
    """The annotations, each object once: those that agree in all of `IDENTITY` are the same."""
    seen = set()
    distinct = []
    for annotation in annotations:
        if isinstance(annotation, dict) and annotation.get("bbox"):
            identity = repr([annotation.get(key) for key in IDENTITY])
            if identity in seen:
                changes.add("annotations left out: the same twice", name_of(annotation))
                continue
            seen.add(identity)
        distinct.append(annotation)
    return distinct


def _write_sides(annotations: list[Entry], sizes: dict[int, Size], changes: Changes) -> None:
    """Write boxes as x, y, width, height, if all look like corners."""
    objects = [entry for entry in annotations if not entry.get("iscrowd")]
    of_images = [entry for entry in objects if is_whole(entry["image_id"])]
    if sign_of_corners(of_images, sizes) is None:
        return
    for annotation in annotations:
        if is_finite_bbox(annotation.get("bbox")):
            x1, y1, x2, y2 = annotation["bbox"]
            annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if not annotation.get("segmentation"):
                annotation["area"] = (x2 - x1) * (y2 - y1)
            changes.add(
                "boxes written as x, y, width, height, not as corners", name_of(annotation)
            )


def _renumber(entries: list[Entry], group: str, changes: Changes) -> Callable[[Any], Any]:
    """Give whole numbers of 64 bits to entries with other ids; returns what maps an old id to the new one."""
    whole_ids = [entry["id"] for entry in entries if is_whole(entry.get("id"))]
    unused = max(whole_ids, default=0) + 1
    new_ids: dict[Any, int] = {}
    for entry in entries:
        old_id = entry.get("id")
        is_too_long = isinstance(old_id, int) and abs(old_id) >= 2**63
        if not is_too_long and not isinstance(old_id, str | float):
            continue
        # Entries that share an id still do: that it occurs twice is dealt with later.
        if old_id not in new_ids:
            new_ids[old_id] = unused
            unused += 1
        changes.add(f"{group} given another id", name_of(entry))
        entry["id"] = new_ids[old_id]
    known = {entry["id"] for entry in entries if is_whole(entry.get("id"))}

    def new_id(old_id: Any) -> Any:
        if isinstance(old_id, str | int | float) and old_id in new_ids:
            return new_ids[old_id]
        # Annotations may refer to image 7 as "7".
        is_number = isinstance(old_id, str) and old_id.strip().isdecimal()
        if is_number and len(old_id) <= MAX_ID_DIGITS and int(old_id) in known:
            return int(old_id)
        return old_id

    return new_id


def _find_files(images: list[Entry], folder: Path, changes: Changes) -> list[Entry]:
    """Correct file names and missing sizes by the files in the folder; returns the images that were renamed."""
    names = Names.below(folder)
    renamed = []
    for image in images:
        # LVIS names its images only by their addresses, which end in the names of the files.
        file_name = image.get("file_name") or image.get("coco_url")
        if isinstance(file_name, str) and not is_file_inside(folder, file_name):
            match = names.find(file_name)
            if match is not None and match != file_name:
                image["file_name"] = match
                renamed.append(image)
        _measure(image, folder, changes)
    return renamed


def _measure(image: Entry, folder: Path, changes: Changes) -> None:
    """Take width and height from the file, if the entry has none."""
    name = image.get("file_name")
    if _has_size(image) or not isinstance(name, str) or not is_inside(name):
        return
    try:
        image["width"], image["height"] = read_picture(folder / name, lambda picture: picture.size)
    except UnreadableError:
        return
    changes.add("sizes read from the image", name)


def _join_images(content: Content, folder: Path | None, changes: Changes) -> None:
    """Keep the first entry of each file and size, and give it the annotations of the others."""
    first_ids: dict[tuple[str, str], int] = {}
    new_ids: dict[int, int] = {}
    images = []
    for image in content["images"]:
        if has_id_and_name(image):
            # of any kind, malformed too
            size = repr((image.get("width"), image.get("height")))
            file = listed_name(image["file_name"], folder)
            first_id = first_ids.setdefault((file, size), image["id"])
            if first_id != image["id"]:
                new_ids[image["id"]] = first_id
                change = "image entries joined with another of the same file"
                changes.add(change, image["file_name"])
                continue
        images.append(image)
    content["images"] = images
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and is_whole(annotation.get("image_id")):
            image_id = annotation["image_id"]
            annotation["image_id"] = new_ids.get(image_id, image_id)


def _mend_mask(annotation: Entry, size: Size, changes: Changes) -> None:
    """Keep what can be decoded of a mask, and give a box to an annotation that has only a mask."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return
    name = name_of(annotation)
    bbox = annotation.get("bbox")
    box = bbox if has_area(bbox) else None
    segmentation, change = _unwrapped(segmentation)
    if isinstance(segmentation, list):
        segmentation, polygon_change = _mend_polygons(segmentation, box, size)
        change = polygon_change or change
    elif (counts := _counts_of_bytes(segmentation)) is not None:
        segmentation = segmentation | {"counts": counts}
        change = "run lengths without Python's sign of bytes"
    if not segmentation or find_problem(segmentation, size) is not None:
        del annotation["segmentation"]
        changes.add("masks left out: they cannot be decoded", name)
        return
    mask = MaskSummary.of(segmentation)
    if box is not None and place_problem(mask, annotation, size) is not None:
        del annotation["segmentation"]
        changes.add("masks left out: away from their box or image", name)
        return
    annotation["segmentation"] = segmentation
    if change:
        changes.add(change, name)
    if not annotation.get("iscrowd") and has_wrong_area(annotation, mask):
        annotation["area"] = mask.area
        changes.add("areas taken from the mask", name)
    if box is None and mask.extent is not None:
        x1, y1, x2, y2 = mask.extent
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        changes.add("boxes taken from the mask", name)


def _unwrapped(segmentation: Any) -> tuple[Any, str]:
    """A mask that is written as JSON in a text, or in one list too many, as it is meant; and what was changed."""
    inner = segmentation
    if isinstance(inner, str):
        with contextlib.suppress(ValueError, RecursionError):
            inner = json.loads(inner)
    if isinstance(inner, list) and len(inner) == 1 and isinstance(inner[0], dict):
        (inner,) = inner
    return inner, "" if inner is segmentation else "masks written as COCO's"


def _counts_of_bytes(segmentation: Any) -> str | None:
    """Run lengths written as b'…', which is what `str` makes of pycocotools' bytes; None for others."""
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, str) or re.fullmatch(r"b'[^']*'|b\"[^\"]*\"", counts) is None:
        return None
    try:
        return str(ast.literal_eval(counts).decode())
    except (ValueError, SyntaxError):
        return None


def _mend_polygons(
    polygons: list[Any], box: list[float] | None, size: Size
) -> tuple[Polygons, str]:
    """The sound polygons of a mask in pixels, and what was changed; the last change if there were several.

    Args:
        polygons: The segmentation in the file.
        box: COCO's x, y, width, height of the object, if they are sound.
        size: (height, width) of the image in pixels.
    """
    change = ""
    in_lists = _as_lists(polygons)
    if in_lists != polygons:
        polygons, change = in_lists, "masks written as a list of polygons"
    sound = [polygon for polygon in polygons if find_problem([polygon]) is None]
    if sound and len(sound) < len(polygons):
        change = "masks without polygons of less than three points"
    if sound and box is not None:
        scaled = _scale_shares(sound, box, size)
        if scaled is not None:
            return scaled, "masks in pixels instead of shares"
    return sound, change


def _as_lists(polygons: list[Any]) -> list[Any]:
    """Polygons as lists of numbers: some tools write one without the list around it, pairs of numbers, or texts.

    >>> _as_lists([1, 2, 5, 2, 5, 8]), _as_lists([[[1, 2], [5, 2], [5, 8]]])
    ([[1, 2, 5, 2, 5, 8]], [[1, 2, 5, 2, 5, 8]])
    """
    if polygons and all(map(is_float, polygons)):
        polygons = [polygons]
    lists = []
    for polygon in polygons:
        is_list = isinstance(polygon, list)
        if is_list and all(isinstance(point, list) and len(point) == 2 for point in polygon):
            polygon = [number for point in polygon for number in point]
        if is_list and any(isinstance(number, str) for number in polygon):
            polygon = to_numbers(polygon) or polygon
        lists.append(polygon)
    return lists


def _scale_shares(polygons: Polygons, box: list[float], size: Size) -> Polygons | None:
    """Polygons in pixels, if they are given as shares of width and height and fit the box as such; None if not."""
    largest = max(abs(number) for polygon in polygons for number in polygon)
    if largest > LARGEST_SHARE or max(box[2:]) <= 2 * LARGEST_SHARE:
        return None
    height, width = size
    scaled = []
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2) * [width, height]
        scaled.append(points.ravel().tolist())
    extent = find_extent(scaled)
    return scaled if extent is not None and is_fitting(extent, corners(box)) else None
