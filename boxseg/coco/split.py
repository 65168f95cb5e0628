"""Splits a COCO data set into one to train on and one to validate on; what belongs together stays together."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from boxseg.coco.checks import read_well_formed
from boxseg.coco.entries import Content, Entry
from boxseg.errors import ConfigError, DataError

FOLDER = "folder"
"""The group that is the folder of the image's file name."""


def split_coco(
    path: Path, *, val: float, group: str | None = None, seed: int = 0
) -> dict[str, Content]:
    """Split the content of a COCO instance file in two parts that share neither an image nor a group.

    Groups go to `val` in an order that depends on seed and group name, each if it still fits; the order of the
    file does not matter. All fields and all categories stay in both parts.

    Args:
        path: COCO instances.
        val: Share of the images that `val` gets, in (0, 1); met as closely as whole groups allow, at least one.
        group: Field of the image entries whose value is their group, or `folder` for that of their file names. If
            left out, every file is a group of its own.
        seed: Another one gives another split.

    Returns:
        `train` and `val`, neither without images.

    Raises:
        ConfigError: `val` is out of range, or an image has no field `group`.
        DataError: the file is malformed, or all images are one group.
    """
    if not 0 < val < 1:
        raise ConfigError(f"--val {val:g}: use a share of the images between 0 and 1, such as 0.2")
    content = read_well_formed(path)
    images = content["images"]
    groups: dict[str, set[int]] = defaultdict(set)
    for image in images:
        groups[_group_of(path, image, group)].add(image["id"])
    if len(groups) < 2:
        raise DataError(
            f"{path}: has {len(images)} images in {len(groups)} groups; "
            "a split needs two groups at least (name another --group)"
        )
    val_ids = _choose(groups, val * len(images), seed)
    train_ids = {image["id"] for image in images} - val_ids
    return {"train": _part(content, train_ids), "val": _part(content, val_ids)}


def _group_of(path: Path, image: Entry, group: str | None) -> str:
    """The group of an image as text, whatever kind of value the field has."""
    name = PurePosixPath(image["file_name"])
    value: Any
    if group is None:
        value = str(name)
    elif group == FOLDER:
        value = str(name.parent)
    elif group in image:
        value = image[group]
    else:
        fields = ", ".join(sorted(image))
        raise ConfigError(
            f"--group {group}: image {image['id']} of {path} has no such field; it has {fields} "
            f"(use one that every image has, or {FOLDER})"
        )
    return json.dumps(value, sort_keys=True)


def _choose(groups: dict[str, set[int]], wanted: float, seed: int) -> set[int]:
    """Image ids of the groups that go to `val`: about `wanted` of them, at least one group and never all."""

    def chance(name: str) -> bytes:
        # By the name alone: as far as the share allows, a group stays on its side when others come or go.
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    num_images = sum(len(image_ids) for image_ids in groups.values())
    most = min(max(round(wanted), 1), num_images - 1)
    order = sorted(groups, key=chance)
    chosen: set[int] = set()
    for name in order:
        if len(chosen) + len(groups[name]) <= most:
            chosen.update(groups[name])
    if chosen:
        return chosen
    # Every group is larger than the share.
    return groups[min(order, key=lambda name: len(groups[name]))]


def _part(content: Content, image_ids: set[int]) -> Content:
    images = [image for image in content["images"] if image["id"] in image_ids]
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in image_ids]
    return content | {"images": images, "annotations": annotations}
