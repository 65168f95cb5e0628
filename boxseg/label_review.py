"""A static page to look through labels, doubtful ones first, and the decisions that come back from it."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.data.checks import read_well_formed, read_whole
from boxseg.data.coco import read_image
from boxseg.data.file_names import is_inside
from boxseg.data.masks import decode_segmentation
from boxseg.data.reading import read_json
from boxseg.engine.panels import crop_around, scale_picture, tint_masks
from boxseg.errors import DataError
from boxseg.files import write_atomic
from boxseg.label_data import LABELS, write_yolo_beside

TILE = 200
"""Longest side of a shown crop [px]."""
PAGE, CROPS, REVIEWED = "index.html", "crops", "labels.reviewed.json"
DATA_MARK = "/*DATA*/"
DECISIONS = ("accept", "reject")


def write_review(labels: Path, images: Path) -> Iterator[Path]:
    """Write `review/index.html`, which needs no server, and a crop for each mask.

    Args:
        labels: Folder with `labels.coco.json`.
        images: Folder of the images.

    Yields:
        Each image file that is done; the page is there when all are.
    """
    content = read_whole(labels / LABELS)
    names = {category["id"]: category["name"] for category in content["categories"]}
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation.get("quality") is not None and annotation["checks"]["fill"] > 0:
            of_image[annotation["image_id"]].append(annotation)
    folder = labels / "review"
    (folder / CROPS).mkdir(parents=True, exist_ok=True)
    cards = []
    for image in content["images"]:
        path = images / image["file_name"]
        shown = of_image[image["id"]] if is_inside(image["file_name"]) else []
        try:
            picture = read_image(path).permute(1, 2, 0).numpy() if shown else None
        except DataError:
            shown = []  # named when the image was labelled
        for annotation in shown:
            assert picture is not None
            mask = decode_segmentation(annotation["segmentation"], (picture.shape[0], picture.shape[1]))
            crop = io.BytesIO()
            _draw_crop(picture, mask, annotation["bbox"]).save(crop, format="jpeg", quality=80)
            write_atomic(folder / CROPS / f"{annotation['id']}.jpg", crop.getvalue(), durable=False)
            about = {key: annotation[key] for key in ("id", "quality", "doubts", "checks", "candidates")}
            cards.append(about | {"file": image["file_name"], "name": names[annotation["category_id"]]})
        yield path
    cards.sort(key=lambda card: (card["quality"], card["id"]))
    template = resources.files("boxseg").joinpath("label_review.html").read_text(encoding="utf-8")
    # Decisions about other labels are not taken over.
    stamp = hashlib.sha256((labels / LABELS).read_bytes()).hexdigest()[:16]
    data = json.dumps({"stamp": stamp, "cards": cards}).replace("<", "\\u003c")  # no text may end the script
    write_atomic(folder / PAGE, template.replace(DATA_MARK, data))


def apply_decisions(labels: Path, decisions: Path, images: Path) -> dict[str, int]:
    """Write `labels.reviewed.json` and `yolo/` again: rejected annotations keep their box but lose their mask.

    Args:
        labels: Folder with `labels.coco.json`.
        decisions: JSON that the page gave: annotation id -> accept or reject.
        images: Folder of the images.

    Returns:
        How many were accepted, rejected, and left open.

    Raises:
        DataError: there are no labels, or the file holds something else, or ids that the labels have not.
    """
    content = read_well_formed(labels / LABELS)
    decided = _read_decisions(decisions, {each["id"] for each in content["annotations"] if "quality" in each})
    for annotation in content["annotations"]:
        decision = decided.get(annotation["id"])
        if decision is not None:
            annotation["review"] = decision
        if decision == "reject":
            annotation.pop("segmentation", None)
    write_atomic(labels / REVIEWED, json.dumps(content))
    write_yolo_beside(content, images, labels)
    counts = {decision: sum(each == decision for each in decided.values()) for decision in DECISIONS}
    return counts | {"open": sum(each.get("quality") is not None for each in content["annotations"]) - len(decided)}


def _read_decisions(path: Path, known: set[int]) -> dict[int, str]:
    rule = "decisions are one object, annotation id -> accept or reject, as the review page downloads it"
    try:
        decided = {int(key): value for key, value in read_json(path, rule).items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {rule}") from error
    for annotation_id, decision in decided.items():
        if annotation_id not in known or decision not in DECISIONS:
            raise DataError(f"{path}: annotation {annotation_id} has {decision!r:.40} or is none of the labels; {rule}")
    return decided


def _draw_crop(picture: NDArray[np.uint8], mask: NDArray[np.bool_], bbox: list[float]) -> Image.Image:
    x, y, width, height = bbox
    part, shape = crop_around(picture, mask, (x, y, x + width, y + height))
    plain = scale_picture(Image.fromarray(part), TILE / max(shape.shape))
    both = Image.new("RGB", (2 * plain.width, plain.height))
    both.paste(plain, (0, 0))
    both.paste(tint_masks(plain, [shape]), (plain.width, 0))
    return both
