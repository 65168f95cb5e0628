"""Finds what is wrong with a COCO data set before anything heavy starts; needs neither torch nor pycocotools."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxseg.coco.faults import Fault, count_faults, first_of_each_kind
from boxseg.coco.odd_entries import (
    FIX_IN_FILE,
    TOLERANCE_PX,
    crowd_faults,
    evaluation_faults,
    mask_faults,
    name_faults,
)
from boxseg.coco.picture_checks import picture_faults
from boxseg.coco.segmentations import MAX_PIXELS, MAX_SIDE_PX, find_extent, find_problem
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.reading import (
    DOES_NOT_EXIST,
    UnreadableError,
    is_float,
    is_whole,
    read_json,
)

SHOWN_FAULTS = 5

COCO_RULE = "a COCO instance file is one object with the lists images, annotations and categories"
FILE_RULE = "a data source needs its COCO annotation file"
MASKS_RULE = "data.use_masks: where_present needs some (a supervised twin needs all)"
MASKS_WAY_OUT = "name a file with `segmentation` in data.train.annotations, or train on boxes: data.use_masks: never"
WHOLE, TEXT = "COCO wants a whole number there", "COCO wants a text there"
SIZE = f"images have a positive size, up to {MAX_SIDE_PX} px"
BBOX = "a bbox is the four numbers x, y, width, height"
AREA = f"images have {MAX_PIXELS} px at most: cut larger ones into tiles, or shrink them and their boxes"
REQUIRED_KEYS: dict[str, dict[str, str]] = {
    "images": {"id": WHOLE, "file_name": TEXT, "width": SIZE, "height": SIZE},
    "annotations": {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE, "bbox": BBOX},
    "categories": {"id": WHOLE, "name": TEXT},
}
"""List of a COCO file -> key of its entries -> the rule for its value."""
MASK_AP_RULE = "mask AP needs drawn masks"
BOXES_ALONE = "read box AP, or add `segmentation`"
"""The way out where nobody has drawn any mask; training tells of box AP alone and need not warn."""
RULES: dict[str, Callable[[Any], bool]] = {
    WHOLE: is_whole,
    TEXT: lambda value: isinstance(value, str) and re.search("[\ud800-\udfff]", value) is None,
    SIZE: lambda value: type(value) is int and 0 < value <= MAX_SIDE_PX,
    BBOX: lambda value: isinstance(value, list) and len(value) == 4 and all(map(is_float, value)),
}

logger = logging.getLogger(__name__)


def require_usable(source: CocoSource, training: bool, use_masks: bool = False) -> list[Fault]:
    """Check a source and let only usable ones pass; what is merely missing is logged and returned.

    That nobody has drawn masks is returned and not logged.

    Args:
        source: Images and annotation file.
        training: Whether it is to be trained on (see `check_source`).
        use_masks: Whether training uses drawn masks (see `check_source`).

    Raises:
        DataError: at least one fatal fault; its text has the first few and their number.
    """
    faults = check_source(source, training=training, use_masks=use_masks)
    for fault in faults:
        if not fault.fatal and fault.way_out != BOXES_ALONE:
            logger.warning("%s", fault)
    fatal = [str(fault) for fault in faults if fault.fatal]
    count = count_faults(faults, fatal=True)
    if count > 1:
        more = [f"… and {count - SHOWN_FAULTS} more"] if count > SHOWN_FAULTS else []
        told = f"{source.annotations}: {count} faults (`boxseg data check` lists more)"
        raise DataError("\n  ".join([told, *fatal[:SHOWN_FAULTS], *more]))
    if fatal:
        raise DataError(fatal[0])
    return faults


def check_source(
    source: CocoSource,
    *,
    training: bool,
    use_masks: bool = False,
    decode: bool = False,
    look_at_masks: bool = False,
) -> list[Fault]:
    """Everything that is wrong with a data set, in the order annotation file, annotations, images.

    Args:
        source: Images and annotation file.
        training: True: there must be boxes to learn from. False: masks are asked for, to evaluate with.
        use_masks: Training uses drawn masks, so there must be some.
        decode: Decode every image in full. Otherwise the header is read and the end marker looked for, and only
            suspicious files are decoded.
        look_at_masks: Tell what is wrong with masks also where nobody needs them; that makes the set no less usable.

    Returns:
        Faults, the first few of each kind, of which the last has the number of the others; empty for a sound data set.
        Boxes of crowd annotations are not looked at.
    """
    needs_masks = use_masks or not training
    path = source.annotations
    content = _load(path, _with_mask_problem if needs_masks or look_at_masks else _without_mask)
    if isinstance(content, Fault):
        return [content]
    malformed = first_of_each_kind(_format_faults(path, content))
    if malformed:
        return malformed
    return first_of_each_kind(
        itertools.chain(
            _duplicate_faults(path, content),
            _amount_faults(path, content, training=training, use_masks=use_masks),
            _entry_faults(path, content, training=training, needs_masks=needs_masks),
            picture_faults(source.images, content["images"], decode=decode),
        )
    )


def check_entries(path: Path, *, training: bool) -> list[Fault]:
    """What is wrong with well-formed entries of a COCO file, by themselves: pictures are not looked at.

    Args:
        path: COCO instances, see `read_well_formed`.
        training: False: masks are needed, to evaluate with.

    Raises:
        DataError: the file is missing, not JSON, or has not the three lists.
    """
    content = _require(_load(path, _without_mask if training else _with_mask_problem))
    return first_of_each_kind(
        _entry_faults(path, content, training=training, needs_masks=not training)
    )


def _entry_faults(
    path: Path, content: dict[str, Any], *, training: bool, needs_masks: bool
) -> Iterator[Fault]:
    yield from _annotation_faults(path, content)
    yield from mask_faults(path, content, fatal=needs_masks)
    yield from name_faults(path, content)
    yield from crowd_faults(path, content)
    if not training:
        yield from evaluation_faults(path, content)


def read_annotations(path: Path, *, keep_masks: bool = False) -> dict[str, Any]:
    """Content of a COCO instance file without its masks: `segmentation` is dropped while reading.

    Annotations that had a mask get `has_mask: True` instead; with `keep_masks` also `mask_text`, the segmentation as
    JSON in bytes, a tenth of the memory of its lists.

    Raises:
        DataError: the file is missing, not JSON, or has not the three lists.
    """
    return _require(_load(path, _with_mask_text if keep_masks else _without_mask))


def read_whole(path: Path) -> dict[str, Any]:
    """Content of a COCO instance file with all that is in it.

    Raises:
        DataError: the file is missing, not JSON, or has not the three lists.
    """
    return _require(_load(path, None))


def read_well_formed(path: Path, *, whole: bool = True, unlisted: bool = False) -> dict[str, Any]:
    """Content of a COCO instance file whose entries all have the values that COCO wants, and ids of their own.

    With `whole=False` it is without its masks, as `read_annotations` gives it. With that, or with `unlisted`,
    annotations may belong to an image or a category that is not listed.

    Raises:
        DataError: it is not such a file; names the first entry that is wrong.
    """
    content = read_whole(path) if whole else read_annotations(path)
    related = iter(()) if unlisted or not whole else _annotation_faults(path, content, boxes=False)
    faults = itertools.chain(
        _format_faults(path, content), _duplicate_faults(path, content), related
    )
    fault = next(faults, None)
    if fault is not None:
        raise DataError(str(fault))
    return content


def _require(content: dict[str, Any] | Fault) -> dict[str, Any]:
    if isinstance(content, Fault):
        raise DataError(str(content))
    return content


def _load(
    path: Path, hook: Callable[[dict[str, Any]], dict[str, Any]] | None
) -> dict[str, Any] | Fault:
    try:
        content = read_json(path, COCO_RULE, hook)
    except UnreadableError as error:
        is_there = error.value != DOES_NOT_EXIST
        return Fault(path, error.value, COCO_RULE if is_there else FILE_RULE, error.way_out)
    if not isinstance(content, dict):
        return Fault(
            path, f"holds a {type(content).__name__}", COCO_RULE, "export it as COCO instances"
        )
    for key in REQUIRED_KEYS:
        if not isinstance(content.get(key), list):
            return Fault(path, f"has no list `{key}`", COCO_RULE, "export it as COCO instances")
    return content


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.pop("segmentation", None):
        entry["has_mask"] = True
    return entry


def _with_mask_text(entry: dict[str, Any]) -> dict[str, Any]:
    segmentation = entry.get("segmentation")
    if segmentation:
        entry["mask_text"] = json.dumps(segmentation, separators=(",", ":")).encode()
    return _without_mask(entry)


def _with_mask_problem(entry: dict[str, Any]) -> dict[str, Any]:
    segmentation = entry.get("segmentation")
    if segmentation:
        entry["mask_problem"] = find_problem(segmentation)
        entry["mask_size"] = segmentation.get("size") if isinstance(segmentation, dict) else None
        entry["mask_extent"] = None if entry["mask_problem"] else find_extent(segmentation)
        entry["mask_is_polygons"] = isinstance(segmentation, list)
    return _without_mask(entry)


def _format_faults(path: Path, content: dict[str, Any]) -> Iterator[Fault]:
    """Entries that lack a key or have another value than COCO gives it."""
    for group, keys in REQUIRED_KEYS.items():
        for index, entry in enumerate(content[group]):
            if not isinstance(entry, dict):
                found = f"{group}[{index}] is {entry!r:.40}"
                yield Fault(path, found, "entries are objects", FIX_IN_FILE, kind=group)
                continue
            for key, rule in keys.items():
                if not RULES[rule](entry.get(key)):
                    found = f"has {key} {entry[key]!r:.80}" if key in entry else f"has no `{key}`"
                    yield replace(
                        _entry_fault(path, group, index, entry, found, rule), kind=f"{group} {key}"
                    )
            width, height = entry.get("width"), entry.get("height")
            if (
                group == "images"
                and isinstance(width, int)
                and isinstance(height, int)
                and width * height > MAX_PIXELS
            ):
                found = f"has {width} x {height} px"
                yield _entry_fault(path, group, index, entry, found, AREA)


def _entry_fault(
    path: Path, group: str, index: int, entry: dict[str, Any], found: str, rule: str
) -> Fault:
    """Names the entry by its id; by its place in the list where it has none."""
    entry_id = entry.get("id")
    if not RULES[WHOLE](entry_id):
        return Fault(path, f"{group}[{index}] {found}", rule, FIX_IN_FILE)
    if group == "images":
        return Fault(path, found, rule, FIX_IN_FILE, image_id=entry_id)
    if group == "annotations":
        return Fault(path, found, rule, FIX_IN_FILE, annotation_id=entry_id)
    return Fault(path, f"category id {entry_id} {found}", rule, FIX_IN_FILE)


def _duplicate_faults(path: Path, content: dict[str, Any]) -> Iterator[Fault]:
    for group in REQUIRED_KEYS:
        counts = Counter(entry["id"] for entry in content[group])
        for index, entry in enumerate(content[group]):
            count = counts.pop(entry["id"], 1)
            if count > 1:
                found = f"occurs {count} times"
                yield _entry_fault(
                    path, group, index, entry, found, "every entry of a list needs its own id"
                )


def _annotation_faults(
    path: Path, content: dict[str, Any], *, boxes: bool = True
) -> Iterator[Fault]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    known = f"known ids are {', '.join(map(str, sorted(category_ids)[:10])) or 'none'}"
    for annotation in content["annotations"]:
        problem = _annotation_problem(annotation, sizes.get(annotation["image_id"]), boxes=boxes)
        if problem is None and annotation["category_id"] not in category_ids:
            problem = (
                f"has category id {annotation['category_id']}, which the file does not list",
                known,
            )
        if problem is not None:
            value, rule = problem
            yield Fault(
                path,
                value,
                rule,
                FIX_IN_FILE,
                image_id=annotation["image_id"],
                annotation_id=annotation["id"],
            )


def _annotation_problem(
    annotation: dict[str, Any], size: tuple[int, int] | None, *, boxes: bool
) -> tuple[str, str] | None:
    """(value, rule) of the first rule that an annotation breaks, of those for `boxes` only if asked; None if sound."""
    if size is None:
        return (
            f"names image {annotation['image_id']}, which the file does not list",
            "annotations belong to an image",
        )
    if not boxes or annotation.get("iscrowd"):
        return None
    x, y, width, height = annotation["bbox"]
    if not all(map(math.isfinite, annotation["bbox"])):
        return f"has bbox {annotation['bbox']}", "boxes need finite numbers"
    for name, side in (("width", width), ("height", height)):
        if side <= 0:
            return f"has {name} {side:g}", f"boxes need a positive {name}"
    beyond = {"left": -x, "top": -y, "right": x + width - size[0], "bottom": y + height - size[1]}
    edge = max(beyond, key=lambda name: beyond[name])
    if beyond[edge] > TOLERANCE_PX:
        end = f"ends {beyond[edge]:g} px beyond the {edge} of its image, {size[0]} x {size[1]} px"
        return f"has bbox {annotation['bbox']}, which {end}", "boxes lie inside their image"
    return None


def _amount_faults(
    path: Path, content: dict[str, Any], *, training: bool, use_masks: bool
) -> Iterator[Fault]:
    instances = [
        annotation for annotation in content["annotations"] if not annotation.get("iscrowd")
    ]
    if not content["images"]:
        yield Fault(path, "lists no images", "a data set needs at least one", "name another file")
    elif not instances:
        rule = f"{'training' if training else 'evaluation'} needs at least one"
        crowds = len(content["annotations"])
        or_else = (
            f"set iscrowd to 0 in those of its {crowds} crowds that are one object, or "
            if crowds
            else ""
        )
        yield Fault(path, "has no boxes that are not crowds", rule, f"{or_else}name another file")
    without_mask = sum(not annotation.get("has_mask") for annotation in instances)
    found = f"has no mask for {without_mask} of {len(instances)} annotations"
    if not training and without_mask:
        way_out = (
            BOXES_ALONE
            if without_mask == len(instances)
            else "add `segmentation`, or read box AP only"
        )
        yield Fault(path, found, MASK_AP_RULE, way_out, fatal=False)
    if training and use_masks and instances and without_mask == len(instances):
        yield Fault(path, found, MASKS_RULE, MASKS_WAY_OUT)
    elif training and use_masks and without_mask:
        yield Fault(
            path,
            found,
            "those boxes teach without one",
            "add `segmentation`, or leave it so",
            fatal=False,
        )
