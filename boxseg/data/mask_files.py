"""Masks of a file, COCO instances or a list of results, matched to the images and classes of data; needs no torch."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco_mask

from boxseg.coco.classes import ABSENT, find_labels, fold_name
from boxseg.coco.entries import BBOX, Entry, has_id_and_name, is_finite_bbox
from boxseg.coco.masks import Rle, encode_segmentation
from boxseg.coco.odd_entries import corners, is_fitting
from boxseg.coco.segmentations import MASKS_RULE, Extent, Problem, Size, find_extent, find_problem
from boxseg.errors import DataError, naming
from boxseg.files.names import Names, is_tail
from boxseg.files.reading import is_number, is_whole, read_json

if TYPE_CHECKING:
    from boxseg.data.dataset import CocoBoxes

CLOSE_PX = 2.0
CLOSE_SHARE = 0.1
"""The sides of a box and of the one around its mask differ by this much, or this share of the longer side."""
LOOKED_AT = 1000
"""Most entries whose boxes are compared with their masks: a file writes all of them alike."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskFile:
    """Content of a file of masks, not yet matched to a data set; each of its entries can be used."""

    path: Path
    entries: list[Entry]
    images: Any = None
    """Its list of images; a list of results has none, and refers to images and categories by the ids of the data."""
    categories: Any = None

    @classmethod
    def read(cls, path: Path) -> MaskFile:
        """Read COCO instances or a COCO list of results.

        Raises:
            DataError: the file is missing or holds something else; names the first entry that is wrong.
        """
        content = read_json(path, MASKS_RULE)
        fields = content if isinstance(content, dict) else {"annotations": content}
        entries = fields.get("annotations")
        if not isinstance(entries, list):
            raise DataError(
                f"{path}: has no list of annotations; {MASKS_RULE} (name another file)"
            )
        for number, entry in enumerate(entries):
            problem = _entry_problem(entry)
            if problem is not None:
                value, rule = problem
                raise DataError(f"{path}: entry {number} {value}; {rule} (correct or remove it)")
        return cls(path, entries, fields.get("images"), fields.get("categories"))

    def class_names(self) -> dict[int, str]:
        """Category id -> name of the classes that it lists; a list of results has none."""
        names = {}
        for category in self.categories if isinstance(self.categories, list) else []:
            fields = category if isinstance(category, dict) else {}
            if is_whole(fields.get("id")) and isinstance(fields.get("name"), str):
                names[fields["id"]] = fields["name"]
        return names


