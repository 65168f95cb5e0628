"""Reads Cityscapes: outlines of objects in street scenes."""

from __future__ import annotations

from pathlib import Path

from boxseg.coco.writer import CocoSplit
from boxseg.formats.common import Splits, find_objects, read_ids, require_splits

CITYSCAPES_CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Label id -> name of the classes that have instances."""
ID_STEP = 1000
"""A pixel is this times its label id, and the number of the object; smaller ones are the bare label id of a group."""
IDS_ENDING = "_gtFine_instanceIds.png"
IMAGE_ENDING = "_leftImg8bit.png"


def convert_cityscapes(source: Path, exclude: frozenset[str]) -> Splits:
    """Cityscapes: the eight classes that have instances, from `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`.

    Groups of objects that nobody could tell apart become crowds.

    Source: the description of the Cityscapes scripts.
    """
    splits: Splits = {}
    for name in ("train", "val"):  # the masks of `test` are not published
        paths = sorted((source / "gtFine" / name).glob(f"*/*{IDS_ENDING}"))
        if not paths:
            continue
        splits[name] = CocoSplit(source / "leftImg8bit", tuple(CITYSCAPES_CLASSES.values()))
        for path in paths:
            file_name = path.name.removesuffix(IDS_ENDING) + IMAGE_ENDING
            if Path(file_name).stem not in exclude:
                _add_image(splits[name], path, f"{name}/{path.parent.name}/{file_name}")
    sign = f"gtFine/train/*/*{IDS_ENDING}"
    return require_splits(splits, source, sign, "folder with gtFine and leftImg8bit")


def _add_image(split: CocoSplit, path: Path, file_name: str) -> None:
    ids = read_ids(path)
    split.add_image(file_name, ids.shape)
    # Labels count from 0 in the order of the classes; label ids have gaps for classes without instances.
    label_of = {label_id: label for label, label_id in enumerate(CITYSCAPES_CLASSES)}
    for number in find_objects(path, ids, lambda number: _label_id(number) in label_of):
        is_group = number < ID_STEP
        split.add_object(label_of[_label_id(number)], mask=ids == number, crowd=is_group)


def _label_id(number: int) -> int:
    return number if number < ID_STEP else number // ID_STEP
