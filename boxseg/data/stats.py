"""How many images, boxes and classes a data set has, and how large its boxes are."""

from __future__ import annotations

from collections import Counter
from typing import Any

from boxseg.coco.classes import distinct_names
from boxseg.coco.entries import objects_of

SMALL_PX, LARGE_PX = 32, 96
"""COCO's limits: boxes of less than 32² px are small, of 96² px or more large."""


def count_content(content: dict[str, Any]) -> dict[str, Any]:
    """Counts of a well-formed annotation file; crowd regions are counted apart from boxes."""
    boxes = objects_of(content)
    areas = []
    for box in boxes:
        width, height = box["bbox"][2:]
        areas.append(float(width) * float(height))
    with_boxes = len({box["image_id"] for box in boxes})
    per_class = Counter(box["category_id"] for box in boxes)
    categories = [(category["id"], category["name"]) for category in content["categories"]]
    classes = {}
    for (number, _), name in zip(categories, distinct_names(categories), strict=True):
        classes[name] = per_class.get(number, 0)
    # The names are those of the JSON that `boxseg data stats` prints.
    return {
        "images": len(content["images"]),
        "images_with_boxes": with_boxes,
        "boxes": len(boxes),
        "crowd_regions": len(content["annotations"]) - len(boxes),
        "boxes_per_image": round(len(boxes) / with_boxes, 2) if with_boxes else 0.0,
        "small_boxes": sum(area < SMALL_PX**2 for area in areas),
        "medium_boxes": sum(SMALL_PX**2 <= area < LARGE_PX**2 for area in areas),
        "large_boxes": sum(area >= LARGE_PX**2 for area in areas),
        "classes": classes,
    }
