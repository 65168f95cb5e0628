"""Splits a COCO data set into one to train on and one to validate on; what belongs together stays together."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from boxseg.coco.checks import read_well_formed
from boxseg.errors import ConfigError, DataError

FOLDER = "folder"
"""The group that is the folder of the image's file name."""


def split_coco(
    path: Path, *, val: float, group: str | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Content of a COCO instance file in two parts that share neither an image nor a group.

    Groups go to `val` in an order that seed and group name decide, each if it still fits; so the order of the file
    does not matter. All fields and all categories stay in both parts.

    Args:
        path: COCO instances.
        val: Share of the images that `val` gets, in (0, 1); met as closely as whole groups allow, with one at least.
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
    members: dict[str, set[int]] = defaultdict(set)
    for image in images:
        members[_group_of(path, image, group)].add(image["id"])
    if len(members) < 2:
        found = f"has {len(images)} images in {len(members)} groups"
        raise DataError(
            f"{path}: {found}; a split needs two groups at least (name another --group)"
        )
    chosen = _choose(members, val * len(images), seed)
    others = {image["id"] for image in images} - chosen
    return {"train": _part(content, others), "val": _part(content, chosen)}


def _group_of(path: Path, image: dict[str, Any], group: str | None) -> str:
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
            f"--group {group}: image {image['id']} of {path} has no such field; it has {fields} (use one that every "
            f"image has, or {FOLDER})"
        )
    return json.dumps(value, sort_keys=True)


def _choose(members: dict[str, set[int]], wanted: float, seed: int) -> set[int]:
    """Image ids of the groups that go to `val`: about `wanted` of them, at least one group and never all."""
    order = sorted(members, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    most = min(max(round(wanted), 1), sum(map(len, members.values())) - 1)
    chosen: set[int] = set()
    for name in order:
        if len(chosen) + len(members[name]) <= most:
            chosen.update(members[name])
    return chosen or members[min(order, key=lambda name: len(members[name]))]


def _part(content: dict[str, Any], image_ids: set[int]) -> dict[str, Any]:
    return content | {
        "images": [image for image in content["images"] if image["id"] in image_ids],
        "annotations": [each for each in content["annotations"] if each["image_id"] in image_ids],
    }
