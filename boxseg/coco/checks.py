"""Finds what is wrong with a COCO data set before anything heavy starts; needs neither torch nor pycocotools."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxseg.coco.entries import (
    REQUIRED_KEYS,
    Content,
    Entry,
    annotation_faults,
    duplicate_faults,
    format_faults,
    objects_of,
)
from boxseg.coco.faults import Fault, count_faults, first_of_each_kind
from boxseg.coco.odd_boxes import box_faults
from boxseg.coco.odd_entries import (
    crowd_faults,
    evaluation_faults,
    hole_faults,
    mask_faults,
    name_faults,
)
from boxseg.coco.picture_checks import picture_faults
from boxseg.coco.segmentations import MaskSummary
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.reading import DOES_NOT_EXIST, UnreadableError, read_json

SHOWN_FAULTS = 5
"""Fatal faults that an error names; `boxseg data check` lists more."""

COCO_RULE = "a COCO instance file is one object with the lists images, annotations and categories"
FILE_RULE = "a data source needs its COCO annotation file"
EXPORT = "export it as COCO instances"
OTHER_FORMATS = (
    ("LabelMe", {"shapes", "imagePath"}),
    ("VIA", {"filename", "regions"}),
    ("VIA", {"_via_img_metadata"}),
    ("Supervisely", {"objects", "size"}),
    ("Supervisely", {"classes", "tags"}),
    ("Label Studio", {"data", "annotations"}),
    ("Label Studio", {"annotator", "annotation_id"}),
    ("CreateML", {"image", "annotations"}),
    ("Detectron2", {"file_name", "annotations"}),
    ("Datumaro", {"items", "categories"}),
    ("VoTT", {"assets"}),
    ("SageMaker", {"source-ref"}),
    ("BDD100K", {"name", "labels"}),
    (
        "COCO's results, which need the file that they were found with,",
        {"image_id", "category_id"},
    ),
)
"""Tool -> keys by which the first object of its JSON files is known."""
MASKS_RULE = "data.use_masks: where_present needs some (a supervised twin needs all)"
MASKS_WAY_OUT = (
    "name a file with `segmentation` in data.train.annotations, or train on boxes: "
    "data.use_masks: never"
)
MASK_AP_RULE = "mask AP needs drawn masks"
BOXES_ALONE = "read box AP, or add `segmentation`"
"""Advice where no mask is drawn at all; training then reports box AP and gives no warning."""

logger = logging.getLogger(__name__)
Hook = Callable[[Entry], Entry]
"""Called with each entry of a file as it is read; its result takes the entry's place."""


@dataclass(frozen=True)
class _Kept:
    """Content of annotation files that were read without their masks."""

    contents: dict[tuple[Path, Hook], Content | Fault] = field(default_factory=dict)
    well_formed: set[Path] = field(default_factory=set)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it, each annotation file is read without masks only once; its content is kept and shared.

    The content must not be changed; it takes memory until the block ends.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set(_Kept())
    try:
        yield
    finally:
        _kept.reset(token)


def require_usable(
    source: CocoSource, *, training: bool, use_masks: bool = False, open_images: bool = True
) -> list[Fault]:
    """Check a source and refuse one that cannot be used; faults that are not fatal are logged and returned.

    A file without any mask is no warning: that fault is returned and not logged.

    Args:
        source: Images and annotation file.
        training: Whether it is to be trained on (see `check_source`).
        use_masks: Whether training uses drawn masks (see `check_source`).
        open_images: Whether the images are on this machine (see `check_source`).

    Raises:
        DataError: at least one fatal fault; its text has the first few and their number.
    """
    faults = check_source(source, training=training, use_masks=use_masks, open_images=open_images)
    for fault in faults:
        if not fault.fatal and fault.way_out != BOXES_ALONE:
            logger.warning("%s", fault)
    fatal = [str(fault) for fault in faults if fault.fatal]
    count = count_faults(faults, fatal=True)
    if count == 1:
        raise DataError(fatal[0])
    if count > 1:
        lines = [f"{source.annotations}: {count} faults (`boxseg data check` lists more)"]
        lines += fatal[:SHOWN_FAULTS]
        if count > SHOWN_FAULTS:
            lines.append(f"… and {count - SHOWN_FAULTS} more")
        raise DataError("\n  ".join(lines))
    return faults