def match_masks(file: MaskFile, data: CocoBoxes) -> dict[int, list[Entry]]:
    """Entries of a file that have a mask, with a box and a label each, by image id of the data.

    The `label` is the index of the data's class: of the same name where the file lists its categories, of the same id
    elsewhere; `ABSENT` where the data has no such class. What is for other images, has no mask, or is a crowd, is left
    out, and counted in a warning.

    Raises:
        DataError: none of its masks is for an image of the data, or the images differ in size.
    """
    path, entries, images = file.path, file.entries, file.images
    if images:
        index_of = _match_images(path, images, data)
    else:
        index_of = {data.image_id(index): index for index in range(len(data))}
    label_of = labels_of_file(file, data)
    masks_of: dict[int, list[Entry]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for entry in entries:
        index = index_of.get(entry["image_id"])
        if index is None:
            left_out["are for other images than those listed"] += 1
        elif not entry.get("segmentation"):
            left_out["have no mask"] += 1
        # Some tools mark all run lengths as crowds; what has a score was found as an object.
        elif entry.get("iscrowd") and not {"score", "quality"} & entry.keys():
            left_out["are crowds (iscrowd 1), regions of several objects"] += 1
        else:
            bbox = entry.get("bbox")
            if not bbox:
                bbox = coco_mask.toBbox(encode_entry(path, entry, data.size(index))).tolist()
            category_id: Any = entry.get("category_id")
            label = label_of.get(category_id, ABSENT)
            box = [float(number) for number in bbox]
            masks_of[data.image_id(index)].append(entry | {"bbox": box, "label": label})
    for reason, count in left_out.items():
        warning = "%s: %d of %d entries %s; they are left out"
        logger.warning(warning, path, count, len(entries), reason)
    if not masks_of:
        raise DataError(_why_nothing(file, data, is_matched=bool(index_of)))
    _compare_boxes(path, [entry for group in masks_of.values() for entry in group])
    return masks_of


def _compare_boxes(path: Path, entries: list[Entry]) -> None:
    """Refuse boxes that are corners, and run lengths that are counted along rows; warn where masks are elsewhere.

    Raises:
        DataError: most boxes fit their masks as x1, y1, x2, y2, or once width and height of the masks are exchanged.
    """
    num_corners = num_along_rows = num_away = 0
    for entry in entries[:LOOKED_AT]:
        mask, box = entry["segmentation"], corners(entry["bbox"])
        extent = find_extent(mask)
        if extent is None or _are_close(extent, box):
            continue
        x1, y1, x2, y2 = entry["bbox"]
        num_corners += _are_close(extent, (x1, y1, x2, y2))
        num_along_rows += _is_along_rows(mask, box)
        num_away += not is_fitting(extent, box)
    num_looked_at = len(entries[:LOOKED_AT])
    if 2 * num_along_rows > num_looked_at:
        raise DataError(
            f"{path}: {num_along_rows} of {num_looked_at} masks fit their boxes only if run lengths are counted along "
            "the rows; COCO counts them down the columns (encode the masks again, in Fortran's order)"
        )
    if 2 * num_corners > num_looked_at:
        first = entries[0]["bbox"]
        raise DataError(
            f"{path}: its boxes, such as {first}, fit their masks as x1, y1, x2, y2; "
            f"{BBOX.text} (write them so, or leave them out: they are taken from the masks)"
        )
    if 2 * num_away > num_looked_at:
        warning = "%s: %d of %d masks are away from their boxes; both are measured as they are"
        logger.warning(warning, path, num_away, num_looked_at)


def _is_along_rows(mask: Any, box: Extent) -> bool:
    """Whether run lengths fit a box once they are read along the rows."""
    if isinstance(mask, list):
        return False
    height, width = mask["size"]
    # Down the columns of the mirrored image is along the rows of the image itself.
    extent = find_extent({"size": [width, height], "counts": mask["counts"]})
    if extent is None:
        return False
    y1, x1, y2, x2 = extent
    return _are_close((x1, y1, x2, y2), box)


def _are_close(mask_box: Extent, box: Extent) -> bool:
    """Whether a box lies around a mask, about as tightly as people and networks draw it."""
    x1, y1, x2, y2 = mask_box
    distance = max(abs(here - there) for here, there in zip(mask_box, box, strict=True))
    return distance <= max(CLOSE_PX, CLOSE_SHARE * max(x2 - x1, y2 - y1))


def _match_images(path: Path, images: Any, data: CocoBoxes) -> dict[int, int]:
    """Image id of a file of masks -> index in the data of the same image.

    That is the one of the same name, the same file, or else the only one of which one name is the end of the other:
    `set/val/a.png` is `a.png` of the folder `set/val`, and none of the folder `set/train`.
    """
    position_of = {data.file_name(index): index for index in range(len(data))}
    names = Names(position_of)
    index_of: dict[int, int] = {}
    for number, image in enumerate(images if isinstance(images, list) else [None]):
        if not has_id_and_name(image):
            raise DataError(
                f"{path}: images[{number}] has no whole number `id` and text `file_name`; "
                f"{MASKS_RULE} (correct the file)"
            )
        name = _match_name(path, image["file_name"], position_of, names, data)
        if name is not None:
            index_of[image["id"]] = position_of[name]
            _require_same_size(path, image, data, position_of[name])
    _require_distinct(path, index_of, data)
    num_listed, num_matched = len(images), len(index_of)
    if 0 < num_matched < num_listed:
        warning = "%s: %d of its %d images are none of %s"
        logger.warning(warning, path, num_listed - num_matched, num_listed, _place(data))
    if 0 < num_matched < len(data):
        warning = "%s: lists %d of the %d images of %s"
        logger.warning(warning, path, num_matched, len(data), _place(data))
    return index_of


def _match_name(
    path: Path, name: str, position_of: dict[str, int], names: Names, data: CocoBoxes
) -> str | None:
    """The data's name of an image of a file of masks; None if it has no such image.

    Raises:
        DataError: several images of the data may be meant.
    """
    if name in position_of:
        return name
    folder = data.source.images.absolute()
    relative = os.path.relpath(os.path.abspath(name), folder)  # noqa: PTH100  links are kept
    if relative in position_of:
        return relative
    alike = [other for other in names.alike(name) if is_tail(name, (folder / other).as_posix())]
    if len(alike) > 1:
        raise DataError(
            f"{path}: its image {name!r} may be {alike[0]!r} or {alike[1]!r} of {_place(data)}; images are "
            "matched by their file names (write them with their folders, as `predict` does from above these)"
        )
    return alike[0] if alike else None


def _require_same_size(path: Path, image: Entry, data: CocoBoxes, index: int) -> None:
    """Refuse masks that are made for an image of another size, if the file says what size."""
    height, width = data.size(index)
    listed = image.get("height"), image.get("width")
    if all(map(is_whole, listed)) and listed != (height, width):
        raise DataError(
            f"{path}: image {image['id']} is {listed[1]} x {listed[0]} px, "
            f"and {width} x {height} px in {_place(data)}; "
            "masks are for images of the same size (name another file)"
        )


def _require_distinct(path: Path, index_of: dict[int, int], data: CocoBoxes) -> None:
    """Refuse two images of a file of masks that are the same one of the data."""
    first_of: dict[int, int] = {}
    for image_id, index in index_of.items():
        first = first_of.setdefault(index, image_id)
        if first != image_id:
            raise DataError(
                f"{path}: images {first} and {image_id} are both {data.file_name(index)!r}; "
                "each image is listed once (name another file)"
            )


def labels_of_file(file: MaskFile, data: CocoBoxes) -> dict[int, int]:
    """Category id of a file of masks -> label of the data; `ABSENT` for a class that it lists and the data lacks."""
    by_id = {category_id: label for label, category_id in enumerate(data.category_ids)}
    if not isinstance(file.categories, list):
        return by_id
    label_of: dict[int, int] = {}
    for category_id, name in file.class_names().items():
        label = by_id.get(category_id, ABSENT)
        # The id decides only between classes of one name.
        is_same = label != ABSENT and fold_name(name) == fold_name(data.class_names[label])
        if not is_same:
            (label,) = find_labels([name], data.class_names)
        label_of[category_id] = label
    return label_of


def _why_nothing(file: MaskFile, data: CocoBoxes, *, is_matched: bool) -> str:
    """Why a file has no mask for any image, with names or ids to compare, unless some of its images are the data's."""
    images = file.images
    value = f"{file.path}: has no mask for any image of {data.source.annotations}"
    if images and is_matched:
        return f"{value}, though it lists some of them; {MASKS_RULE} (name a file that holds some)"
    if not images:
        rule = f"{MASKS_RULE}, for images of the same image ids"
        return f"{value}; {rule} (name the file made for these images)"
    theirs = next((image["file_name"] for image in images if isinstance(image, dict)), "")
    ours = f"{data.file_name(0)!r} in {data.source.images}" if len(data) else "none"
    return (
        f"{value}; images are matched by their file names: its first is {theirs!r}, "
        f"the first of the data {ours} "
        "(correct the names, or --images, or name the file made for these images)"
    )


def _place(data: CocoBoxes) -> str:
    return str(data.source.annotations)


def _entry_problem(entry: Any) -> Problem | None:
    """What keeps an entry from being used: the value found and the rule."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}", "entries are objects"
    for key in ("image_id", "category_id"):
        is_needed = key == "image_id"  # without a category, the mask counts as one of no class
        if (is_needed or key in entry) and not is_whole(entry.get(key)):
            rule = "ids are whole numbers, those of the annotation file"
            return f"has {key} {entry.get(key)!r:.40}", rule
    for key in ("score", "quality"):
        if key in entry and not is_number(entry[key]):
            return f"has {key} {entry[key]!r:.40}", f"a {key} is a finite number"
    bbox = entry.get("bbox")
    if bbox and not is_finite_bbox(bbox):
        return f"has bbox {bbox!r:.80}", BBOX.text
    segmentation = entry.get("segmentation")
    return find_problem(segmentation) if segmentation else None


def encode_entry(path: Path, entry: Entry, size: Size) -> Rle:
    """Mask of an entry that `match_masks` gave, of an image of (height, width), run-length encoded.

    Args:
        path: The file of masks, for the message.
        entry: The entry.
        size: Of its image.

    Raises:
        DataError: it is made for another size; names the entry.
    """
    # Results have no ids of their own.
    name = f"an entry of image {entry['image_id']}"
    if "id" in entry:
        name = f"annotation {entry['id']!r:.40}"
    with naming(f"{path}: {name}"):
        return encode_segmentation(entry["segmentation"], size)
