"""A COCO instance file in the making, as the readers of other formats fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.masks import encode_rle
from boxseg.errors import DataError


@dataclass
class CocoSplit:
    """A COCO instance file in the making."""

    images: Path
    """Folder that the file names are relative to."""
    class_names: Sequence[str]
    """Category ids count from 1 in this order."""
    content: dict[str, list[dict[str, Any]]] = field(init=False)

    def __post_init__(self) -> None:
        categories = [
            {"id": number, "name": name} for number, name in enumerate(self.class_names, start=1)
        ]
        self.content = {"images": [], "annotations": [], "categories": categories}

    def add_image(self, file_name: str, size: tuple[int, int]) -> None:
        """The next image, (height, width) in pixels; objects added from now on are in it."""
        number = len(self.content["images"]) + 1
        entry = {"id": number, "file_name": file_name, "width": size[1], "height": size[0]}
        self.content["images"].append(entry)

    def add_object(
        self,
        label: int,
        *,
        box: Sequence[float] | None = None,
        mask: NDArray[np.bool_] | None = None,
        crowd: bool = False,
    ) -> None:
        """An object of the last image.

        Args:
            label: Class, from 0.
            box: x1 y1 x2 y2 in pixels; if left out, the one around the mask.
            mask: Bool (h, w), where there is one; not empty.
            crowd: Whether it is a region that is neither trained on nor evaluated.
        """
        if box is None:
            assert mask is not None
            rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        x1, y1, x2, y2 = box
        entry: dict[str, Any] = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": len(self.content["images"]),
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        if mask is not None:
            entry |= {"area": int(mask.sum()), "segmentation": encode_rle(mask)}
        self.content["annotations"].append(entry)


def join_splits(splits: Sequence[CocoSplit]) -> CocoSplit:
    """All images of several splits of one data set, which share folder and classes, each once; ids are given anew."""
    joined = CocoSplit(splits[0].images, splits[0].class_names)
    images, annotations = joined.content["images"], joined.content["annotations"]
    names: set[str] = set()
    for split in splits:
        own = [image for image in split.content["images"] if image["file_name"] not in names]
        names |= {image["file_name"] for image in own}
        becomes = {image["id"]: number for number, image in enumerate(own, start=len(images) + 1)}
        images += [image | {"id": becomes[image["id"]]} for image in own]
        kept = [each for each in split.content["annotations"] if each["image_id"] in becomes]
        for number, each in enumerate(kept, start=len(annotations) + 1):
            annotations.append(each | {"id": number, "image_id": becomes[each["image_id"]]})
    return joined


def require_objects(splits: Mapping[str, CocoSplit], source: Path) -> None:
    """Refuse a data set of which nothing was read.

    Raises:
        DataError: no split has an image, or none has an object.
    """
    for group, what in (("images", "image"), ("annotations", "object")):
        if not any(split.content[group] for split in splits.values()):
            raise DataError(
                f"{source}: no {what} could be read of it; a data set has images and objects (see the warnings, and "
                "check the paths and the format)"
            )
