"""What is odd about well-formed entries of a COCO file: masks away from their boxes, similar names, crowds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from boxseg.coco.classes import COUNTED_FROM_1, are_counted_from_1, fold_name
from boxseg.coco.entries import Content, Entry, image_sizes, objects_of
from boxseg.coco.faults import FIX_IN_FILE, Fault
from boxseg.coco.odd_boxes import LARGEST_SHARE
from boxseg.coco.segmentations import Extent, MaskSummary, Problem, Size, other_size
from boxseg.files.names import listed_name
from boxseg.files.reading import is_number

FITTING_IOU = 0.5
"""IoU of a box and the one around its mask below which they can hardly mean the same object."""
MOST_CROWDS = 0.05
"""Share of the annotations that are crowds; COCO has 0.012."""
MOST_NESTED = 0.002
"""Share of the polygon masks in which a polygon lies inside another; COCO has 0.0006, from clumsy drawing."""
MOST_DETECTIONS = 100
"""COCO's AP counts at most this many detections of a class in an image."""
NAMED_ENTRIES = 10
"""Ids of entries that one fault names."""
AREA_FACTOR = 2.0
"""An `area` that differs from the pixels of its mask by more is wrong: where polygons overlap, they differ too."""
LEAST_AREA_PX = 16
"""Of smaller masks, rounding changes the area by as much."""
LISTED_ONCE = "each image is listed once: objects of its other entries would be background"
IN_BOX = "a mask lies in the box of its object"


def mask_faults(path: Path, content: Content, *, fatal: bool) -> Iterator[Fault]:
    """Masks that cannot be decoded, are made for another image, or have no pixel in their box.

    Args:
        path: The file.
        content: With a `mask_summary` in each annotation whose mask is to be looked at.
        fatal: Whether the masks are needed.
    """
    sizes = image_sizes(content)
    for annotation in content["annotations"]:
        mask: MaskSummary | None = annotation.get("mask_summary")
        size = sizes.get(annotation["image_id"])
        if mask is None:
            continue
        problem = mask.problem or place_problem(mask, annotation, size)
        is_fatal = fatal
        if problem is None:
            problem, is_fatal = fit_problem(mask, annotation, size), False
        if problem is not None:
            place = annotation["image_id"], annotation["id"]
            yield Fault(path, *problem, FIX_IN_FILE, *place, fatal=is_fatal)


def hole_faults(path: Path, content: Content) -> Iterator[Fault]:
    """One fault for the masks that have a polygon inside another of their polygons, unless they are a rare few."""
    nested = []
    polygon_masks = 0
    for annotation in content["annotations"]:
        mask: MaskSummary | None = annotation.get("mask_summary")
        if mask is None:
            continue
        polygon_masks += mask.is_polygons
        if mask.is_nested:
            nested.append(annotation)
    if len(nested) > MOST_NESTED * polygon_masks:
        value = f"has {len(nested)} masks with a polygon inside another of their polygons"
        rule = "COCO fills all polygons of a mask, so the inner one is no hole"
        way_out = "write run lengths where it is one"
        yield Fault.of_many(path, value, rule, way_out, nested)


def place_problem(mask: MaskSummary, annotation: Entry, size: Size | None) -> Problem | None:
    """A mask that is made for another image, or has no pixel in its image of (height, width) or in its box."""
    if size is None:
        return None
    height, width = size
    if mask.made_for is not None and mask.made_for != size:
        return other_size(mask.made_for, size)
    # A crowd's box is not checked, so its mask cannot be compared with it.
    if annotation.get("iscrowd"):
        return None
    if mask.extent is None:
        return "has a mask without a pixel", IN_BOX
    x1, y1, x2, y2 = mask.extent
    mask_range = f"has a mask from {x1:g}, {y1:g} to {x2:g}, {y2:g}"
    bbox = annotation["bbox"]
    box_side = max(bbox[2:])
    is_small = max(map(abs, mask.extent)) <= LARGEST_SHARE
    if mask.is_polygons and is_small and box_side > 2 * LARGEST_SHARE:
        rule = "polygons are in pixels; these look like shares of width and height"
        return f"{mask_range} for bbox {bbox}", rule
    if not overlap(mask.extent, (0, 0, width, height)):
        value = f"{mask_range}, outside its image of {width} x {height} px"
        return value, "masks lie inside their image"
    if not overlap(mask.extent, corners(bbox)):
        return f"{mask_range}, away from its bbox {bbox}", IN_BOX
    return None


