"""Mends entries of a COCO file that say the right thing in another way than COCO wants it; in place, and counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxseg.coco.entries import Content, Entry, is_finite_bbox
from boxseg.coco.odd_boxes import are_corners
from boxseg.coco.odd_entries import corners, has_wrong_area, overlap
from boxseg.coco.segmentations import (
    MAX_SIDE_PX,
    Extent,
    MaskSummary,
    Size,
    find_area,
    find_extent,
    find_problem,
)
from boxseg.files.images import find_picture
from boxseg.files.names import Names, is_file_inside, is_inside, listed_name
from boxseg.files.reading import UnreadableError, is_whole, read_picture

NUMBERS = ("id", "image_id", "category_id", "width", "height")
"""Keys whose values COCO wants as whole numbers."""
IDENTITY = ("image_id", "category_id", "bbox", "segmentation", "iscrowd")
"""Annotations that agree in these keys are the same object."""
MAX_ID_DIGITS = 18
"""Ids are numbers of 64 bits, which have no more digits."""
NAMED_ENTRIES = 5
"""Entries that are named for each kind of change."""


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
    """What people know an entry by: the file of an image, the name of a category, the id of an annotation."""
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
    new_image_id = _renumber(images, "images", changes)
    new_category_id = _renumber(categories, "categories", changes)
    for annotation in annotations:
        annotation["image_id"] = new_image_id(annotation.get("image_id"))
        annotation["category_id"] = new_category_id(annotation.get("category_id"))
    _renumber(annotations, "annotations", changes)
    renamed = _find_files(images, folder, changes) if folder is not None else []
    _join_images(content, folder, changes)
    # Counted only now, so that entries which were joined with another are not named.
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
    sides: list[Any] = [image.get("width"), image.get("height")]
    return all(is_whole(side) and 0 < side <= MAX_SIDE_PX for side in sides)


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
    if not are_corners([entry for entry in objects if is_whole(entry["image_id"])], sizes):
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
        # Entries of one id stay of one id: that it occurs twice is dealt with later.
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
    """Correct file names and missing sizes by the files in the folder; returns the images of another name now."""
    names = Names.below(folder)
    renamed = []
    for image in images:
        file_name = image.get("file_name")
        if isinstance(file_name, str) and not is_file_inside(folder, file_name):
            match = find_picture(names, file_name)
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
    first_ids: dict[tuple[str, str, str], int] = {}
    new_ids: dict[int, int] = {}
    images = []
    for image in content["images"]:
        if _has_name_and_id(image):
            # of any kind, malformed too
            size = (
                repr(image.get("width")),
                repr(image.get("height")),
            )
            file_and_size = (listed_name(image["file_name"], folder), *size)
            first_id = first_ids.setdefault(file_and_size, image["id"])
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


def _has_name_and_id(image: Any) -> bool:
    if not isinstance(image, dict):
        return False
    return isinstance(image.get("file_name"), str) and is_whole(image.get("id"))


def _mend_mask(annotation: Entry, size: Size, changes: Changes) -> None:
    """Keep what can be decoded of a mask, and give a box to an annotation that has a mask alone."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return
    name = name_of(annotation)
    bbox = annotation.get("bbox")
    box = bbox if _is_box(bbox) else None
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if find_problem([polygon]) is None]
    if not segmentation or find_problem(segmentation, size) is not None:
        del annotation["segmentation"]
        changes.add("masks left out: they cannot be decoded", name)
        return
    extent = find_extent(segmentation)
    # The box of a crowd may be anything, so its mask is not compared with it.
    compared = None if annotation.get("iscrowd") else box
    if compared is not None and not _is_in_place(extent, compared, size):
        del annotation["segmentation"]
        changes.add("masks left out: away from their box or image", name)
        return
    if len(segmentation) < len(annotation["segmentation"]):
        changes.add("masks without polygons of less than three points", name)
    annotation["segmentation"] = segmentation
    if not annotation.get("iscrowd") and has_wrong_area(annotation, MaskSummary.of(segmentation)):
        annotation["area"] = find_area(segmentation)
        changes.add("areas taken from the mask", name)
    if box is None and extent is not None:
        x1, y1, x2, y2 = extent
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        changes.add("boxes taken from the mask", name)


def _is_box(bbox: Any) -> bool:
    return is_finite_bbox(bbox) and min(bbox[2:]) > 0


def _is_in_place(extent: Extent | None, box: list[float], size: Size) -> bool:
    """Whether a mask shares some of its box and of its image, as `odd_entries.mask_faults` wants it."""
    if extent is None:
        return False
    height, width = size
    whole_image = (0, 0, width, height)
    return overlap(extent, corners(box)) > 0 and overlap(extent, whole_image) > 0
