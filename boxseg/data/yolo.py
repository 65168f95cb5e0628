"""YOLO data sets: folders `images/` and `labels/`, a line of shares per object, and `data.yaml` with the classes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from boxseg.data.checks import is_inside
from boxseg.data.coco import decode_segmentation
from boxseg.data.coco_split import CocoSplit
from boxseg.data.outlines import find_polygons, join_polygons
from boxseg.errors import DataError

IMAGE_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
LINE_RULE = "a line is the class and x y width height, or the class and x y of three points or more, as shares"

logger = logging.getLogger(__name__)


def write_yolo(content: dict[str, Any], images: Path, folder: Path) -> None:
    """Write masks for YOLO segmentation: a line `class x y x y …` per object, one outline around all its pieces.

    Args:
        content: COCO instances; annotations without a mask, or with an empty one, and crowds are left out, and so are
            images without a file.
        images: Folder of its images; `folder/images` gets links to them.
        folder: A new folder.

    Raises:
        DataError: two images differ in their ending alone, which YOLO cannot tell apart.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    lines: dict[int, list[str]] = defaultdict(list)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation.get("segmentation") and not annotation.get("iscrowd"):
            size = sizes[annotation["image_id"]]
            outline = _outline(annotation["segmentation"], size)
            if outline:
                lines[annotation["image_id"]].append(f"{label_of[annotation['category_id']]} {outline}")
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, str] = {}
    for image in content["images"]:
        name = image["file_name"]
        if not is_inside(name) or not os.path.isfile(images / name):  # noqa: PTH113 - False for any name at all
            continue
        path = (folder / "labels" / name).with_suffix(".txt")
        if path in written:
            raise DataError(
                f"{images}: {name} and {written[path]} differ in their ending alone; YOLO needs names that differ "
                "before it (rename one of them, in the annotation file too)"
            )
        written[path] = name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines[image["id"]]))
        link = folder / "images" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((images / name).absolute())
    names = "".join(f"  {label}: {json.dumps(each['name'])}\n" for label, each in enumerate(categories))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}")


def _outline(segmentation: Any, size: tuple[int, int]) -> str:
    """One outline as shares of width and height; empty for an empty mask."""
    polygons = find_polygons(decode_segmentation(segmentation, size))
    if not polygons:
        return ""
    shares = join_polygons(polygons) / [size[1], size[0]]
    return " ".join(f"{share:.6g}" for share in shares.ravel().tolist())


def convert_yolo(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """YOLO: images with a text file each, a line `class x y width height` or `class x y x y …` per object, in shares.

    Args:
        source: A folder with `data.yaml`, or with `images/`, `labels/` and the names of the classes in `classes.txt`.
        exclude: File names (without folder and ending) of images to leave out.

    Returns:
        The splits of `data.yaml`, each place once, or else one named `all`. Images that cannot be read are left out,
        with a warning.

    Raises:
        DataError: the classes are not named, or a line is malformed; names file and line.

    Source: the description of the format by Ultralytics.
    """
    names, layout = _read_layout(source)
    splits: dict[str, CocoSplit] = {}
    for split_name, places in layout.items():
        if places in [layout[before] for before in splits]:
            continue  # small data sets validate on what they train on
        splits[split_name] = split = CocoSplit(source, names)
        for path in (path for place in places for path in _images_of(place)):
            if path.stem not in exclude:
                _add_image(split, source, path)
    return splits


def _read_layout(source: Path) -> tuple[list[str], dict[str, list[Path]]]:
    """Names of the classes, and for each split the folders, lists or images that it consists of."""
    found = sorted([*source.glob("*.yaml"), *source.glob("*.yml")], key=lambda path: (path.stem != "data", path))
    if found:
        try:
            content = yaml.safe_load(found[0].read_text(encoding="utf-8"))
            names = [str(content["names"][number]) for number in range(len(content["names"]))]
            splits = {name: content[name] for name in ("train", "val", "test") if content.get(name)}
            base = str(content.get("path") or ".")
            splits = splits or {"all": "images"}
            return names, {name: _places(source, base, listed) for name, listed in splits.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            rule = "it needs `names`, the class names from 0 on, and `train` or `val`"
            raise DataError(f"{found[0]}: {rule} ({type(error).__name__}: {error}; correct the file)") from error
    classes = next((path for path in (source / "classes.txt", source / "labels/classes.txt") if path.is_file()), None)
    if classes is None or not (source / "images").is_dir():
        raise DataError(f"{source}: is no YOLO data set; it needs data.yaml, or images/, labels/ and classes.txt")
    return read_listing(classes).rstrip().splitlines(), {"all": [source / "images"]}


def read_listing(path: Path) -> str:
    """Text of a list, or of the labels of an image.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text, byte {error.start}; lists and labels are UTF-8 (save it so)"
        ) from error


def _places(source: Path, base: str, listed: Any) -> list[Path]:
    """Where a split lies: below `path`, below the folder itself, or there without the `../` that some tools write."""
    places = []
    for name in listed if isinstance(listed, list) else [listed]:
        tries = [source / base / name, source / name, source / re.sub(r"^(\.\./)+", "", name)]
        place = next((each for each in tries if each.exists()), None)
        if place is None or not place.resolve().is_relative_to(source.resolve()):
            raise DataError(f"{source}: has no {name} inside, which its data.yaml names (correct `path` or the split)")
        places.append(place)
    return places


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder with all below, by their ending, in order."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS]


def _images_of(place: Path) -> Iterator[Path]:
    """Image files of a folder with all below, or of a list with a path a line."""
    if place.is_dir():
        yield from image_files(place)
    elif place.suffix == ".txt":
        yield from (place.parent / line.strip() for line in read_listing(place).splitlines() if line.strip())
    else:
        yield place


def _add_image(split: CocoSplit, source: Path, path: Path) -> None:
    try:
        with Image.open(path) as picture:
            size = (picture.height, picture.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.warning("%s: left out, the image cannot be read: %s", path, error)
        return
    split.add_image(Path(os.path.relpath(path, source)).as_posix(), size)
    labels = _label_path(path)
    lines = read_listing(labels).splitlines() if labels.is_file() else []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                _add_line(split, [float(word) for word in line.split()], size)
            except (ValueError, IndexError, OverflowError) as error:
                raise DataError(f"{labels}:{number}: {error}; {LINE_RULE} (correct or remove the line)") from error


def _add_line(split: CocoSplit, numbers: list[float], size: tuple[int, int]) -> None:
    label, shares = int(numbers[0]), np.array(numbers[1:])
    if label != numbers[0] or not 0 <= label < len(split.class_names):
        raise ValueError(f"class {numbers[0]:g} is none of 0 … {len(split.class_names) - 1}")
    if not np.isfinite(shares).all() or len(shares) < 4 or len(shares) % 2:
        raise ValueError(f"there are {len(shares)} finite numbers after the class")
    if len(shares) == 4:
        x, y, width, height = (shares * [size[1], size[0], size[1], size[0]]).tolist()
        split.add_object(label, box=[x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        return
    points = shares.reshape(-1, 2) * [size[1], size[0]]
    mask = decode_segmentation([points.ravel().tolist()], size)
    split.add_object(label, box=[*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], mask=mask)


def _label_path(image: Path) -> Path:
    """The text file of an image: in `labels` instead of the last `images`, else beside it."""
    return Path(re.sub(r"^((?:.*/)?)images/", r"\1labels/", image.with_suffix(".txt").as_posix()))
