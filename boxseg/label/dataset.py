"""Labels a data set image by image, and writes COCO and YOLO files at the end."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.coco.checks import read_whole
from boxseg.coco.entries import Content, Entry, image_sizes, objects_of
from boxseg.coco.masks import decode_part, encode_part
from boxseg.coco.outlines import find_polygons
from boxseg.coco.segmentations import Size
from boxseg.data.dataset import CocoBoxes
from boxseg.errors import DataError
from boxseg.files.prints import take_prints
from boxseg.files.writing import write_atomic
from boxseg.formats.yolo_writer import write_yolo
from boxseg.label.boxes import BoxLabels
from boxseg.label.checks import DOUBTS, check_mask
from boxseg.label.journal import ImageLabels, Journal, Label
from boxseg.label.sources import Source
from boxseg.mask_parts import MaskPart
from boxseg.ops.box_parts import box_part
from boxseg.predict.predictor import in_batches
from boxseg.structures import Sample

logger = logging.getLogger(__name__)

LABELS, POLYGONS = "labels.coco.json", "labels.polygons.json"
"""Names of files in the output folder."""
REVIEWED = "labels.reviewed.json"
"""The labels without the masks that a person rejected."""


def label_images(
    data: CocoBoxes, source: Source, journal: Journal, *, batch_size: int = 1
) -> Iterator[ImageLabels]:
    """Label the images that the journal lacks, `batch_size` at a time; each is written to the journal, then yielded."""
    pixels = data.sizes.prod(axis=1).tolist()
    for batch in in_batches(range(len(data)), size=batch_size, pixels=pixels.__getitem__):
        left = [index for index in batch if data.image_id(index) not in journal.done]
        labels = _label_batch(data, source, left)
        journal.add(labels)
        yield from labels


def _label_batch(data: CocoBoxes, source: Source, indices: list[int]) -> list[ImageLabels]:
    items: dict[int, tuple[Sample, Sequence[int]]] = {}
    problems: dict[int, str] = {}
    names = {index: data.file_name(index) for index in indices}
    # Before reading: if a file is replaced meanwhile, the journal has the old fingerprint, and it is labelled again.
    prints = take_prints(data.source.images, list(names.values()))
    for index in indices:
        if data.annotation_ids(index):
            try:
                items[index] = data[index], data.annotation_ids(index)
            except DataError as error:
                problems[index] = str(error)
    described: dict[int, list[Label]] = {}
    if items:  # sources take one image at least
        for index, masks in zip(items, source(list(items.values())), strict=True):
            described[index] = _describe(*items[index], masks)
    return [
        ImageLabels(
            data.image_id(index),
            described.get(index, []),
            problem=problems.get(index),
            picture=prints.get(names[index], "") if index in items else "",
        )
        for index in indices
    ]


def _describe(sample: Sample, annotation_ids: Sequence[int], masks: BoxLabels) -> list[Label]:
    return [
        _label_of(
            annotation_id,
            masks.parts[row],
            sample.boxes[row],
            sample.original_size,
            quality=round(float(masks.quality[row]), 4),
            candidates=int(masks.num_candidates[row]),
        )
        for row, annotation_id in enumerate(annotation_ids)
    ]


def _label_of(
    annotation_id: int,
    part: MaskPart,
    box: Tensor,
    size: Size,
    *,
    quality: float,
    candidates: int,
) -> Label:
    """The journal's entry for a mask."""
    checks = check_mask(part, box, size)
    return {
        "id": annotation_id,
        "segmentation": encode_part(part, size),
        "quality": quality,
        "candidates": candidates,
        "checks": checks,
        "doubts": [name for name, (is_bad, _) in DOUBTS.items() if is_bad(checks[name])],
    }


