"""What is odd about the well-formed boxes of a COCO file: another notation, turned boxes, repeated boxes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.entries import (
    TOLERANCE_PX,
    Content,
    Entry,
    image_sizes,
    is_finite_bbox,
    objects_of,
)
from boxseg.coco.faults import Fault
from boxseg.coco.segmentations import Size
from boxseg.files.reading import is_number

LARGEST_SHARE = 1.5
"""Boxes or polygons with no larger number are shares of width and height, unless their box is as small. 1 is the edge
of the image, and an object may reach a little beyond."""
LEAST_SIDE_PX = 8
"""In smaller images, small coordinates say nothing."""
FEWEST_CORNERS = 4
"""With fewer boxes, all may look like corners by chance."""
CORNERS_BEYOND = 0.25
"""Share of them that end beyond their image as x, y, width, height: three of four do, where objects are anywhere."""
MOST_OF_MARGIN = 0.25
"""Share of them that, read as sides, exceed what lies left of and above their box, but less than twice. Of real boxes
that exceed it an eighth do at most, of corners of small objects half or more."""
PAIR_CHANCE = 1e-3
"""Chance that all boxes fit as corners, if their sides have nothing to do with their place."""
COMPARED_PAIRS = 500
"""Most boxes of which each is paired with the sides of each other."""
FEWEST_BEYOND = 3
"""Fewest boxes beyond their images that point to another notation; fewer are taken for slips."""
BEYOND = 0.05
"""The same as a share of all boxes. In another notation a tenth ends beyond, if boxes are a tenth of the image wide."""
CHANCE = 0.01
"""Chance that boxes anywhere in their images all lie inside as well when they are moved by half their size."""
SHIFTS = {
    -0.5: ("x and y are those of the middle", "subtract half of width and height from x and y"),
    0.5: ("x and y are half a box too far left and up", "add half of width and height to x and y"),
}
"""Share of their size by which boxes would have to be moved -> what they look like, and what to do."""
WHOLES = {100: "per cent", 1000: "thousandths"}
"""Number that stands for the whole width or height -> what the numbers are."""
FEWEST_SCALED = 8
MOST_OF_SIDE = 0.6
"""100 or 1000 has to be a smaller share of the longer side: only then would boxes in pixels reach further."""
DETECTRON_XYWH = {"1", "1.0", "XYWH_ABS", "BoxMode.XYWH_ABS"}
"""What Detectron2's mode of boxes in COCO's notation is written as."""
TURNED_DEG = 1.0
"""A rotation below this changes a box by less than people draw."""


def box_faults(path: Path, content: Content) -> Iterator[Fault]:
    """Boxes that all look like corners or shares, that are turned, drawn twice, ignored or no larger than a pixel.

    Args:
        path: The file.
        content: Well-formed COCO instances.
    """
    objects = objects_of(content)
    sizes = image_sizes(content)
    yield from _notation_faults(path, objects, sizes)
    yield from _turned_faults(path, objects)
    yield from _repeated_faults(path, objects)
    yield from _ignored_faults(path, objects)
    yield from _small_faults(path, objects)


def _notation_faults(path: Path, objects: list[Entry], sizes: dict[int, Size]) -> Iterator[Fault]:
    others = [entry for entry in objects if str(entry.get("bbox_mode", 1)) not in DETECTRON_XYWH]
    if others:
        value = f"has {len(others)} boxes of bbox_mode {others[0]['bbox_mode']!r:.40}"
        rule = "a bbox is x, y, width, height in pixels, which is Detectron2's XYWH_ABS, or 1"
        yield Fault(path, value, rule, "convert them, as its BoxMode.convert does")
    elif (sign := sign_of_corners(objects, sizes)) is not None:
        value = (
            f"has {len(objects)} boxes such as {objects[0]['bbox']} that all fit as x1, y1, x2, y2"
        )
        rule = f"a bbox is x, y, width, height; read so, {sign}"
        way_out = "write them so, or let `boxseg data check --fix` do it"
        yield Fault(path, value, rule, way_out)
    elif _are_shares(objects, sizes):
        value = f"has {len(objects)} boxes such as {objects[0]['bbox']}, none with a larger number"
        rule = "boxes are in pixels; these look like shares of width and height"
        # x and y may be those of a corner or of the middle, so only their author can mend them.
        way_out = "multiply them by the size of their image; YOLO's files: `boxseg data import`"
        yield Fault(path, value, rule, way_out)
    else:
        yield from shift_faults(path, objects, sizes)
        yield from _scale_faults(path, objects, sizes)


def shift_faults(path: Path, objects: list[Entry], sizes: dict[int, Size]) -> Iterator[Fault]:
    """A fault if many boxes end beyond their image, but none moved by half a box, or with x and y exchanged."""
    start, sides, limits = _box_table(objects, sizes)
    if len(start) < len(objects) or (sides <= 0).any():
        return  # faults of their own

    def count_beyond(start: NDArray[np.float64], sides: NDArray[np.float64]) -> int:
        is_beyond = (start < -TOLERANCE_PX) | (start + sides > limits + TOLERANCE_PX)
        return int(is_beyond.any(axis=1).sum())

    num_beyond = count_beyond(start, sides)
    if num_beyond < max(FEWEST_BEYOND, BEYOND * len(objects)):
        return
    looks, way_out = "y seems to be first", "write x before y, and width before height"
    ways = [(start[:, ::-1], sides[:, ::-1], "x and y changed places", looks, way_out)]
    # The share of a box's possible places in its image that are at least half a box from the edge.
    room = np.maximum(limits - sides, 1)
    chance = np.maximum(1 - sides / 2 / room, 1e-3).prod()
    if chance < CHANCE:
        change = "it were moved by half its size"
        ways += [(start + by * sides, sides, change, *words) for by, words in SHIFTS.items()]
    for other_start, other_sides, change, looks, way_out in ways:
        if not count_beyond(other_start, other_sides):
            value = (
                f"has {len(objects)} boxes such as {objects[0]['bbox']}, of which {num_beyond} "
                f"end beyond their image, and none would if {change}"
            )
            rule = f"a bbox is x, y, width, height from the left upper corner; here {looks}"
            yield Fault(path, value, rule, way_out)


def _scale_faults(path: Path, objects: list[Entry], sizes: dict[int, Size]) -> Iterator[Fault]:
    """A fault if no box reaches beyond 100, or 1000, in images that are much larger, or at least wider or higher."""
    if len(objects) < FEWEST_SCALED:
        return
    boxes = [entry["bbox"] for entry in objects]
    right = max(x + width for x, _, width, _ in boxes)
    bottom = max(y + height for _, y, _, height in boxes)
    smallest = min(max(sizes.get(entry["image_id"], (0, 0))) for entry in objects)
    for whole, unit in WHOLES.items():
        if whole / 2 < min(right, bottom) <= max(right, bottom) <= whole < MOST_OF_SIDE * smallest:
            value = (
                f"has {len(objects)} boxes such as {objects[0]['bbox']} that all end by {whole}, "
                f"in images whose longer side has {smallest} px or more"
            )
            rule = f"boxes are in pixels; these look like {unit} of width and height"
            way_out = f"if so, multiply them by width or height / {whole}"
            yield Fault(path, value, rule, way_out, fatal=False)


def sign_of_corners(objects: list[Entry], sizes: dict[int, Size]) -> str | None:
    """What shows that all boxes are x1, y1, x2, y2, in words; None if they may be x, y, width, height.

    Corners of large objects, all in the upper left quarter of their images, look like the boxes of larger ones.

    Args:
        objects: Annotations; those without a finite box or a listed image say nothing.
        sizes: Image id -> (height, width).
    """
    start, end, limits = _box_table(objects, sizes)
    count = len(start)
    is_pair = (start < end) & (end <= limits + TOLERANCE_PX)
    if count < FEWEST_CORNERS or not is_pair.all():
        return None
    num_beyond = int((start + end > limits + TOLERANCE_PX).any(axis=1).sum())
    if num_beyond >= CORNERS_BEYOND * count:
        return f"{num_beyond} end beyond their image"
    num_near = int((end < 2 * start).all(axis=1).sum())
    if num_near < MOST_OF_MARGIN * count:
        return None
    # Corners are larger than those of their own box; sides would be so with the places of other boxes as well.
    step = math.ceil(count / COMPARED_PAIRS)
    places, others = (start / limits)[::step, None], (end / limits)[None, ::step]
    fitting = float((others > places).all(axis=2).mean())
    if fitting**count >= PAIR_CHANCE:
        return None
    return (
        f"all are wider and higher than they are far from left and top, {num_near} less than twice as much; with the "
        f"places of other boxes {fitting:.0%} would be"
    )


def _box_table(
    objects: list[Entry], sizes: dict[int, Size]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """First and last two numbers of the finite boxes of listed images, and width and height of these; (N, 2) each."""
    rows = []
    for entry in objects:
        size = sizes.get(entry["image_id"])
        if size is not None and is_finite_bbox(entry.get("bbox")):
            rows.append((*entry["bbox"], *reversed(size)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return table[:, :2], table[:, 2:4], table[:, 4:]


def _are_shares(objects: list[Entry], sizes: dict[int, Size]) -> bool:
    for entry in objects:
        size, bbox = sizes.get(entry["image_id"], (0, 0)), entry["bbox"]
        if min(size) < LEAST_SIDE_PX or not max(map(abs, bbox)) <= LARGEST_SHARE:
            return False
        if min(bbox[2:]) <= 0:  # a fault of its own
            return False
    return bool(objects)


def _turned_faults(path: Path, objects: list[Entry]) -> Iterator[Fault]:
    turned = []
    for entry in objects:
        attributes = entry.get("attributes")
        rotation: Any = attributes.get("rotation") if isinstance(attributes, dict) else None
        if is_number(rotation) and abs(math.remainder(rotation, 360)) > TURNED_DEG:
            turned.append(entry)
    if turned:
        value = f"has {len(turned)} boxes with a rotation, which is not read"
        rule = "a bbox is upright; CVAT writes the one that the object had before it was turned"
        way_out = "draw upright boxes there, or export polygons"
        yield Fault.of_many(path, value, rule, way_out, turned)


def _repeated_faults(path: Path, objects: list[Entry]) -> Iterator[Fault]:
    counts: Counter[tuple[Any, ...]] = Counter()
    repeated = []
    for entry in objects:
        identity = (entry["image_id"], entry["category_id"], *entry["bbox"])
        counts[identity] += 1
        if counts[identity] > 1:
            repeated.append(entry)
    if repeated:
        value = f"has {len(repeated)} boxes that repeat another of the same image and class"
        rule = "each object is annotated once: AP counts the others as missed"
        way_out = "remove them, as `boxseg data check --fix` does where their masks agree"
        yield Fault.of_many(path, value, rule, way_out, repeated)


def _ignored_faults(path: Path, objects: list[Entry]) -> Iterator[Fault]:
    ignored = [entry for entry in objects if entry.get("ignore")]
    if ignored:
        value = f"has {len(ignored)} boxes with `ignore`, which is not read"
        rule = "COCO's AP ignores crowds alone; these count as objects"
        way_out = "set iscrowd to 1 in them, or remove them"
        yield Fault.of_many(path, value, rule, way_out, ignored)


def _small_faults(path: Path, objects: list[Entry]) -> Iterator[Fault]:
    small = [entry for entry in objects if 0 < entry["bbox"][2] * entry["bbox"][3] <= 1]
    if small:
        value = f"has {len(small)} boxes such as {small[0]['bbox']}"
        rule = "a box of a pixel or less shows nothing; keypoints are no boxes"
        yield Fault.of_many(path, value, rule, "remove them from the file", small)
