"""Writes YOLO segmentation: folders `images/` and `labels/`, lists of the splits, and `data.yaml` with the classes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxseg.coco.entries import Content, Entry
from boxseg.coco.masks import decode_part
from boxseg.coco.outlines import find_polygons, join_polygons
from boxseg.errors import DataError
from boxseg.files.names import is_file_inside
from boxseg.files.reading import UnreadableError, read_picture
from boxseg.files.writing import naming_storage_faults, write_atomic
from boxseg.formats.common import TurnedPicture

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a folder -> what its images are for; others are to train on."""
VAL_SHARE = 0.2
"""Share of the images that is validated on, where their folders do not say."""

logger = logging.getLogger(__name__)


def write_yolo(content: Content, images: Path, folder: Path) -> dict[str, int]:
    """Write masks for YOLO segmentation: a line `class x y x y …` per object, one outline around all its pieces.

    Lists say what to train and to validate on: `train.txt` and `val.txt`, and `test.txt` where a folder has that name.
    Where the folders of the images have such names, they decide; else every fifth image, by chance, is validated on.

    Args:
        content: COCO instances; annotations without a mask, or with an empty one, and crowds are left out, and so are
            images without a file and, with a warning, those whose file has another size.
        images: Folder of its images; `folder/images` gets links to them.
        folder: A new folder; it is removed again where something goes wrong.

    Returns:
        Split -> how many images.

    Raises:
        DataError: two images differ only in what YOLO leaves out of their names, or a name has a line break.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    folder.mkdir(parents=True)
    try:
        names = _write_labels(content, label_of, images, folder)
        splits = split_names(names)
        _write_layout(folder, splits, [category["name"] for category in categories])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {split: len(of_split) for split, of_split in splits.items()}


def _write_labels(
    content: Content, label_of: dict[int, int], images: Path, folder: Path
) -> list[str]:
    """Write a label file and a link for each image that has a file; their names."""
    objects: dict[int, list[Entry]] = defaultdict(list)
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    written: dict[Path, str] = {}
    of_other_size = []
    for image in content["images"]:
        name, size = image["file_name"], (image["height"], image["width"])
        if not is_file_inside(images, name):
            continue
        if len(name.splitlines()) > 1:
            raise DataError(
                f"{images}: {name!r} has a line break; YOLO's lists name an image a line "
                "(rename it, in the annotation file too)"
            )
        path = (folder / "labels" / _place(name)).with_suffix(".txt")
        if path in written:
            raise DataError(
                f"{images}: {name} and {written[path]} have one label file in YOLO, which knows neither their ending "
                "nor folders called images (rename one of them, in the annotation file too)"
            )
        try:
            picture = read_picture(images / name, TurnedPicture.of)
        except UnreadableError:
            picture = TurnedPicture(size, orientation=1)
        if picture.size != size:
            of_other_size.append(name)
            continue
        written[path] = name
        lines = _label_lines(objects[image["id"]], label_of, picture)
        with naming_storage_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines))
            _link(folder / "images" / _place(name), images / name)
    if of_other_size:
        logger.warning(
            "%s: pictures left out of YOLO's files: %d, such as %s, which have another size than the annotation file "
            "says; masks refer to that size (correct it, as `boxseg data check --fix` does for turned pictures)",
            images,
            len(of_other_size),
            of_other_size[0],
        )
    return list(written.values())


def _label_lines(
    annotations: list[Entry], label_of: dict[int, int], picture: TurnedPicture
) -> list[str]:
    """A line for each object of an image that has a mask."""
    lines = []
    for annotation in annotations:
        if not annotation.get("segmentation") or annotation.get("iscrowd"):
            continue
        outline = _outline(annotation["segmentation"], picture)
        if outline:
            lines.append(f"{label_of[annotation['category_id']]} {outline}")
    return lines


def _outline(segmentation: Any, picture: TurnedPicture) -> str:
    """One outline as shares of width and height of the picture as seen; empty for an empty mask."""
    polygons = find_polygons(decode_part(segmentation, picture.size))
    if not polygons:
        return ""
    shares = picture.seen_shares(join_polygons(polygons).astype(np.float64))
    return " ".join(f"{share:.6g}" for share in shares.ravel().tolist())


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.absolute())


def _place(name: str) -> str:
    """Where an image goes below `images`; other folders of that name are left out, as the last one leads to labels."""
    *folders, last = name.split("/")
    return "/".join([*(folder for folder in folders if folder != "images"), last])


def _write_layout(folder: Path, splits: dict[str, list[str]], class_names: list[str]) -> None:
    """Write the lists of the splits, and `data.yaml`."""
    # Without a `path`, trainers look beside this file; with `.`, in their working folder or where they keep data sets.
    layout = []
    for split, names in splits.items():
        paths = [f"./images/{_place(name)}\n" for name in names]
        write_atomic(folder / f"{split}.txt", "".join(paths))
        layout.append(f"{split}: {split}.txt\n")
    layout.append("names:\n")
    for label, name in enumerate(class_names):
        layout.append(f'  {label}: "{"".join(map(_in_yaml, name))}"\n')
    write_atomic(folder / "data.yaml", "".join(layout))


def _in_yaml(letter: str) -> str:
    """A letter in a quoted text of YAML; JSON writes an emoji as two escapes, which would be two letters here."""
    return json.dumps(letter)[1:-1] if letter <= "\uffff" else f"\\U{ord(letter):08x}"


def split_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Images to train, validate and test on: by their folders, or else a fifth to validate on; empty ones are left out.

    As far as the share allows, an image stays on its side when others come or go.

    >>> split_names(["train/a.png", "valid/b.png", "c.png"])
    {'train': ['train/a.png', 'c.png'], 'val': ['valid/b.png']}
    """
    split_of = {name: _split_by_folder(name) for name in names}
    if not {"train", "val"} <= set(split_of.values()):
        held_out = _hold_out(names)
        split_of = {name: "val" if name in held_out else "train" for name in names}
    splits = {split: [name for name in names if split_of[name] == split] for split in SPLITS}
    return {split: listed for split, listed in splits.items() if listed or split == "train"}


def _split_by_folder(name: str) -> str:
    for folder in name.lower().split("/")[:-1]:
        if folder in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[folder]
    return "train"


def _hold_out(names: Sequence[str]) -> set[str]:
    """A fifth of the names, by chance: one at least, unless there is but one."""
    if len(names) < 2:
        return set()
    # By the name alone, so that other names do not change it.
    order = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    return set(order[: max(1, round(VAL_SHARE * len(order)))])
