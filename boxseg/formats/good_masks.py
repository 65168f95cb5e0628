"""Which masks of a COCO file are good enough to train another segmenter with; needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxseg.coco.entries import Content, Entry, image_sizes, objects_of
from boxseg.coco.masks import mask_area
from boxseg.coco.odd_entries import corners, fit_problem, place_problem
from boxseg.coco.segmentations import MaskSummary, Size
from boxseg.errors import DataError, naming
from boxseg.files.reading import is_number

FULL_BOX = 0.97
"""A mask that fills a larger share of its box is no more than the box."""
FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
"""COCO's own fields of an annotation; others are left out."""


@dataclass(frozen=True)
class Wanted:
    """What a mask has to be."""

    min_quality: float = 0.0
    """Least quality; a mask without a quality was drawn by a person, and passes."""
    without_doubts: bool = False
    """Leave out masks with a doubt, except those that a person accepted."""
    only_accepted: bool = False
    """Leave out masks that no person accepted."""


@dataclass(frozen=True)
class GoodMasks:
    """The images whose objects all have a good mask."""

    content: Content
    """COCO instances, annotations in COCO's own fields."""
    left_out: int
    """Number of other images."""
    reasons: dict[str, int]
    """Why masks were not good -> how many; each is counted once."""
    drawn_boxes: int
    """Masks that somebody drew, or another tool made, and that are no more than their box."""
    drawn_misfits: int
    """Such masks that are far larger or smaller than their box."""

    def summary(self) -> list[str]:
        """Counts in words, with a warning if most masks are boxes."""
        images = len(self.content["images"])
        masks = len(self.content["annotations"])
        lines = [f"{images} images, {masks} masks; left out: {self.left_out} images{self._why()}"]
        if 2 * self.drawn_boxes > masks:
            lines.append(
                f"warning: {self.drawn_boxes} of {masks} masks are no more than their box; "
                "a segmenter would learn boxes from them (`boxseg label` makes masks of boxes)"
            )
        if self.drawn_misfits:
            lines.append(
                f"warning: {self.drawn_misfits} of {masks} masks are far larger or smaller than "
                "their box (`boxseg data check --for val` names them)"
            )
        return lines

    def require_some(self, path: Path) -> None:
        """Refuse to go on without images.

        Raises:
            DataError: no image is left; says why.
        """
        if not self.content["annotations"]:
            raise DataError(
                f"{path}: no image has a good mask for each of its boxes{self._why()}; make masks "
                "with `boxseg label`, accept them on its review page, or lower --min-quality"
            )

    def _why(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f" (masks: {reasons})" if reasons else ""


@dataclass(frozen=True)
class _Object:
    """An annotation that is not a crowd."""

    annotation: Entry
    area: int
    """Pixels inside its mask."""
    is_its_box: bool
    """Whether the mask is no more than the box."""
    is_away: bool
    """Whether the mask has no pixel in its box or in its image."""
    is_misfit: bool
    """Whether the mask is far larger or smaller than the box."""

    @classmethod
    def of(cls, annotation: Entry, size: Size, path: Path) -> _Object:
        """The object of an annotation in an image of (height, width).

        Raises:
            DataError: the mask cannot be decoded, or the quality is no number; names file and annotation.
        """
        place = f"{path}: annotation {annotation['id']}"
        quality = annotation.get("quality", 1.0)
        if not is_number(quality):
            raise DataError(
                f"{place} has quality {quality!r:.40}; a quality is a number from 0 to 1 "
                "(correct or remove it)"
            )
        segmentation = annotation.get("segmentation")
        if not segmentation:
            return cls(annotation, 0, is_its_box=False, is_away=False, is_misfit=False)
        with naming(place):
            area = mask_area(segmentation, size)
        mask = MaskSummary.of(segmentation)
        return cls(
            annotation,
            area,
            _is_its_box(annotation, area, size),
            is_away=place_problem(mask, annotation, size) is not None,
            is_misfit=fit_problem(mask, annotation, size) is not None,
        )

    def why_not(self, wanted: Wanted) -> str | None:
        """Why the mask is not good; None if it is."""
        annotation = self.annotation
        is_accepted = annotation.get("review") == "accept"
        if annotation.get("review") == "reject":
            return "rejected"
        if not annotation.get("segmentation"):
            return "no mask"
        if not self.area:
            return "empty"
        if self.is_away and not is_accepted:
            return "away from its box"
        if annotation.get("quality", 1.0) < wanted.min_quality:
            return "quality below --min-quality"
        if wanted.only_accepted and not is_accepted:
            return "not accepted"
        # A person may well draw a box: some objects are rectangles.
        if "quality" in annotation and self.is_its_box and not is_accepted:
            return "no more than its box"
        if wanted.without_doubts and annotation.get("doubts") and not is_accepted:
            return "doubtful"
        return None


def _is_its_box(annotation: Entry, area: int, size: Size) -> bool:
    """Whether a mask fills its box: as measured when it was made, or else by the areas of both in the image."""
    checks = annotation.get("checks")
    measured: Any = checks.get("fill") if isinstance(checks, dict) else None
    if is_number(measured):
        return bool(measured > FULL_BOX)
    x1, y1, x2, y2 = corners(annotation["bbox"])
    height, width = size
    across = min(x2, width) - max(x1, 0.0)
    down = min(y2, height) - max(y1, 0.0)
    return area > FULL_BOX * max(across * down, 1.0)


def find_good_masks(content: Content, wanted: Wanted, path: Path) -> GoodMasks:
    """Keep the images whose objects all have a good mask: others would teach that an object is background.

    A mask that `boxseg label` made and that is no more than its box is not good, unless a person accepted it.

    Args:
        content: Well-formed COCO instances.
        wanted: What a mask has to be.
        path: The file, for messages.

    Raises:
        DataError: a mask cannot be decoded, a quality is no number, or nothing is accepted although only accepted masks
            count.
    """
    sizes = image_sizes(content)
    objects = [
        _Object.of(annotation, sizes[annotation["image_id"]], path)
        for annotation in objects_of(content)
    ]
    if wanted.only_accepted and not any("review" in item.annotation for item in objects):
        raise DataError(
            f"{path}: has no decisions of a person; --only-accepted is for labels.reviewed.json, "
            "which `boxseg label --apply` writes"
        )
    reasons: Counter[str] = Counter()
    bad_images = set()
    for item in objects:
        if reason := item.why_not(wanted):
            reasons[reason] += 1
            bad_images.add(item.annotation["image_id"])
    images = [image for image in content["images"] if image["id"] not in bad_images]
    annotations = [
        {name: annotation[name] for name in FIELDS if name in annotation}
        for annotation in content["annotations"]
        if annotation["image_id"] not in bad_images
    ]
    drawn_boxes = drawn_misfits = 0
    for item in objects:
        is_good = item.annotation["image_id"] not in bad_images
        if is_good and "quality" not in item.annotation:
            drawn_boxes += item.is_its_box
            drawn_misfits += item.is_misfit
    return GoodMasks(
        content | {"images": images, "annotations": annotations},
        left_out=len(content["images"]) - len(images),
        reasons=dict(reasons),
        drawn_boxes=drawn_boxes,
        drawn_misfits=drawn_misfits,
    )
