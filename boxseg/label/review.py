"""A static page to look through labels, doubtful ones first, and how the decisions made there are applied."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.checks import read_well_formed, read_whole
from boxseg.coco.entries import Content, Entry
from boxseg.coco.masks import decode_part, object_area
from boxseg.coco.segmentations import Size
from boxseg.config.method import CocoSource
from boxseg.data.images import read_image
from boxseg.errors import DataError
from boxseg.files.images import require_some_image
from boxseg.files.names import is_inside
from boxseg.files.reading import read_json
from boxseg.files.writing import write_atomic
from boxseg.label.dataset import LABELS, REVIEWED, write_yolo_beside
from boxseg.label.review_pictures import find_outlines, find_whole, write_crop

logger = logging.getLogger(__name__)

PAGE, CROPS, WHOLE = "index.html", "crops", "images"
DATA_MARK = "/*DATA*/"
DECISIONS = ("accept", "reject")


def write_review(labels: Path, images: Path) -> Iterator[Path]:
    """Write `review/index.html`, which needs no server, and a crop for each mask.

    Args:
        labels: Folder with `labels.coco.json`.
        images: Folder of the images.

    Yields:
        Each image file once its crops are written; the page is written after the last one.
    """
    content = read_whole(labels / LABELS)
    names = {category["id"]: category["name"] for category in content["categories"]}
    shown = _shown_by_image(content)
    folder = labels / "review"
    (folder / CROPS).mkdir(parents=True, exist_ok=True)
    cards: list[dict[str, Any]] = []
    wholes: dict[str, dict[str, Any]] = {}
    for image in content["images"]:
        name = image["file_name"]
        # A name that leads out of the folder could show any file of this machine.
        annotations = shown[image["id"]] if is_inside(name) else []
        size = (image["height"], image["width"])
        picture = _read_shown(images / name, size) if annotations else None
        if picture is not None:
            url = find_whole(images / name, picture, folder, f"{WHOLE}/{image['id']}.jpg")
            wholes[name] = {"url": url, "size": [picture.shape[1], picture.shape[0]]}
            for annotation in annotations:
                about_class = {"file": name, "name": names[annotation["category_id"]]}
                cards.append(_card(annotation, picture, folder) | about_class)
        yield images / name
    cards.sort(key=lambda card: (card["quality"], card["id"]))  # doubtful ones first
    for card in cards:
        card["id"] = str(card["id"])  # JavaScript rounds whole numbers above 2**53
    template = resources.files("boxseg.label").joinpath("review.html").read_text(encoding="utf-8")
    about = {"stamp": stamp_of(labels), "cards": cards, "images": wholes}
    # Without "<", no name of a class or file can end the script element that the data are in.
    data = json.dumps(about, separators=(",", ":")).replace("<", "\\u003c")
    write_atomic(folder / PAGE, template.replace(DATA_MARK, data))


def _shown_by_image(content: Content) -> dict[int, list[Entry]]:
    """Id of each image -> its annotations with a mask that was made."""
    shown: dict[int, list[Entry]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation.get("quality") is not None and annotation["checks"]["fill"] > 0:
            shown[annotation["image_id"]].append(annotation)
    return shown


def _read_shown(path: Path, size: Size) -> NDArray[np.uint8] | None:
    """Pixels (h, w, 3); None if the image cannot be used, which was reported when it was labelled."""
    try:
        picture: NDArray[np.uint8] = read_image(path).permute(1, 2, 0).numpy()
    except DataError:
        return None
    return picture if picture.shape[:2] == size else None


def _card(annotation: Entry, picture: NDArray[np.uint8], folder: Path) -> dict[str, Any]:
    """What the page shows of a mask; its crop is written."""
    size = (picture.shape[0], picture.shape[1])
    crop = write_crop(picture, annotation["bbox"], folder / CROPS / f"{annotation['id']}.jpg")
    outline = find_outlines(decode_part(annotation["segmentation"], size))
    about = {key: annotation[key] for key in ("id", "quality", "doubts", "checks", "candidates")}
    return about | {"crop": crop, "outline": outline}


def stamp_of(labels: Path) -> str:
    """Identifies the labels of a folder, so that decisions about other labels are refused."""
    return hashlib.sha256((labels / LABELS).read_bytes()).hexdigest()[:16]


def apply_decisions(labels: Path, decisions: Path, images: Path) -> dict[str, int]:
    """Write `labels.reviewed.json`, and `yolo/` again: rejected annotations keep their box but lose their mask.

    Args:
        labels: Folder with `labels.coco.json`.
        decisions: JSON file downloaded from the page: annotation id -> accept or reject, with the stamp of the labels.
        images: Folder of the images.

    Returns:
        How many were accepted, rejected, and left open.

    Raises:
        ConfigError: none of the images is in the folder.
        DataError: there are no labels, or the file holds something else, or is about other labels.
    """
    content = read_well_formed(labels / LABELS)
    require_some_image(CocoSource(images=images, annotations=labels / LABELS), content["images"])
    known = {entry["id"] for entry in content["annotations"] if "quality" in entry}
    decided = _read_decisions(decisions, known, stamp_of(labels))
    for annotation in content["annotations"]:
        decision = decided.get(annotation["id"])
        if decision is not None:
            annotation["review"] = decision
        if decision == "reject":  # the box stays, so that another mask can be made for it
            annotation.pop("segmentation", None)
            annotation["area"] = object_area(annotation, None)
    _warn_of_lost(labels / REVIEWED, decided)
    # The reviewed labels last: once they are there, `boxseg label` takes `yolo/` for reviewed.
    write_yolo_beside(content, images, labels)
    write_atomic(labels / REVIEWED, json.dumps(content))
    with_mask = sum(entry.get("quality") is not None for entry in content["annotations"])
    decisions_made = list(decided.values())
    counts = {decision: decisions_made.count(decision) for decision in DECISIONS}
    return counts | {"open": with_mask - len(decided)}


def _warn_of_lost(reviewed: Path, decided: dict[int, str]) -> None:
    """Warn if decisions that were applied earlier are replaced: those of another person, or of another browser."""
    if not reviewed.exists():
        return
    entries = read_whole(reviewed)["annotations"]
    lost = [entry["id"] for entry in entries if "review" in entry and entry["id"] not in decided]
    if lost:
        logger.warning(
            "%s: had %d decisions that are not among the new ones, such as that on annotation %d; they are gone, as a "
            "review holds the decisions of one file (join the files, and apply the joined one)",
            reviewed,
            len(lost),
            lost[0],
        )


def _read_decisions(path: Path, known: set[int], stamp: str) -> dict[int, str]:
    rule = (
        "decisions are as the review page downloads them: "
        '{"labels": the stamp of the labels, "decisions": {annotation id: accept or reject}}'
    )
    try:
        content = read_json(path, rule)
        _require_stamp(content.get("labels"), stamp, path)
        decided = {int(key): value for key, value in content["decisions"].items()}
    except (ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {rule}") from error
    for annotation_id, decision in decided.items():
        if annotation_id not in known or decision not in DECISIONS:
            raise DataError(
                f"{path}: annotation {annotation_id} has {decision!r:.40} or is not among the labels; {rule}"
            )
    return decided


def _require_stamp(stamp: Any, expected: str, path: Path) -> None:
    """Refuse decisions about other labels: ids alone do not tell, as other labels have the same ones."""
    if stamp is None:
        raise DataError(
            f"{path}: does not say which labels it is about; the stamp of these is {expected!r} "
            f'(if it is about them, write {{"labels": "{expected}", "decisions": …}})'
        )
    if stamp != expected:
        value = f"holds decisions about other labels, with the stamp {stamp!r:.40} and not {expected!r}"
        raise DataError(
            f"{path}: {value} (name the --output that they were made for, or review again)"
        )
