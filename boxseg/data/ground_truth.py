"""The annotation file as pycocotools wants it, to evaluate with."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO

from boxseg.coco.checks import read_well_formed
from boxseg.coco.entries import image_sizes
from boxseg.coco.masks import object_area
from boxseg.config.method import CocoSource
from boxseg.errors import naming
from boxseg.files.reading import is_number


def coco_ground_truth(source: CocoSource) -> COCO:
    """The annotation file for pycocotools, with `area` and `iscrowd` filled in where they are missing, or no area.

    Raises:
        DataError: the annotation file is missing or not a COCO instance file, or a segmentation cannot be decoded.
    """
    ground_truth = COCO()
    # A crowd's image may not be listed: nobody looks at it then.
    content = read_well_formed(source.annotations, unlisted=True)
    content.setdefault("info", {})  # pycocotools copies it
    sizes = image_sizes(content)
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))
        with naming(f"{source.annotations}: annotation {annotation['id']}"):
            area = object_area(annotation, sizes.get(annotation["image_id"]))
        listed: Any = annotation.get("area")
        if not is_number(listed) or listed <= 0:  # pycocotools ignores an object of negative area
            annotation["area"] = area
        annotation["id"] = number  # from 1, as pycocotools takes the id 0 for "no match"
    ground_truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ground_truth.createIndex()
    return ground_truth
