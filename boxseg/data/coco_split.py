"""A COCO instance file in the making, as the readers of other formats fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.data.outlines import encode_rle
from boxseg.errors import ConfigError

BOX_FIELDS = ("id", "image_id", "category_id", "bbox", "iscrowd")
"""What an annotation without its mask keeps."""


@dataclass
class CocoSplit:
    """A COCO instance file in the making."""

    images: Path
    """Folder that the file names are relative to."""
    class_names: Sequence[str]
    """Category ids count from 1 in this order."""
    content: dict[str, list[dict[str, Any]]] = field(init=False)

    def __post_init__(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.class_names, start=1)]
        self.content = {"images": [], "annotations": [], "categories": categories}

    def add_image(self, file_name: str, size: tuple[int, int]) -> None:
        """The next image, (height, width) in pixels; objects added from now on are in it."""
        number = len(self.content["images"]) + 1
        entry = {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}
        self.content["images"].append(entry)

    def add_object(
        self, label: int, box: Sequence[float], mask: NDArray[np.bool_] | None = None, *, crowd: bool = False
    ) -> None:
        """An object of the last image: label from 0, x1 y1 x2 y2 in pixels, bool (h, w) where there is a mask."""
        x1, y1, x2, y2 = map(float, box)
        entry: dict[str, Any] = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": len(self.content["images"]),
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        if mask is not None:
            entry |= {"area": float(mask.sum()), "segmentation": encode_rle(mask)}
        self.content["annotations"].append(entry)


def join_splits(splits: Sequence[CocoSplit]) -> CocoSplit:
    """All images of several splits of one data set, which share folder and classes; ids are given anew."""
    joined = CocoSplit(splits[0].images, splits[0].class_names)
    for split in splits:
        images, annotations = len(joined.content["images"]), len(joined.content["annotations"])
        joined.content["images"] += [each | {"id": each["id"] + images} for each in split.content["images"]]
        joined.content["annotations"] += [
            each | {"id": each["id"] + annotations, "image_id": each["image_id"] + images}
            for each in split.content["annotations"]
        ]
    return joined


def merge_classes(content: dict[str, Any], merged: Mapping[str, Sequence[str]]) -> None:
    """Make one class of several, in place.

    Args:
        content: COCO instances.
        merged: Name of the new class, or of one that is there -> classes that become it. It has the id of the first of
            them, in the order of the file.

    Raises:
        ConfigError: there is no class of a name.
    """
    new_name = {old: new for new, olds in merged.items() for old in olds}
    names = [category["name"] for category in content["categories"]]
    for name in new_name:
        if name not in names:
            raise ConfigError(f"--merge: there is no class {name!r}; there are {', '.join(sorted(set(names)))}")
    ids: dict[str, int] = {}
    id_of = {}
    for category in content["categories"]:
        name = new_name.get(category["name"], category["name"])
        id_of[category["id"]] = ids.setdefault(name, category["id"])
        category["name"] = name
    content["categories"] = [each for each in content["categories"] if ids[each["name"]] == each["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = id_of[annotation["category_id"]]


def drop_masks(content: dict[str, Any]) -> None:
    """Leave nothing but boxes in the annotations, in place: what is trained on them has seen no mask."""
    content["annotations"] = [
        {name: each[name] for name in BOX_FIELDS if name in each} | {"area": float(each["bbox"][2]) * each["bbox"][3]}
        for each in content["annotations"]
    ]
