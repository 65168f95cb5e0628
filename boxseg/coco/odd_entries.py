"""What is odd about well-formed entries of a COCO file: masks away from their boxes, names that are taken, crowds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from boxseg.coco.classes import fold_name
from boxseg.coco.faults import Fault
from boxseg.coco.segmentations import KINDS, Extent, Problem
from boxseg.files.names import plain_name

FIX_IN_FILE = "fix or remove it in the file"
TOLERANCE_PX = 1.0
"""A box or a mask may reach this far beyond its image: annotation tools round outward."""
SHARES = 1.5
"""Polygons whose numbers are all below are shares of width and height, unless their box is as small."""
FITTING = 0.5
"""IoU of a box and the one around its mask below which they can hardly mean the same object."""
MOST_CROWDS = 0.05
"""Share of the annotations; COCO has 0.012."""
MOST_DETECTIONS = 100
"""Of an image and a class that COCO's AP counts."""
LISTED_ONCE = "each image is listed once: objects of its other entries would be background"
IN_BOX = "a mask lies in the box of its object"


def mask_faults(path: Path, content: dict[str, Any], *, fatal: bool) -> Iterator[Fault]:
    """Masks that cannot be decoded, were made for another image, or have no pixel in their box.

    Args:
        path: The file.
        content: With `mask_problem` and the like at each annotation, where masks were looked at.
        fatal: Whether the masks are needed.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if "mask_problem" not in annotation:
            continue
        size = sizes.get(annotation["image_id"])
        problem, is_fatal = annotation["mask_problem"] or _size_problem(annotation, size), fatal
        if problem is None and size is not None and not annotation.get("iscrowd"):
            problem = _place_problem(annotation, size)
            if problem is None:
                problem, is_fatal = _fit_problem(annotation, size), False
        if problem is not None:
            value, rule = problem
            place = annotation["image_id"], annotation["id"]
            yield Fault(path, value, rule, FIX_IN_FILE, *place, fatal=is_fatal)


def _size_problem(annotation: dict[str, Any], size: tuple[int, int] | None) -> Problem | None:
    made_for = annotation["mask_size"]
    if size is None or made_for is None or (made_for[1], made_for[0]) == size:
        return None
    return (
        f"has a mask of {made_for[1]} x {made_for[0]} px in an image of {size[0]} x {size[1]} px",
        KINDS,
    )


def _place_problem(annotation: dict[str, Any], size: tuple[int, int]) -> Problem | None:
    """A mask without a pixel in its image, or in its box."""
    extent: Extent | None = annotation["mask_extent"]
    box = corners(annotation["bbox"])
    if extent is None:
        return "has a mask without a pixel", IN_BOX
    x1, y1, x2, y2 = extent
    told = f"has a mask from {x1:g}, {y1:g} to {x2:g}, {y2:g}"
    box_side = max(box[2] - box[0], box[3] - box[1])
    if (
        annotation["mask_is_polygons"]
        and max(map(abs, extent)) <= SHARES
        and box_side > 2 * SHARES
    ):
        return (
            f"{told} for bbox {annotation['bbox']}",
            "polygons are in pixels; these look like shares of width and height",
        )
    if not overlap(extent, (0, 0, *size)):
        return (
            f"{told}, outside its image of {size[0]} x {size[1]} px",
            "masks lie inside their image",
        )
    if not overlap(extent, box):
        return f"{told}, away from its bbox {annotation['bbox']}", IN_BOX
    return None


def _fit_problem(annotation: dict[str, Any], size: tuple[int, int]) -> Problem | None:
    """A mask that is larger or smaller than its box by far."""
    x1, y1, x2, y2 = annotation["mask_extent"]
    extent = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
    if is_fitting(extent, corners(annotation["bbox"])):
        return None
    told = ", ".join(f"{side:g}" for side in (x1, y1, x2 - x1, y2 - y1))
    return (
        f"has bbox {annotation['bbox']}, and a mask in the box [{told}]",
        "a box is the one around its mask",
    )


def is_fitting(one: Extent, other: Extent) -> bool:
    """Whether two boxes can mean the same object."""
    both = overlap(one, other)
    # Thin objects are wider with their outer pixels than their corners are apart.
    areas = (max(each[2] - each[0], 1) * max(each[3] - each[1], 1) for each in (one, other))
    return max(both, 1) >= FITTING * (sum(areas) - both)


def corners(bbox: list[float]) -> Extent:
    """x1 y1 x2 y2 of a box that is written as COCO does."""
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def overlap(one: Extent, other: Extent) -> float:
    """Area that two boxes share; a box without width or height counts as a pixel wide."""
    across = min(max(one[2], one[0] + 1), max(other[2], other[0] + 1)) - max(one[0], other[0])
    down = min(max(one[3], one[1] + 1), max(other[3], other[1] + 1)) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def name_faults(path: Path, content: dict[str, Any]) -> Iterator[Fault]:
    """Classes that are named alike, files that are listed twice, and those that differ in their ending alone."""
    classes = defaultdict(list)
    for category in content["categories"]:
        classes[fold_name(category["name"])].append(category)
        if category["name"] != category["name"].strip().strip("\ufeff\u200b"):
            found = f"category id {category['id']} has the name {category['name']!r}, with invisible signs around it"
            yield Fault(
                path, found, "classes are matched by name", "write the name alone", fatal=False
            )
    for same in classes.values():
        if len(same) > 1:
            ids = ", ".join(str(category["id"]) for category in same[:10])
            found = f"names categories {ids} alike: {same[0]['name']!r}"
            rule = "runs, labels and other files know classes by their name"
            yield Fault(
                path, found, rule, "give each a name of its own, or make them one", fatal=False
            )
    files, stems = defaultdict(list), defaultdict(list)
    for image in content["images"]:
        files[plain_name(image["file_name"])].append(image)
    for name, same in files.items():
        if len(same) > 1:
            found = f"lists the file {name!r} {len(same)} times, as images {', '.join(str(e['id']) for e in same[:10])}"
            way_out = "join the entries, as `boxseg data check --fix` does"
            yield Fault(path, found, LISTED_ONCE, way_out, image_id=same[0]["id"])
        stems[
            str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name
        ].append(name)
    for names in stems.values():
        if len(names) > 1:
            found = f"lists {' and '.join(names[:5])}, which differ in their ending alone"
            yield Fault(
                path,
                found,
                "YOLO cannot tell them apart",
                "rename one, in the file too",
                fatal=False,
            )


def crowd_faults(path: Path, content: dict[str, Any]) -> Iterator[Fault]:
    """How many annotations are crowds, which some tools make of single objects."""
    crowds = [
        each for each in content["annotations"] if each.get("iscrowd") and each.get("has_mask")
    ]
    if len(crowds) > MOST_CROWDS * len(content["annotations"]):
        found = f"has {len(crowds)} of {len(content['annotations'])} masks marked as crowds (iscrowd 1)"
        rule = "crowds are regions of several objects: they are neither trained on, labelled nor evaluated"
        way_out = "set iscrowd to 0 where it is one object, as CVAT's brush marks them"
        yield Fault(path, found, rule, way_out, annotation_id=crowds[0]["id"], fatal=False)


def evaluation_faults(path: Path, content: dict[str, Any]) -> Iterator[Fault]:
    """What makes a file misleading to evaluate with."""
    objects = [each for each in content["annotations"] if not each.get("iscrowd")]
    if any(each["id"] == 0 for each in content["annotations"]):
        rule = "pycocotools takes id 0 for no match, and counts a miss; boxseg does not, others do"
        yield Fault(path, "has the id 0", rule, "count ids from 1", annotation_id=0, fatal=False)
    counts = Counter((each["image_id"], each["category_id"]) for each in objects)
    beyond = {key: count for key, count in counts.items() if count > MOST_DETECTIONS}
    if beyond:
        images = len({image_id for image_id, _ in beyond})
        lost = sum(count - MOST_DETECTIONS for count in beyond.values())
        found = f"has {images} images with more than {MOST_DETECTIONS} objects of a class"
        rule = (
            f"COCO's AP counts the {MOST_DETECTIONS} best detections of an image and a class: {lost} of {len(objects)} "
            f"objects cannot be found, so recall ends at {1 - lost / len(objects):.3f}"
        )
        yield Fault(
            path,
            found,
            rule,
            "cut such images into pieces, or compare AP on this set alone",
            fatal=False,
        )
