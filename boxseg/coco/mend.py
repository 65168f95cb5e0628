"""Mends entries of a COCO file that say the right thing in another way than COCO wants it; in place, and counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boxseg.coco.odd_entries import SHARES, corners, is_fitting, overlap
from boxseg.coco.segmentations import MAX_SIDE_PX, Extent, find_extent, find_problem
from boxseg.files.names import Names, is_inside, plain_name
from boxseg.files.reading import UnreadableError, is_float, is_number, is_whole, read_picture

NUMBERS = ("id", "image_id", "category_id", "width", "height")
GROUPS = ("images", "categories", "annotations")
NAMED = 5
"""Entries of each kind that are named."""


class Done(Counter[str]):
    """What was done, and how often; with the first few entries that it was done to."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, told: str, name: object) -> None:
        """Count one more, and remember what it is called."""
        self[told] += 1
        if len(self._names[told]) < NAMED:
            self._names[told].append(str(name))

    def lines(self) -> list[str]:
        """A line for each kind: count, what was done, names."""
        shown = {told: ", ".join(names) for told, names in self._names.items()}
        return [
            f"{count} {told} ({shown[told]}{', …' if count > NAMED else ''})"
            for told, count in self.items()
        ]


def name_of(entry: Any) -> str:
    """What people know an entry by: the file of an image, the id of others."""
    if not isinstance(entry, dict):
        return repr(entry)[:40]
    return str(entry.get("file_name", entry.get("name", f"id {entry.get('id')!r:.40}")))


def mend_content(content: dict[str, Any], done: Done, *, folder: Path | None) -> None:
    """Mend what can be; what cannot stays as it is.

    Args:
        content: A COCO instance file.
        done: Gets what was done.
        folder: Of the images; None: their files are not looked at.
    """
    entries = {
        group: [each for each in content[group] if isinstance(each, dict)] for group in GROUPS
    }
    for each in (each for group in GROUPS for each in entries[group]):
        _write_whole(each, done)
    new_id = {
        group: _number_anew(entries[group], group, done) for group in ("images", "categories")
    }
    for each in entries["annotations"]:
        each["image_id"] = new_id["images"](each.get("image_id"))
        each["category_id"] = new_id["categories"](each.get("category_id"))
    _number_anew(entries["annotations"], "annotations", done)
    renamed: set[int] = set()
    if folder is not None:
        there = Names.below(folder)
        for image in entries["images"]:
            before = image.get("file_name")
            _find_file(image, folder, there)
            if image.get("file_name") != before:
                renamed.add(id(image))
            _measure(image, folder, done)
    _join_images(content, done)
    for image in content["images"]:
        if id(image) in renamed:
            done.add("file names written as on the disk", image["file_name"])
    measured = [each for each in entries["images"] if _has_size(each) and is_whole(each.get("id"))]
    sizes = {each["id"]: (each["height"], each["width"]) for each in measured}
    for each in entries["annotations"]:
        if is_whole(each["image_id"]) and each["image_id"] in sizes:
            _mend_mask(each, sizes[each["image_id"]], done)


def _has_size(image: dict[str, Any]) -> bool:
    return all(
        is_whole(image.get(side)) and 0 < image[side] <= MAX_SIDE_PX
        for side in ("width", "height")
    )


def _write_whole(entry: dict[str, Any], done: Done) -> None:
    """64.0 is 64."""
    changed = [
        key for key in NUMBERS if isinstance(entry.get(key), float) and entry[key].is_integer()
    ]
    for key in changed:
        entry[key] = int(entry[key])
    if changed:
        done.add("entries with whole numbers written as such", name_of(entry))


def _number_anew(entries: list[dict[str, Any]], group: str, done: Done) -> Callable[[Any], Any]:
    """Give whole numbers to entries with ids of another kind; gives what an id has become."""
    unused = max((each["id"] for each in entries if is_whole(each.get("id"))), default=0) + 1
    becomes: dict[Any, int] = {}
    for each in entries:
        old = each.get("id")
        if not is_whole(old) and isinstance(old, str | float) and old not in becomes:
            becomes[old] = unused
            unused += 1
        if isinstance(old, str | float) and old in becomes:
            each["id"] = becomes[old]
            done.add(f"{group} given another id", name_of({**each, "id": old}))
    known = {each["id"] for each in entries if is_whole(each.get("id"))}

    def new(old: Any) -> Any:
        if isinstance(old, str | float) and old in becomes:
            return becomes[old]
        is_number = isinstance(old, str) and old.strip().isdecimal() and len(old) < 19
        return int(old) if is_number and int(old) in known else old

    return new


