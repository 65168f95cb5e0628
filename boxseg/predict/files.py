"""Detections of many image files and video frames as COCO instances and as pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from boxseg.drawing import label
from boxseg.errors import DataError
from boxseg.evaluation.ap import encode_detections
from boxseg.evaluation.panels import COLOURS, OPACITY
from boxseg.files.reading import plain_file
from boxseg.files.writing import write_atomic
from boxseg.mask_parts import MaskPart
from boxseg.predict.predictor import Predictor, as_image, in_batches
from boxseg.structures import Detections

STEM_BYTES = 200
"""Of the name of an image, in that of its picture."""
FRAME_COUNT = 7
"""OpenCV's number for CAP_PROP_FRAME_COUNT."""
SHARED = len(COLOURS) + 1
"""Stands for pixels that several masks claim, where each colour has its number from 1."""
FAST = 1
"""Compression of PNG that takes a quarter of the time of the usual one, for files a fifth larger."""
VIDEO_ENDINGS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True)
class Picture:
    """An image file, or a frame of a video."""

    file: Path
    pixels: Tensor | DataError
    """uint8 (3, h, w), or why it cannot be read."""
    frame: int | None = None
    """Number of the frame, from 0."""


def read_pictures(paths: Sequence[Path], *, every: int = 1) -> Iterator[Picture]:
    """The image of each file, or of a video every `every`-th frame; one at a time."""
    for path in paths:
        try:
            if path.suffix.lower() in VIDEO_ENDINGS:
                yield from _read_frames(path, every)
            else:
                yield Picture(path, as_image(path))
        except DataError as error:
            yield Picture(path, error)


