"""Detections of many image files as COCO instances and as pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from boxseg.data.yolo import image_files
from boxseg.engine.evaluate import encode_detections
from boxseg.engine.panels import COLOURS, OPACITY
from boxseg.errors import ConfigError, DataError
from boxseg.predict import Predictor, read_image
from boxseg.structures import Detections


def find_image_files(sources: Sequence[str]) -> list[Path]:
    """Image files that files, folders (with all below) and glob patterns name, each once, in order.

    Raises:
        ConfigError: a source names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = image_files(path)
        else:
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  patterns may be absolute
            files = [path] if path.exists() else [Path(each) for each in matches]
        if not files:
            raise ConfigError(
                f"{source}: no images there; name image files, folders or patterns such as 'photos/*.jpg'"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def predict_files(
    predictor: Predictor, paths: Sequence[Path], *, min_score: float, overlays: Path | None = None
) -> Iterator[tuple[Path, dict[str, Any] | DataError]]:
    """Detections of each file in turn, or the error that a damaged file gave.

    Args:
        predictor: A trained network.
        paths: Image files.
        min_score: Detections below this score are left out.
        overlays: Folder for a picture of each image with its detections; None: none are drawn.

    Yields:
        The file, and `image` and `annotations` in COCO's terms with ids from 1 (see `join_coco`), or a DataError.
    """
    annotation_id = 1
    for number, path in enumerate(paths, start=1):
        try:
            image = read_image(path)
        except DataError as error:
            yield path, error
            continue
        found = at_least(predictor([image])[0], min_score)
        if overlays is not None:
            names = [predictor.class_names[label] for label in found.labels.tolist()]
            draw_overlay(image, found, names, overlays / f"{number:06d}-{path.stem}.png")
        annotations = coco_annotations(found, predictor.category_ids, image_id=number, first_id=annotation_id)
        annotation_id += len(annotations)
        entry = {"id": number, "file_name": str(path), "width": image.shape[2], "height": image.shape[1]}
        yield path, {"image": entry, "annotations": annotations}


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
                "area": int(found.masks[row].sum()),
                "iscrowd": 0,
                "score": round(float(result.scores[row]), 4),
                "segmentation": rle,
            }
        )
    return annotations


def at_least(found: Detections, min_score: float) -> Detections:
    """The detections that reach a score."""
    kept = found.scores >= min_score
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept], found.masks[kept], found.image_id)


def draw_overlay(image: Tensor, found: Detections, names: Sequence[str], path: Path) -> None:
    """Write the image (uint8 (3, h, w)) with masks, boxes, class names and scores as a picture."""
    picture, count = image, len(found.scores)
    if count:
        colours = [COLOURS[index % len(COLOURS)] for index in range(count)]
        told = [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]
        picture = draw_segmentation_masks(picture, found.masks.cpu(), alpha=OPACITY, colors=colours)
        picture = draw_bounding_boxes(picture, found.boxes.cpu(), labels=told, colors=colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