def _find_file(image: dict[str, Any], folder: Path, there: Names) -> None:
    name = image.get("file_name")
    if isinstance(name, str) and not (is_inside(name) and _is_file(folder / name)):
        found = there.find(name)
        if found is not None:
            image["file_name"] = found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _measure(image: dict[str, Any], folder: Path, done: Done) -> None:
    """Width and height from the file, where the entry has none."""
    name = image.get("file_name")
    if not _has_size(image) and isinstance(name, str) and is_inside(name):
        try:
            image["width"], image["height"] = read_picture(
                folder / name, lambda picture: picture.size
            )
        except UnreadableError:
            return
        done.add("sizes read from the image", name)


def _join_images(content: dict[str, Any], done: Done) -> None:
    """One entry for each file and size; objects go over to the first, the same object once."""
    first: dict[tuple[str, str, str], Any] = {}
    becomes: dict[int, int] = {}
    kept = []
    for image in content["images"]:
        if (
            isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
            and is_whole(image.get("id"))
        ):
            key = (
                plain_name(image["file_name"]),
                repr(image.get("width")),
                repr(image.get("height")),
            )
            if key in first and first[key] != image["id"]:
                becomes[image["id"]] = first[key]
                done.add("image entries joined with another of the same file", image["file_name"])
                continue
            first.setdefault(key, image["id"])
        kept.append(image)
    content["images"] = kept
    if not becomes:
        return
    seen, annotations = set(), []
    for each in content["annotations"]:
        if isinstance(each, dict) and is_whole(each.get("image_id")):
            each["image_id"] = becomes.get(each["image_id"], each["image_id"])
            same = repr(
                [
                    each.get(key)
                    for key in ("image_id", "category_id", "bbox", "segmentation", "iscrowd")
                ]
            )
            if same in seen:
                done.add("annotations left out: the same twice", name_of(each))
                continue
            seen.add(same)
        annotations.append(each)
    content["annotations"] = annotations


def _mend_mask(annotation: dict[str, Any], size: tuple[int, int], done: Done) -> None:
    """Keep what can be decoded of a mask, and give a box to an annotation that has a mask alone."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return
    name, told = name_of(annotation), ""
    bbox: Any = annotation.get("bbox")
    has_box = (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(map(is_number, bbox))
        and min(bbox[2:]) > 0
    )
    if isinstance(segmentation, list):
        if all(map(is_float, segmentation)):
            segmentation, told = [segmentation], "masks written as a list of polygons"
        sound = [each for each in segmentation if find_problem([each]) is None]
        if sound and len(sound) < len(segmentation):
            told = "masks without polygons of less than three points"
        if sound and has_box:
            scaled = _scale_shares(sound, bbox, size)
            if scaled is not None:
                sound, told = scaled, "masks in pixels instead of shares"
        segmentation = sound
    problem = None if not segmentation else find_problem(segmentation, size)
    if not segmentation or problem is not None:
        del annotation["segmentation"]
        done.add("masks left out: they cannot be decoded", name)
        return
    extent = find_extent(segmentation)
    if has_box and not annotation.get("iscrowd") and not _is_there(extent, bbox, size):
        del annotation["segmentation"]
        done.add("masks left out: away from their box or image", name)
        return
    annotation["segmentation"] = segmentation
    if told:
        done.add(told, name)
    if not has_box and extent is not None:
        x1, y1, x2, y2 = extent
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        done.add("boxes taken from the mask", name)


def _scale_shares(
    polygons: list[list[float]], bbox: list[float], size: tuple[int, int]
) -> list[list[float]] | None:
    """Polygons in pixels, if they are in shares of width and height and fit the box then; None if not."""
    if (
        max(abs(number) for each in polygons for number in each) > SHARES
        or max(bbox[2:]) <= 2 * SHARES
    ):
        return None
    scaled = [
        (np.array(each).reshape(-1, 2) * [size[1], size[0]]).ravel().tolist() for each in polygons
    ]
    extent = find_extent(scaled)
    return scaled if extent is not None and is_fitting(extent, corners(bbox)) else None


def _is_there(extent: Extent | None, bbox: list[float], size: tuple[int, int]) -> bool:
    """Whether a mask shares some of its box, and of its image, as `mask_faults` wants it."""
    return extent is not None and all(
        overlap(extent, each) > 0 for each in (corners(bbox), (0, 0, size[1], size[0]))
    )
