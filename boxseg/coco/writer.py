"""A COCO instance file in the making, as the readers of other formats fill it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.entries import TEXT, Entry
from boxseg.coco.masks import encode_rle
from boxseg.coco.segmentations import Size
from boxseg.errors import DataError
from boxseg.mask_parts import MaskPart


@dataclass
class CocoSplit:
    """A COCO instance file in the making; ids count from 1, as pycocotools takes the id 0 for no match.

    >>> split = CocoSplit(Path("photos"), ["cat", "dog"])
    >>> split.add_image("tom.jpg", size=(480, 640))
    >>> split.add_object(0, box=(10, 20, 110, 220))
    >>> split.content["annotations"][0]["bbox"]
    [10, 20, 100, 200]
    """

    images: Path
    """Folder that the file names are relative to."""
    class_names: Sequence[str]
    """Category ids count from 1 in this order."""
    content: dict[str, list[Entry]] = field(init=False)
    """What the file will hold."""

    def __post_init__(self) -> None:
        categories = [
            {"id": number, "name": name} for number, name in enumerate(self.class_names, start=1)
        ]
        self.content = {"images": [], "annotations": [], "categories": categories}

    def add_image(self, file_name: str, size: Size) -> None:
        """Add an image of (height, width) pixels; objects that are added from now on are in it.

        Raises:
            DataError: the file name is not UTF-8, as of archives from Windows, and cannot be written as text.
        """
        if not TEXT.holds(file_name):
            raise DataError(
                f"{self.images / file_name}: its name is not UTF-8; COCO files hold text (rename it, and its "
                "labels alike, as `convmv -f latin1 -t utf8 -r --notest FOLDER` does)"
            )
        height, width = size
        image_id = len(self.content["images"]) + 1
        entry = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.content["images"].append(entry)

    def add_object(
        self,
        label: int,
        *,
        box: Sequence[float] | None = None,
        mask: NDArray[np.bool_] | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an object to the last image.

        Args:
            label: Class, from 0.
            box: x1 y1 x2 y2 in pixels; if left out, the one around the mask.
            mask: Bool (h, w), where there is one; not empty.
            crowd: Whether it is a crowd region, which is neither trained on nor evaluated.
        """
        if box is None:
            assert mask is not None
            box = MaskPart(mask).bounds()
        x1, y1, x2, y2 = box
        entry: Entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": len(self.content["images"]),
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        if mask is not None:
            entry["area"] = int(mask.sum())  # COCO's area is that of the mask
            entry["segmentation"] = encode_rle(mask)
        self.content["annotations"].append(entry)

    def leave_out(self, stems: Container[str]) -> int:
        """Leave out images, by their file names without folder and ending, with their objects; gives how many."""
        left_out = {
            image["id"]
            for image in self.content["images"]
            if PurePosixPath(image["file_name"]).stem in stems
        }
        for group, key in (("images", "id"), ("annotations", "image_id")):
            kept = [entry for entry in self.content[group] if entry[key] not in left_out]
            self.content[group] = kept
        return len(left_out)


def join_splits(splits: Sequence[CocoSplit]) -> CocoSplit:
    """One split with all images of several, each file once, with new ids.

    Args:
        splits: Splits of one data set, which share folder and classes.
    """
    joined = CocoSplit(splits[0].images, splits[0].class_names)
    images, annotations = joined.content["images"], joined.content["annotations"]
    names: set[str] = set()
    for split in splits:
        new_ids: dict[int, int] = {}
        for image in split.content["images"]:
            if image["file_name"] not in names:
                new_ids[image["id"]] = len(images) + 1
                images.append(image | {"id": len(images) + 1})
        for annotation in split.content["annotations"]:
            image_id = new_ids.get(annotation["image_id"])
            if image_id is not None:
                annotations.append(annotation | {"id": len(annotations) + 1, "image_id": image_id})
        # Only now: a file that one split lists twice stays there twice, for the checks to report it.
        names.update(image["file_name"] for image in split.content["images"])
    return joined


def require_objects(splits: Mapping[str, CocoSplit], source: Path) -> None:
    """Refuse a data set of which nothing was read.

    Raises:
        DataError: no split has an image, or none has an object.
    """
    for group, name in (("images", "image"), ("annotations", "object")):
        if not any(split.content[group] for split in splits.values()):
            raise DataError(
                f"{source}: no {name} could be read from it; a data set has images and objects "
                "(see the warnings, and check the paths and the format)"
            )
