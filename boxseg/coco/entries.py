"""What every entry of a COCO file needs: values of the right kind, a unique id, an image and a category."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from boxseg.coco.faults import FIX_IN_FILE, Fault
from boxseg.coco.segmentations import MAX_PIXELS, MAX_SIDE_PX, Problem, Size, is_side
from boxseg.files.reading import is_float, is_number, is_whole

Entry = dict[str, Any]
"""An entry of one of the lists of a COCO file."""
Content = dict[str, Any]
"""What a COCO file holds: the lists `images`, `annotations` and `categories`, and perhaps more."""


class Rule(NamedTuple):
    """A rule for the value of a key."""

    text: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    # JSON can name half a character (a surrogate), which cannot be written as UTF-8 again.
    return isinstance(value, str) and re.search("[\ud800-\udfff]", value) is None


def _is_named(value: Any) -> bool:
    return _is_text(value) and bool(value.strip())


def _is_flag(value: Any) -> bool:
    # A text is not: "0" would count as true.
    return value is None or (isinstance(value, int | float) and value in (0, 1))


def _is_bbox(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_float, value))


def is_finite_bbox(value: Any) -> bool:
    """Whether a value of a JSON file is a box without NaN and infinity."""
    return _is_bbox(value) and all(map(math.isfinite, value))


def has_area(value: Any) -> bool:
    """Whether a value of a JSON file is a finite box with a positive width and height."""
    return is_finite_bbox(value) and min(value[2:]) > 0


def has_id_and_name(image: Any) -> bool:
    """Whether an entry of the list of images has what messages name it by: a number `id`, a text `file_name`."""
    if not isinstance(image, dict):
        return False
    return is_whole(image.get("id")) and isinstance(image.get("file_name"), str)


WHOLE = Rule("COCO wants a whole number there", is_whole)
TEXT = Rule("COCO wants a text there, in UTF-8", _is_text)
NAME = Rule("a class needs a name, which is a text", _is_named)
FLAG = Rule("it is 1 for a region of several objects, and else 0 or left out", _is_flag)
SIDE = Rule(f"images have a positive size, up to {MAX_SIDE_PX} px", is_side)
BBOX = Rule("a bbox is the four numbers x, y, width, height", _is_bbox)
REQUIRED_KEYS: dict[str, dict[str, Rule]] = {
    "images": {"id": WHOLE, "file_name": TEXT, "width": SIDE, "height": SIDE},
    "annotations": {
        "id": WHOLE,
        "image_id": WHOLE,
        "category_id": WHOLE,
        "bbox": BBOX,
        "iscrowd": FLAG,
    },
    "categories": {"id": WHOLE, "name": NAME},
}
"""List of a COCO file -> key of its entries -> the rule for its value."""
LEFT_TOP = (("x", "y"), ("left", "top"), ("xmin", "ymin"), ("x1", "y1"))
RIGHT_BOTTOM = (("xmax", "ymax"), ("x2", "y2"), ("right", "bottom"))
MIDDLE = (("cx", "cy"), ("xcenter", "ycenter"), ("xc", "yc"))
SIDES = (("width", "height"), ("w", "h"))
"""Names that tools give to width and height of a box."""
FIX_FORM = "write it so, or let `boxseg data check --fix` do it"
AREA_RULE = f"images have {MAX_PIXELS} px at most: cut larger ones into tiles, or shrink them and their boxes"
TOLERANCE_PX = 1.0
"""A box may reach this far beyond its image: annotation tools round outward."""


def image_sizes(content: Content) -> dict[int, Size]:
    """Image id -> (height, width) of the image, in pixels."""
    return {image["id"]: (image["height"], image["width"]) for image in content["images"]}


def objects_of(content: Content) -> list[Entry]:
    """The annotations that are one object each, without crowd regions."""
    return [entry for entry in content["annotations"] if not entry.get("iscrowd")]


def is_well_formed(entry: Any, group: str) -> bool:
    """Whether an entry of a list of a COCO file is an object with all the values that COCO wants in it."""
    if not isinstance(entry, dict):
        return False
    return all(rule.holds(entry.get(key)) for key, rule in REQUIRED_KEYS[group].items())


def format_faults(path: Path, content: Content) -> Iterator[Fault]:
    """Entries that lack a key, or have another kind of value than COCO wants."""
    for group, rules in REQUIRED_KEYS.items():
        for index, entry in enumerate(content[group]):
            if not isinstance(entry, dict):
                value = f"{group}[{index}] is {entry!r:.40}"
                yield Fault(path, value, "entries are objects", FIX_IN_FILE, kind=group)
                continue
            for key, rule in rules.items():
                if not rule.holds(entry.get(key)):
                    value = f"has {key} {entry[key]!r:.80}" if key in entry else f"has no `{key}`"
                    fault = _entry_fault(path, group, index, entry, value, rule.text)
                    if key == "bbox" and plain_box(entry.get(key)) is not None:
                        fault = replace(fault, way_out=FIX_FORM)
                    yield replace(fault, kind=f"{group} {key}")
            if group == "images" and _is_too_large(entry):
                value = f"has {entry['width']} x {entry['height']} px"
                yield _entry_fault(path, group, index, entry, value, AREA_RULE)


def _is_too_large(image: Entry) -> bool:
    width, height = image.get("width"), image.get("height")
    return isinstance(width, int) and isinstance(height, int) and width * height > MAX_PIXELS


def _entry_fault(path: Path, group: str, index: int, entry: Entry, value: str, rule: str) -> Fault:
    """A fault that names the entry by its id, or by its place in the list if the id is malformed."""
    entry_id = entry.get("id")
    if not is_whole(entry_id):
        return Fault(path, f"{group}[{index}] {value}", rule, FIX_IN_FILE)
    if group == "images":
        return Fault(path, value, rule, FIX_IN_FILE, image_id=entry_id)
    if group == "annotations":
        return Fault(path, value, rule, FIX_IN_FILE, annotation_id=entry_id)
    return Fault(path, f"category id {entry_id} {value}", rule, FIX_IN_FILE)


def duplicate_faults(path: Path, content: Content) -> Iterator[Fault]:
    """Ids that several entries of a list have; one fault for each id."""
    for group in REQUIRED_KEYS:
        counts = Counter(entry["id"] for entry in content[group])
        for index, entry in enumerate(content[group]):
            # popped, so that the id is named at its first entry only
            count = counts.pop(entry["id"], 1)
            if count > 1:
                value = f"occurs {count} times"
                rule = "every entry of a list needs its own id"
                yield _entry_fault(path, group, index, entry, value, rule)


def annotation_faults(path: Path, content: Content, *, boxes: bool = True) -> Iterator[Fault]:
    """Annotations of an image or category that the file does not list; with `boxes` also of an unusable box."""
    sizes = image_sizes(content)
    category_ids = {category["id"] for category in content["categories"]}
    first_ids = [str(category_id) for category_id in sorted(category_ids)[:10]]
    listed = ", ".join(first_ids) or "none"
    for annotation in content["annotations"]:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        problem: Problem | None = None
        if image_id not in sizes:
            value = f"names image {image_id}, which the file does not list"
            problem = value, "annotations belong to an image"
        # The box of a crowd is not used, so it may be anything.
        elif boxes and not annotation.get("iscrowd"):
            problem = _box_problem(annotation["bbox"], sizes[image_id])
        if problem is None and category_id not in category_ids:
            value = f"has category id {category_id}, which the file does not list"
            problem = value, f"known ids are {listed}"
        if problem is not None:
            yield Fault(path, *problem, FIX_IN_FILE, image_id, annotation["id"])


def _box_problem(bbox: list[float], size: Size) -> Problem | None:
    """What keeps a box from being used in an image of (height, width)."""
    if not all(map(math.isfinite, bbox)):
        return f"has bbox {bbox}", "boxes need finite numbers"
    x, y, width, height = bbox
    for name, side in (("width", width), ("height", height)):
        if side <= 0:
            return f"has {name} {side:g}", f"boxes need a positive {name}"
    image_height, image_width = size
    beyond = {
        "left": -x,
        "top": -y,
        "right": x + width - image_width,
        "bottom": y + height - image_height,
    }
    edge = max(beyond, key=lambda name: beyond[name])
    if beyond[edge] <= TOLERANCE_PX:
        return None
    end = f"{beyond[edge]:g} px beyond the {edge} of its image, {image_width} x {image_height} px"
    return f"has bbox {bbox}, which ends {end}", "boxes lie inside their image"


def plain_box(value: Any) -> list[float] | None:
    """x, y, width, height of a box in a form that says which number is which, or that has four in COCO's order.

    >>> plain_box("20 30 40.5 50"), plain_box({"xmin": 20, "ymin": 30, "xmax": 60, "ymax": 80})
    ([20, 30, 40.5, 50], [20, 30, 40, 50])
    """
    if isinstance(value, dict):
        return _named_box(value)
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip("[]() \t\n"))
    elif isinstance(value, list) and len(value) == 1:
        (value,) = value
    return to_numbers(value) if isinstance(value, list) and len(value) == 4 else None


def _named_box(value: dict[str, Any]) -> list[float] | None:
    names = [re.sub(r"[\W_]", "", str(name)).lower() for name in value]
    numbers = to_numbers(list(value.values()))
    if numbers is None or len(set(names)) != 4:
        return None
    number_of = dict(zip(names, numbers, strict=True))

    def among(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [number_of[name] for pair in pairs if set(pair) <= set(names) for name in pair]

    start, end, middle, sides = map(among, (LEFT_TOP, RIGHT_BOTTOM, MIDDLE, SIDES))
    if len(start) == len(sides) == 2:
        return start + sides
    if len(start) == len(end) == 2:
        return [*start, end[0] - start[0], end[1] - start[1]]
    if len(middle) == len(sides) == 2:
        return [middle[0] - sides[0] / 2, middle[1] - sides[1] / 2, *sides]
    return None


def to_numbers(values: list[Any]) -> list[float] | None:
    """Numbers and texts of finite numbers as numbers; None where one is something else.

    >>> to_numbers(["4", 4.5]), to_numbers(["a"])
    ([4, 4.5], None)
    """
    numbers: list[float] = []
    for value in values:
        try:
            number = float(value) if isinstance(value, str) else value
        except ValueError:
            return None
        if not is_number(number):
            return None
        numbers.append(int(number) if float(number).is_integer() else number)
    return numbers