def check_source(
    source: CocoSource,
    *,
    training: bool,
    use_masks: bool = False,
    decode: bool = False,
    look_at_masks: bool = False,
    open_images: bool = True,
) -> list[Fault]:
    """Everything that is wrong with a data set: first the annotation file, then its entries, then the images.

    Boxes of crowd annotations are not checked.

    Args:
        source: Images and annotation file.
        training: True: there must be boxes to learn from. False: there should be masks to evaluate with.
        use_masks: Training uses drawn masks, so there must be some.
        decode: Decode every image in full. Otherwise the header is read and the end marker looked for, and only
            suspicious files are decoded.
        look_at_masks: Report faults of masks even if the masks are not needed; these faults are not fatal.
        open_images: False: images are on other machines, and only the annotation file is looked at.

    Returns:
        The first few faults of each kind, the last with the number of those left out; empty for a sound data set.
    """
    needs_masks = use_masks or not training
    path = source.annotations
    hook = _summarise_mask if needs_masks or look_at_masks else _drop_mask
    content = _load(path, hook)
    if isinstance(content, Fault):
        return [content]
    # The other checks need the keys that this one looks for.
    malformed = first_of_each_kind(format_faults(path, content))
    if malformed:
        return malformed
    return first_of_each_kind(
        itertools.chain(
            duplicate_faults(path, content),
            _amount_faults(path, content, training=training, use_masks=use_masks),
            _entry_faults(source, content, training=training, needs_masks=needs_masks),
            picture_faults(source.images, content["images"], decode=decode) if open_images else [],
        )
    )


def check_entries(source: CocoSource, *, training: bool) -> list[Fault]:
    """What is wrong with the well-formed entries of a COCO file; the image files are not opened.

    Args:
        source: COCO instances, see `read_well_formed`, and the folder of their images.
        training: False: masks are needed, to evaluate with.

    Raises:
        DataError: the file is missing, not JSON, or lacks one of the three lists.
    """
    content = _require(_load(source.annotations, _drop_mask if training else _summarise_mask))
    faults = _entry_faults(source, content, training=training, needs_masks=not training)
    return first_of_each_kind(faults)


def _entry_faults(
    source: CocoSource, content: Content, *, training: bool, needs_masks: bool
) -> Iterator[Fault]:
    path = source.annotations
    yield from box_faults(path, content)
    yield from annotation_faults(path, content)
    yield from mask_faults(path, content, fatal=needs_masks)
    yield from hole_faults(path, content)
    yield from name_faults(path, content, source.images)
    yield from crowd_faults(path, content)
    if not training:
        yield from evaluation_faults(path, content)


def _amount_faults(
    path: Path, content: Content, *, training: bool, use_masks: bool
) -> Iterator[Fault]:
    """Too few images, boxes or masks for what the file is to be used for."""
    objects = objects_of(content)
    if not content["images"]:
        yield Fault(path, "lists no images", "a data set needs at least one", "name another file")
    elif not objects:
        rule = f"{'training' if training else 'evaluation'} needs at least one"
        way_out = "name another file"
        if crowds := len(content["annotations"]):
            way_out = (
                f"set iscrowd to 0 in those of its {crowds} crowds that are one object, "
                f"or {way_out}"
            )
        yield Fault(path, "has no boxes that are not crowds", rule, way_out)
    without_mask = sum(not entry.get("has_mask") for entry in objects)
    if not without_mask:
        return
    value = f"has no mask for {without_mask} of {len(objects)} annotations"
    has_none = without_mask == len(objects)
    if not training:
        way_out = BOXES_ALONE if has_none else "add `segmentation`, or read box AP only"
        yield Fault(path, value, MASK_AP_RULE, way_out, fatal=False)
    elif use_masks and has_none:
        yield Fault(path, value, MASKS_RULE, MASKS_WAY_OUT)
    elif use_masks:
        rule = "boxes without a mask are trained on as boxes alone"
        way_out = "add `segmentation`, or leave it so"
        yield Fault(path, value, rule, way_out, fatal=False)