def fit_problem(mask: MaskSummary, annotation: Entry, size: Size | None) -> Problem | None:
    """A mask that is far larger or smaller than its box."""
    if size is None or mask.extent is None or annotation.get("iscrowd"):
        return None
    height, width = size
    bbox = annotation["bbox"]
    x1, y1, x2, y2 = mask.extent
    # Polygons may reach beyond the image; a box around what is seen ends there.
    in_image = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if is_fitting(in_image, corners(bbox)):
        return None
    mask_box = ", ".join(f"{side:g}" for side in (x1, y1, x2 - x1, y2 - y1))
    value = f"has bbox {bbox}, and a mask in the box [{mask_box}]"
    return value, "a box is the one around its mask"


def is_fitting(one: Extent, other: Extent) -> bool:
    """Whether two boxes can mean the same object: their IoU is at least `FITTING_IOU`.

    >>> is_fitting((0, 0, 10, 10), (0, 0, 10, 6)), is_fitting((0, 0, 10, 10), (0, 0, 10, 4))
    (True, False)
    """
    # Thin objects are wider with their outer pixels than their corners are apart, so a pixel is the least that counts.
    shared = overlap(one, other)
    union = _area(one) + _area(other) - shared
    return max(shared, 1) >= FITTING_IOU * union


def _area(box: Extent) -> float:
    x1, y1, x2, y2 = box
    return max(x2 - x1, 1) * max(y2 - y1, 1)


def corners(bbox: list[float]) -> Extent:
    """x1 y1 x2 y2 of a box that COCO writes as x, y, width, height.

    >>> corners([1, 2, 3, 4])
    (1.0, 2.0, 4.0, 6.0)
    """
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def overlap(one: Extent, other: Extent) -> float:
    """Area that two boxes share; a box without width or height counts as a pixel wide.

    >>> overlap((0, 0, 4, 4), (2, 2, 9, 9)), overlap((3, 0, 3, 4), (2, 2, 9, 9))
    (4.0, 2.0)
    """
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(max(one[2], one[0] + 1), max(other[2], other[0] + 1))
    bottom = min(max(one[3], one[1] + 1), max(other[3], other[1] + 1))
    return float(max(right - left, 0) * max(bottom - top, 0))


def name_faults(path: Path, content: Content, folder: Path) -> Iterator[Fault]:
    """Classes that are named alike, files that are listed twice, and those that differ in their ending alone."""
    yield from _class_name_faults(path, content["categories"])
    yield from _unused_class_faults(path, content)
    yield from _file_name_faults(path, content["images"], folder)


def _class_name_faults(path: Path, categories: list[Entry]) -> Iterator[Fault]:
    alike: dict[str, list[Entry]] = defaultdict(list)
    for category in categories:
        name = category["name"]
        alike[fold_name(name)].append(category)
        # The byte-order mark U+FEFF and the zero-width space U+200B come with copied text, and do not show.
        if name != name.strip().strip("\ufeff\u200b"):
            value = (
                f"category id {category['id']} has the name {name!r}, "
                "with characters around it that do not show"
            )
            rule, way_out = "classes are matched by name", "write the name alone"
            yield Fault(path, value, rule, way_out, fatal=False)
    for same in alike.values():
        if len(same) > 1:
            value = f"names categories {_ids(same)} alike: {same[0]['name']!r}"
            rule = "runs, labels and other files know classes by their name"
            way_out = "give each a name of its own, or make them one"
            yield Fault(path, value, rule, way_out, fatal=False)


def _unused_class_faults(path: Path, content: Content) -> Iterator[Fault]:
    """Categories that only group others, as Roboflow writes its project's name; and one that others may stand for."""
    used = {annotation["category_id"] for annotation in content["annotations"]}
    parents = set()
    for category in content["categories"]:
        parent = category.get("supercategory")
        # A class may be its own group, as COCO's person is.
        if isinstance(parent, str) and parent != category["name"]:
            parents.add(parent)
    for category in content["categories"]:
        if category["name"] in parents and category["id"] not in used:
            value = (
                f"category id {category['id']} {category['name']!r} has no object, "
                "and is the supercategory of others"
            )
            rule, way_out = "each category is a class of the network", "remove it if it is none"
            yield Fault(path, value, rule, way_out, fatal=False)
        elif category["id"] == 0 and are_counted_from_1(used):
            value = f"has no object of category id 0 {category['name']!r}, but of 1 to {max(used)}"
            rule, way_out = COUNTED_FROM_1
            yield Fault(path, value, rule, way_out, fatal=False)