def write_labels(data: CocoBoxes, journal: Journal, folder: Path) -> dict[str, Any]:
    """Write the labels of the journal to `labels.coco.json`, `labels.polygons.json` and `yolo/`, each replaced whole.

    Every annotation keeps its fields and gets `segmentation` with its `area`, `quality`, `candidates`, `checks` and
    `doubts`; a drawn mask moves to `drawn_segmentation`. Where the image cannot be used, the box becomes the mask, with
    quality 0. Crowds stay as they are.

    Returns:
        Counts of what was written, for people.
    """
    content = read_whole(data.source.annotations)
    labels = {label["id"]: label for label in _all_labels(journal)}
    sizes = image_sizes(content)
    # Without crowds, which are regions of many objects: they get no mask and keep what was drawn.
    objects = objects_of(content)
    for annotation in objects:
        label = labels.get(annotation["id"])
        if label is None:
            label = _box_label(annotation, sizes[annotation["image_id"]])
        _add_label(annotation, label)
    text = json.dumps(content)
    # If a person has reviewed these very labels, `yolo/` lacks what was rejected, and has to stay like that.
    if not _is_reviewed(folder, text):
        # The labels last: once they are there, `yolo/` is taken for theirs.
        write_yolo_beside(content, data.source.images, folder)
        write_atomic(folder / LABELS, text)
    # The same content once more, with polygons in the place of run lengths.
    for annotation in objects:
        size = sizes[annotation["image_id"]]
        polygons = find_polygons(decode_part(annotation["segmentation"], size))
        annotation["segmentation"] = [polygon.ravel().tolist() for polygon in polygons]
    write_atomic(folder / POLYGONS, json.dumps(content))
    return _summary(journal)


def _is_reviewed(folder: Path, text: str) -> bool:
    """Whether the folder has a review of these very labels; warns if it has one of other labels."""
    labels = folder / LABELS
    if not (folder / REVIEWED).exists():
        return False
    if labels.exists() and labels.read_text(encoding="utf-8") == text:
        return True
    logger.warning(
        "%s: is of earlier labels, and yolo/ has all masks again (review them again)",
        folder / REVIEWED,
    )
    return False


def write_yolo_beside(content: Content, images: Path, folder: Path) -> None:
    """Replace `folder/yolo` (see `write_yolo`) as a whole; it is left out if the names do not suit YOLO."""
    for leftover in folder.glob(".yolo-*"):  # of a kill
        shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(dir=folder, prefix=".yolo-") as scratch:
        try:
            write_yolo(content, images, Path(scratch) / "yolo")
        except DataError as error:
            logger.warning("%s is left out: %s", folder / "yolo", error)
        shutil.rmtree(folder / "yolo", ignore_errors=True)
        if (Path(scratch) / "yolo").exists():
            (Path(scratch) / "yolo").rename(folder / "yolo")


def _add_label(annotation: Entry, label: Label) -> None:
    # A mask with a quality was made here, and the decision about it was not about the new one.
    if annotation.get("segmentation") and "quality" not in annotation:
        annotation["drawn_segmentation"] = annotation["segmentation"]
    annotation.pop("review", None)
    annotation.update({key: value for key, value in label.items() if key != "id"})
    annotation["area"] = int(coco_mask.area(label["segmentation"]))  # of the mask, not of the box
    annotation.setdefault("iscrowd", 0)


def _box_label(annotation: Entry, size: Size) -> Label:
    """The box as mask, with quality 0; empty if the box has no area."""
    x, y, width, height = annotation["bbox"]
    # Boxes whose image could not be used were not checked: they may lie outside, or have sides that are not finite.
    corners = torch.tensor([[x, y, float(x) + width, float(y) + height]], dtype=torch.float64)
    box = clip_boxes_to_image(corners.nan_to_num(0, 0, 0).float(), size)[0]
    part = box_part(box, size)
    return _label_of(annotation["id"], part, box, size, quality=0.0, candidates=0)


def _all_labels(journal: Journal) -> list[Label]:
    return [label for image in journal.done.values() for label in image.labels]


def _summary(journal: Journal) -> dict[str, Any]:
    labels = _all_labels(journal)
    doubts = Counter(name for label in labels for name in label["doubts"])
    mean_quality = sum(label["quality"] for label in labels) / max(len(labels), 1)
    return {
        "images": len(journal.done),
        "boxes": len(labels),
        "unreadable": [image.problem for image in journal.done.values() if image.problem],
        "mean_quality": round(mean_quality, 4),
        "without_candidates": sum(label["candidates"] == 0 for label in labels),
        "doubts": dict(doubts),
    }
