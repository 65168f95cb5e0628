"""Detections of many image files as COCO instances and as pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from boxseg.drawing import label
from boxseg.errors import DataError
from boxseg.evaluation.ap import encode_detections
from boxseg.evaluation.panels import COLOURS, OPACITY
from boxseg.files.reading import UnreadableError, read_picture
from boxseg.files.writing import write_picture
from boxseg.mask_parts import MaskPart
from boxseg.predict.predictor import Predictor, as_image, in_batches
from boxseg.structures import Detections

STEM_BYTES = 200
"""Bytes of an image's name that its picture's name keeps."""
DRAWN_BY = "boxseg predict"
"""Mark in our pictures, by which a later call knows them."""
FAST = 1
"""Compression of PNG that takes a quarter of the time of the usual one, for files a fifth larger."""


@dataclass(frozen=True)
class Picture:
    """An image file."""

    file: Path
    pixels: Tensor | DataError
    """uint8 (3, h, w), or why it cannot be read."""


def read_pictures(paths: Sequence[Path]) -> Iterator[Picture]:
    """The image of each file, one at a time."""
    for path in paths:
        try:
            yield Picture(path, as_image(path))
        except DataError as error:
            yield Picture(path, error)


def predict_files(
    predictor: Predictor,
    pictures: Iterator[Picture],
    *,
    min_score: float,
    overlays: Path | None = None,
) -> Iterator[dict[str, Any] | DataError]:
    """Detections of each picture in turn, or the error that a damaged file gave.

    Args:
        predictor: A trained network.
        pictures: See `read_pictures`.
        min_score: Detections below this score are left out.
        overlays: Folder for a picture of each image with its detections; None: none are drawn.

    Yields:
        `image` and `annotations` in COCO's terms with ids from 1 (see `join_coco`), or a DataError.
    """
    annotation_id, image_id = 1, 0
    for batch in in_batches(pictures, size=predictor.batch_size, pixels=_num_pixels):
        images = [picture.pixels for picture in batch if isinstance(picture.pixels, Tensor)]
        detections = iter(predictor(images))
        for picture in batch:
            image_id += 1  # for unreadable files too, so that overlays are numbered like the files
            if isinstance(picture.pixels, DataError):
                yield picture.pixels
                continue
            certain = next(detections).from_score(min_score)
            if overlays is not None:
                names = [predictor.class_names[label] for label in certain.labels.tolist()]
                path = overlays / overlay_name(picture.file, image_id)
                draw_overlay(picture.pixels, certain, names, path)
            annotations = coco_annotations(
                certain, predictor.category_ids, image_id=image_id, first_id=annotation_id
            )
            annotation_id += len(annotations)
            height, width = certain.size
            image = {"id": image_id, "file_name": str(picture.file)}
            image |= {"width": width, "height": height}
            yield {"image": image, "annotations": annotations}


def _num_pixels(picture: Picture) -> int:
    return picture.pixels[0].numel() if isinstance(picture.pixels, Tensor) else 0


def overlay_name(file: Path, image_id: int) -> str:
    """Name of the picture of an image file's detections."""
    # Cut in bytes: file systems limit those of a name, and one letter may take four.
    stem = os.fsdecode(os.fsencode(file.stem)[:STEM_BYTES])
    return f"{image_id:06d}-{stem}.png"


def remove_earlier(overlays: Path, kept: Collection[str]) -> None:
    """Remove the pictures of earlier calls from their folder, except those of these names; other files stay."""
    for path in overlays.glob("*.png"):
        with contextlib.suppress(UnreadableError):
            is_ours = read_picture(path, lambda picture: picture.info.get("Software") == DRAWN_BY)
            if is_ours and path.name not in kept:
                path.unlink(missing_ok=True)  # another call may clear the folder too


def join_coco(predictor: Predictor, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One COCO instance file of what `predict_files` gave for all images; annotations have a `score`."""
    classes = zip(predictor.category_ids, predictor.class_names, strict=True)
    return {
        "images": [part["image"] for part in parts],
        "annotations": [annotation for part in parts for annotation in part["annotations"]],
        "categories": [{"id": category_id, "name": name} for category_id, name in classes],
    }


def coco_annotations(
    detections: Detections, category_ids: Sequence[int], *, image_id: int, first_id: int
) -> list[dict[str, Any]]:
    """Detections of one image as COCO annotations with a `score`; masks as compressed run lengths."""
    result = encode_detections(detections)
    return [
        {
            "id": first_id + row,
            "image_id": image_id,
            "category_id": category_ids[int(result.labels[row])],
            # not rounded, so that `eval` gives what it gives for the run
            "bbox": result.boxes_xywh[row].tolist(),
            "area": detections.parts[row].area,
            "iscrowd": 0,
            "score": float(result.scores[row]),
            "segmentation": rle,
        }
        for row, rle in enumerate(result.rles)
    ]


def draw_overlay(image: Tensor, detections: Detections, names: Sequence[str], path: Path) -> None:
    """Write the image (uint8 (3, h, w)) with masks, boxes, class names and scores as a picture."""
    picture = image
    if len(names):
        colours = [COLOURS[index % len(COLOURS)] for index in range(len(names))]
        captions = [
            f"{label(name)} {score:.2f}"
            for name, score in zip(names, detections.scores.tolist(), strict=True)
        ]
        picture = _tint(image, detections.parts)
        picture = draw_bounding_boxes(
            picture, detections.boxes.cpu(), labels=captions, colors=colours
        )
    about = PngInfo()
    about.add_text("Software", DRAWN_BY)
    drawn = Image.fromarray(picture.permute(1, 2, 0).numpy())
    write_picture(path, partial(drawn.save, compress_level=FAST, pnginfo=about), durable=False)


def _tint(image: Tensor, parts: Sequence[MaskPart]) -> Tensor:
    """A copy of an image with masks in colour; where several lie on one another, all their colours show."""
    tinted = image.numpy().copy()
    levels = np.arange(256, dtype=np.float32)
    for number, part in enumerate(parts):
        colour = COLOURS[number % len(COLOURS)]
        for channel, value in zip(tinted, colour, strict=True):
            window = channel[part.place]  # a view: what is written there is in the copy
            # What each level becomes, as a mask can be as large as the image.
            mixed = ((1 - OPACITY) * levels + OPACITY * value).astype(np.uint8)
            np.copyto(window, mixed[window], where=part.pixels)
    return torch.from_numpy(tinted)