def _file_name_faults(path: Path, images: list[Entry], folder: Path) -> Iterator[Fault]:
    same_file: dict[str, list[Entry]] = defaultdict(list)
    for image in images:
        same_file[listed_name(image["file_name"], folder)].append(image)
    same_stem: dict[str, list[str]] = defaultdict(list)
    same_but_case: dict[str, list[str]] = defaultdict(list)
    for name, entries in same_file.items():
        if len(entries) > 1:
            value = f"lists the file {name!r} {len(entries)} times, as images {_ids(entries)}"
            way_out = "join the entries, as `boxseg data check --fix` does"
            yield Fault(path, value, LISTED_ONCE, way_out, image_id=entries[0]["id"])
        file = PurePosixPath(name)
        stem = str(file.with_suffix("")) if file.name else name  # an empty name has no ending
        same_stem[stem].append(name)
        same_but_case[name.casefold()].append(name)
    for names in same_stem.values():
        if len(names) > 1:
            value = f"lists {' and '.join(names[:5])}, which differ in their ending alone"
            rule, way_out = "YOLO cannot tell them apart", "rename one, in the file too"
            yield Fault(path, value, rule, way_out, fatal=False)
    for names in same_but_case.values():
        if len(names) > 1:
            value = f"lists {' and '.join(names[:5])}, which differ in their case alone"
            rule = "they are one file on disks of Windows and of Macs"
            yield Fault(path, value, rule, "rename one, in the file too", fatal=False)


def _ids(entries: list[Entry]) -> str:
    return ", ".join(str(entry["id"]) for entry in entries[:NAMED_ENTRIES])


def crowd_faults(path: Path, content: Content) -> Iterator[Fault]:
    """Many annotations that are crowds: some tools mark single objects so."""
    annotations = content["annotations"]
    crowds = [entry for entry in annotations if entry.get("iscrowd") and entry.get("has_mask")]
    if len(crowds) <= MOST_CROWDS * len(annotations):
        return
    value = f"has {len(crowds)} of {len(annotations)} masks marked as crowds (iscrowd 1)"
    rule = "crowds are regions of several objects: they are neither trained on, labelled nor evaluated"
    way_out = "set iscrowd to 0 where it is one object, as CVAT's brush marks them"
    yield Fault(path, value, rule, way_out, annotation_id=crowds[0]["id"], fatal=False)


def evaluation_faults(path: Path, content: Content) -> Iterator[Fault]:
    """What makes the numbers of an evaluation with this file misleading."""
    if any(entry["id"] == 0 for entry in content["annotations"]):
        rule = "pycocotools takes id 0 for no match, and counts a miss; boxseg does not, others do"
        yield Fault(path, "has the id 0", rule, "count ids from 1", annotation_id=0, fatal=False)
    objects = objects_of(content)
    yield from _area_faults(path, objects)
    counts = Counter((entry["image_id"], entry["category_id"]) for entry in objects)
    crowded_images = set()
    lost = 0
    for (image_id, _), count in counts.items():
        if count > MOST_DETECTIONS:
            crowded_images.add(image_id)
            lost += count - MOST_DETECTIONS
    if crowded_images:
        value = (
            f"has {len(crowded_images)} images with more than {MOST_DETECTIONS} objects of a class"
        )
        rule = (
            f"COCO's AP counts the {MOST_DETECTIONS} best detections of an image and a class: "
            f"{lost} of {len(objects)} objects cannot be found, so recall ends at "
            f"{1 - lost / len(objects):.3f}"
        )
        way_out = "cut such images into pieces, or compare AP on this set alone"
        yield Fault(path, value, rule, way_out, fatal=False)


def _area_faults(path: Path, objects: list[Entry]) -> Iterator[Fault]:
    wrong = [entry for entry in objects if has_wrong_area(entry, entry.get("mask_summary"))]
    if wrong:
        first = wrong[0]
        shown = f"area {first['area']} for a mask of {first['mask_summary'].area:.0f} px"
        value = f"has {len(wrong)} of {len(objects)} objects with a wrong `area`, such as {shown}"
        rule = "AP of small, medium and large objects goes by the area"
        way_out = "correct it, or let `boxseg data check --fix` do it"
        yield Fault.of_many(path, value, rule, way_out, wrong)


def has_wrong_area(annotation: Entry, mask: MaskSummary | None) -> bool:
    """Whether an annotation gives an area that is far from the one of its mask."""
    area: Any = annotation.get("area")
    if mask is None or not is_number(area) or mask.area < LEAST_AREA_PX:
        return False
    return not mask.area / AREA_FACTOR <= area <= mask.area * AREA_FACTOR