def read_annotations(path: Path, *, keep_masks: bool = False) -> Content:
    """Content of a COCO instance file without its masks: `segmentation` is dropped while the file is read.

    Annotations that had a mask get `has_mask: True` instead; with `keep_masks` also `mask_text`, the segmentation as
    JSON in bytes, which takes a tenth of the memory of its lists.

    Raises:
        DataError: the file is missing, not JSON, or lacks one of the three lists.
    """
    return _require(_load(path, _pack_mask if keep_masks else _drop_mask))


def read_whole(path: Path) -> Content:
    """Content of a COCO instance file, masks included.

    Raises:
        DataError: the file is missing, not JSON, or lacks one of the three lists.
    """
    return _require(_load(path, None))


def read_well_formed(path: Path, *, whole: bool = True, unlisted: bool = False) -> Content:
    """Content of a COCO instance file whose entries all have valid values and unique ids.

    Args:
        path: The file.
        whole: False: without masks, as `read_annotations` gives it; annotations may then be unlisted as well.
        unlisted: Whether annotations may belong to an image or a category that the file does not list.

    Raises:
        DataError: it is not such a file; names the first entry that is wrong.
    """
    kept = _kept.get() or _Kept()
    content = read_whole(path) if whole else read_annotations(path)
    if not whole and path in kept.well_formed:
        return content
    faults = itertools.chain(format_faults(path, content), duplicate_faults(path, content))
    if whole and not unlisted:
        faults = itertools.chain(faults, annotation_faults(path, content, boxes=False))
    fault = next(faults, None)
    if fault is not None:
        raise DataError(str(fault))
    if not whole:
        kept.well_formed.add(path)
    return content


def _require(content: Content | Fault) -> Content:
    if isinstance(content, Fault):
        raise DataError(str(content))
    return content


def _load(path: Path, hook: Hook | None) -> Content | Fault:
    """Content of a COCO file after `hook` has seen each of its objects, or why it is no COCO file."""
    if hook not in (_drop_mask, _summarise_mask):
        return _read(path, hook)
    contents = (_kept.get() or _Kept()).contents
    # A file with `mask_summary` in its entries serves where `has_mask` is enough.
    if hook is _drop_mask and (path, _summarise_mask) in contents:
        hook = _summarise_mask
    if (path, hook) not in contents:
        contents[path, hook] = _read(path, hook)
    return contents[path, hook]


def _read(path: Path, hook: Hook | None) -> Content | Fault:
    try:
        content = read_json(path, COCO_RULE, hook)
    except UnreadableError as error:
        rule = FILE_RULE if error.value == DOES_NOT_EXIST else COCO_RULE
        return Fault(path, error.value, rule, error.way_out)
    if not isinstance(content, dict):
        value = f"holds a {type(content).__name__}{_looks_like(content)}"
        return Fault(path, value, COCO_RULE, EXPORT)
    for key in REQUIRED_KEYS:
        if not isinstance(content.get(key), list):
            return Fault(path, f"has no list `{key}`{_looks_like(content)}", COCO_RULE, EXPORT)
    return content


def _looks_like(content: Any) -> str:
    """What a JSON file seems to be instead of COCO, in words; empty if it cannot be told."""
    # A list of objects, one object, or one that holds others by their names.
    first = content[:1] if isinstance(content, list) else [content, *content.values()][:2]
    for keys in (entry.keys() for entry in first if isinstance(entry, dict)):
        for name, signs in OTHER_FORMATS:
            if keys >= signs:
                return f" and looks like {name}"
    return ""


# Masks are most of a COCO file, and their lists take ten times the memory of their text. So each is replaced by as much
# of it as is needed, as soon as it is read.


def _drop_mask(entry: Entry) -> Entry:
    if entry.pop("segmentation", None):
        entry["has_mask"] = True
    return entry


def _pack_mask(entry: Entry) -> Entry:
    segmentation = entry.get("segmentation")
    if segmentation:
        entry["mask_text"] = json.dumps(segmentation, separators=(",", ":")).encode()
    return _drop_mask(entry)


def _summarise_mask(entry: Entry) -> Entry:
    segmentation = entry.get("segmentation")
    if segmentation:
        entry["mask_summary"] = MaskSummary.of(segmentation)
    return _drop_mask(entry)
