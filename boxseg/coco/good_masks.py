"""Which masks of a COCO file are good enough to train another segmenter with; needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from boxseg.coco.segmentations import find_problem
from boxseg.errors import DataError
from boxseg.files.reading import is_number

FULL_BOX = 0.97
"""Share of its box from which on a mask is no more than the box."""
FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
"""COCO's own fields of an annotation."""


@dataclass(frozen=True)
class Wanted:
    """What a mask has to be."""

    min_quality: float = 0.0
    """Least quality; masks without one are drawn, and good."""
    without_doubts: bool = False
    """Whether masks with a doubt are left out, unless a person accepted them."""
    only_accepted: bool = False
    """Whether only masks that a person accepted stay."""


@dataclass(frozen=True)
class GoodMasks:
    """The images all of whose objects have a good mask."""

    content: dict[str, Any]
    """COCO instances, annotations in COCO's own fields."""
    left_out: int
    """Images that are not among them."""
    reasons: dict[str, int]
    """Why masks were not good -> how many; each counts once."""
    drawn_boxes: int
    """Masks among them that somebody drew, or another tool made, and that are no more than their box."""

    def told(self) -> list[str]:
        """Counts in words, and a warning where most masks are boxes."""
        masks, images = len(self.content["annotations"]), len(self.content["images"])
        lines = [f"{images} images, {masks} masks; left out: {self.left_out} images{self._why()}"]
        if 2 * self.drawn_boxes > masks:
            lines.append(
                f"warning: {self.drawn_boxes} of {masks} masks are no more than their box; a segmenter would learn "
                "boxes from them (`boxseg label` makes masks of boxes)"
            )
        return lines

    def require_some(self, path: Path) -> None:
        """Refuse to go on with nothing.

        Raises:
            DataError: tells why no image is left.
        """
        if not self.content["annotations"]:
            raise DataError(
                f"{path}: no image has a good mask for each of its boxes{self._why()}; make masks with `boxseg label`, "
                "accept them on its review page, or lower --min-quality"
            )

    def _why(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f" (masks: {reasons})" if reasons else ""


def find_good_masks(content: dict[str, Any], wanted: Wanted, path: Path) -> GoodMasks:
    """Keep the images all of whose objects have a good mask: others would teach that an object is background.

    A mask that `boxseg label` made and that is no more than its box is none, unless a person accepted it.

    Args:
        content: Well-formed COCO instances.
        wanted: What a mask has to be.
        path: The file, for messages.

    Raises:
        DataError: a mask cannot be decoded, a quality is no number, or nobody has accepted anything where that counts.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    objects = [each for each in content["annotations"] if not each.get("iscrowd")]
    for each in objects:
        _check(each, sizes[each["image_id"]], path)
    if wanted.only_accepted and not any("review" in each for each in objects):
        raise DataError(
            f"{path}: has no decisions of a person; --only-accepted is for labels.reviewed.json, which "
            "`boxseg label --apply` writes"
        )
    why_not = {id(each): _why_not(each, wanted, sizes[each["image_id"]]) for each in objects}
    bad_images = {each["image_id"] for each in objects if why_not[id(each)]}
    kept = [each for each in content["annotations"] if each["image_id"] not in bad_images]
    images = [image for image in content["images"] if image["id"] not in bad_images]
    return GoodMasks(
        {
            **content,
            "images": images,
            "annotations": [
                {name: each[name] for name in FIELDS if name in each} for each in kept
            ],
        },
        left_out=len(content["images"]) - len(images),
        reasons=dict(Counter(reason for reason in why_not.values() if reason)),
        drawn_boxes=sum(
            "quality" not in each and _is_its_box(each, sizes[each["image_id"]])
            for each in kept
            if not each.get("iscrowd")
        ),
    )


def _check(annotation: dict[str, Any], size: tuple[int, int], path: Path) -> None:
    if not is_number(annotation.get("quality", 1.0)):
        told = f"annotation {annotation['id']} has quality {annotation['quality']!r:.40}"
        raise DataError(
            f"{path}: {told}; a quality is a number from 0 to 1 (correct or remove it)"
        )
    problem = find_problem(annotation.get("segmentation") or [], size)
    if problem is not None:
        raise DataError(
            f"{path}: annotation {annotation['id']} {problem[0]}; {problem[1]} (draw it again or remove it)"
        )


def _why_not(annotation: dict[str, Any], wanted: Wanted, size: tuple[int, int]) -> str | None:
    """Why a mask is not good; None if it is."""
    is_accepted = annotation.get("review") == "accept"
    if annotation.get("review") == "reject":
        return "rejected"
    if not annotation.get("segmentation"):
        return "no mask"
    if not _area(annotation, size):
        return "empty"
    if annotation.get("quality", 1.0) < wanted.min_quality:
        return "quality below --min-quality"
    if wanted.only_accepted and not is_accepted:
        return "not accepted"
    if "quality" in annotation and _is_its_box(annotation, size) and not is_accepted:
        return "no more than its box"
    if wanted.without_doubts and annotation.get("doubts") and not is_accepted:
        return "doubtful"
    return None


def _is_its_box(annotation: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether a mask covers its box: as measured when it was made, or else by the area of both on the image."""
    measured: Any = (annotation.get("checks") or {}).get("fill")
    if is_number(measured):
        return bool(measured > FULL_BOX)
    x, y, width, height = map(float, annotation["bbox"])
    across = min(x + width, size[1]) - max(x, 0.0)
    down = min(y + height, size[0]) - max(y, 0.0)
    return _area(annotation, size) > FULL_BOX * max(across * down, 1.0)


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> int:
    """Of a mask [px]."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return int(coco_mask.area(segmentation))