def count_pictures(paths: Sequence[Path], *, every: int = 1) -> int:
    """How many pictures these files should have; videos tell it roughly."""
    videos = [path for path in paths if path.suffix.lower() in VIDEO_ENDINGS]
    frames = 0
    for path in videos:
        try:
            capture = _open_video(path)
        except DataError:  # told where its frames are read
            frames += 1
            continue
        total = int(capture.get(FRAME_COUNT))  # 0 or less where the format does not tell
        frames += max(-(-total // every), 1)
        capture.release()
    return len(paths) - len(videos) + frames


def _read_frames(path: Path, every: int) -> Iterator[Picture]:
    capture, number = _open_video(path), 0
    while capture.grab():  # without decoding, as most frames are passed over
        if number % every == 0:
            is_whole, frame = capture.retrieve()
            if is_whole:
                rgb = frame[..., ::-1].copy()  # OpenCV has blue first
                yield Picture(path, torch.from_numpy(rgb).permute(2, 0, 1), number)
        number += 1
    capture.release()
    if number == 0:
        raise DataError(
            f"{path}: no frame can be read as a video (convert it, or name its frames as images)"
        )


def _open_video(path: Path) -> Any:
    import cv2  # takes a while to load

    plain_file(path, "videos are files")
    return cv2.VideoCapture(str(path))


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
        `image` and `annotations` in COCO's terms with ids from 1 (see `join_coco`), or a DataError. Images of a video
        have its `file_name` and `frame`.
    """
    annotation_id, image_id = 1, 0
    for batch in in_batches(pictures, size=predictor.batch_size, pixels=_num_pixels):
        images = [picture.pixels for picture in batch if isinstance(picture.pixels, Tensor)]
        detections = iter(predictor(images))
        for picture in batch:
            image_id += 1  # unreadable files take a number too, so that overlays keep the order of the files
            if isinstance(picture.pixels, DataError):
                yield picture.pixels
                continue
            certain = next(detections).from_score(min_score)
            if overlays is not None:
                names = [predictor.class_names[label] for label in certain.labels.tolist()]
                path = overlays / _overlay_name(picture, image_id)
                draw_overlay(picture.pixels, certain, names, path)
            annotations = coco_annotations(
                certain, predictor.category_ids, image_id=image_id, first_id=annotation_id
            )
            annotation_id += len(annotations)
            height, width = certain.size
            image = {"id": image_id, "file_name": str(picture.file)}
            image |= {"width": width, "height": height}
            if picture.frame is not None:
                image["frame"] = picture.frame
            yield {"image": image, "annotations": annotations}


def _num_pixels(picture: Picture) -> int:
    return picture.pixels[0].numel() if isinstance(picture.pixels, Tensor) else 0


def _overlay_name(picture: Picture, image_id: int) -> str:
    # Cut in bytes: file systems limit those of a name, and one letter may take four.
    stem = os.fsdecode(os.fsencode(picture.file.stem)[:STEM_BYTES])
    frame = "" if picture.frame is None else f"-{picture.frame:06d}"
    return f"{image_id:06d}-{stem}{frame}.png"


def join_coco(predictor: Predictor, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `predict_files` gave for all images as one COCO instance file; annotations have a `score`."""
    classes = zip(predictor.category_ids, predictor.class_names, strict=True)
    return {
        "images": [part["image"] for part in parts],
        "annotations": [annotation for part in parts for annotation in part["annotations"]],
        "categories": [{"id": category_id, "name": name} for category_id, name in classes],
    }


def coco_annotations(
    found: Detections, category_ids: Sequence[int], *, image_id: int, first_id: int
) -> list[dict[str, Any]]:
    """Detections of one image as COCO annotations with a `score`; masks as compressed run lengths."""
    result = encode_detections(found)
    annotations = []
    for row, rle in enumerate(result.rles):
        annotations.append(
            {
                "id": first_id + row,
                "image_id": image_id,
                "category_id": category_ids[int(result.labels[row])],
                "bbox": [round(side, 2) for side in result.boxes_xywh[row].tolist()],
                "area": found.parts[row].area,
                "iscrowd": 0,
                "score": round(float(result.scores[row]), 4),
                "segmentation": rle,
            }
        )
    return annotations


def draw_overlay(image: Tensor, found: Detections, names: Sequence[str], path: Path) -> None:
    """Write the image (uint8 (3, h, w)) with masks, boxes, class names and scores as a picture."""
    picture = image
    if len(names):
        colours = [COLOURS[index % len(COLOURS)] for index in range(len(names))]
        told = [
            f"{label(name)} {score:.2f}"
            for name, score in zip(names, found.scores.tolist(), strict=True)
        ]
        picture = _tint(image, found.parts)
        picture = draw_bounding_boxes(picture, found.boxes.cpu(), labels=told, colors=colours)
    drawn = io.BytesIO()  # whole, then written at once: a kill leaves no half picture
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(
        drawn, format="png", compress_level=FAST
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, drawn.getvalue(), durable=False)


def _tint(image: Tensor, parts: Sequence[MaskPart]) -> Tensor:
    """A copy of an image with masks in colour, those pixels dark that more than one mask claims."""
    # of each pixel: 0 nobody, else row of the table
    owner = np.zeros(image.shape[1:], dtype=np.uint8)
    for number, part in enumerate(parts):
        window = owner[part.place]
        is_taken = window[part.pixels] > 0
        window[part.pixels] = np.where(is_taken, SHARED, 1 + number % len(COLOURS))
    # What each value of a channel becomes under each colour: far fewer cases than a photograph has pixels.
    values = np.arange(256, dtype=np.float32)[:, None]
    shown = np.array([*COLOURS, (0, 0, 0)], dtype=np.float32)[:, None]
    mixed = values * (1 - OPACITY) + shown * OPACITY  # (colours, 256, 3)
    unchanged = np.broadcast_to(values, (1, 256, 3))
    table = np.concatenate([unchanged, mixed]).astype(np.uint8)
    tinted = np.empty(image.shape, dtype=np.uint8)
    for channel, pixels in enumerate(image.numpy()):
        tinted[channel] = table[:, :, channel][owner, pixels]
    return torch.from_numpy(tinted)
