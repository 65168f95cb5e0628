"""YOLO data sets: folders `images/` and `labels/`, a line of shares per object, and `data.yaml` with the classes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from boxseg.data.checks import is_inside
from boxseg.data.coco import decode_segmentation
from boxseg.data.outlines import find_polygons, join_polygons
from boxseg.errors import DataError


def write_yolo(content: dict[str, Any], images: Path, folder: Path) -> None:
    """Write masks for YOLO segmentation: a line `class x y x y …` per object, one outline around all its pieces.

    Args:
        content: COCO instances; annotations without a mask, or with an empty one, and crowds are left out.
        images: Folder of its images; `folder/images` gets links to them.
        folder: A new folder.

    Raises:
        DataError: two images differ in their ending alone, which YOLO cannot tell apart.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    lines: dict[int, list[str]] = defaultdict(list)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation.get("segmentation") and not annotation.get("iscrowd"):
            size = sizes[annotation["image_id"]]
            outline = _outline(annotation["segmentation"], size)
            if outline:
                lines[annotation["image_id"]].append(f"{label_of[annotation['category_id']]} {outline}")
    written: dict[Path, str] = {}
    for image in content["images"]:
        name = image["file_name"]
        if not is_inside(name):
            continue
        path = (folder / "labels" / name).with_suffix(".txt")
        if path in written:
            raise DataError(f"{name} and {written[path]} differ in their ending alone; YOLO needs names that differ")
        written[path] = name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines[image["id"]]))
        link = folder / "images" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((images / name).absolute())
    names = "".join(f"  {label}: {json.dumps(each['name'])}\n" for label, each in enumerate(categories))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}")


def _outline(segmentation: Any, size: tuple[int, int]) -> str:
    """One outline as shares of width and height; empty for an empty mask."""
    polygons = find_polygons(decode_segmentation(segmentation, size))
    if not polygons:
        return ""
    shares = join_polygons(polygons) / [size[1], size[0]]
    return " ".join(f"{share:.6g}" for share in shares.ravel().tolist())
