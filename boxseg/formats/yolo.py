"""YOLO data sets: folders `images/` and `labels/`, a line of shares per object, and `data.yaml` with the classes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.masks import decode_segmentation
from boxseg.coco.outlines import find_part_polygons, join_polygons
from boxseg.coco.picture_checks import EXIF_ORIENTATION
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.images import IMAGE_ENDINGS, image_files
from boxseg.files.names import Names, is_inside
from boxseg.files.reading import UnreadableError, read_picture, read_text, read_yaml
from boxseg.files.writing import naming_storage_faults, write_atomic

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a folder -> what its images are for; others are to train on."""
VAL_SHARE = 0.2
"""Of the images, to validate on where their folders do not tell."""
NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML says that a key has no value."""
SHOWN_IMAGES = 5
"""Images that cannot be read are named up to this many."""
MAX_SHARE = 2.0
"""Shares are 0 … 1, some more at the edge of an image; pixels are larger."""
LAYOUT_RULE = "it needs `names`, the class names from 0 on, and `train` or `val`"
LIST_RULE = "lists and labels are text files in UTF-8"
LINE_RULE = "a line is the class and x y width height, or the class and x y of three points or more, as shares"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Size of a stored picture, and how viewers turn it: the shares of YOLO are of the picture as seen."""

    size: tuple[int, int]
    """(height, width) as stored, pixels."""
    turn: int
    """EXIF orientation, 1 … 8; 1 leaves it as it is."""

    @classmethod
    def of(cls, picture: Image.Image) -> Shape:
        """The shape of an opened picture; its pixels are not decoded."""
        # PIL would decode a PNG to find out
        has_exif = picture.format != "PNG" or "exif" in picture.info
        turn = picture.getexif().get(EXIF_ORIENTATION, 1) if has_exif else 1
        return cls((picture.height, picture.width), turn if turn in range(1, 9) else 1)

    def stored_pixels(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2), x y as shares of the picture as seen, in stored pixels."""
        x, y = shares.T
        if self.turn > 4:
            x, y = y, x
        x = 1 - x if self.turn in (2, 3, 7, 8) else x
        y = 1 - y if self.turn in (3, 4, 6, 7) else y
        return np.stack([x, y], axis=1) * [self.size[1], self.size[0]]


@dataclass
class Reading:
    """What was met on the way through a data set, to be told at the end."""

    keypoints: int = 0
    """Numbers of a line that keypoints take, behind the box."""
    images: int = 0
    without_labels: list[Path] = field(default_factory=list)
    """Images without a text file."""
    labels: set[Path] = field(default_factory=set)
    """Text files of images, left out ones too."""
    poses: int = 0
    """Objects whose keypoints were left out."""
    outlines: int = 0
    of_four_points: int = 0
    empty: int = 0
    """Outlines without a pixel inside."""

    def tell(self, source: Path) -> None:
        """Log it.

        Raises:
            DataError: no image has a text file.
        """
        if self.without_labels:
            first = self.without_labels[0]
            looked = " and ".join(
                dict.fromkeys(map(str, _label_paths(first)[:1] + _label_paths(first)[-1:]))
            )
            told = f"{len(self.without_labels)} of {self.images} images have no label file (looked for {looked})"
            if len(self.without_labels) == self.images:
                raise DataError(
                    f"{source}: {told}; labels are text files named like the image (correct the folders)"
                )
            logger.warning("%s: %s; they count as images without objects", source, told)
        stray = self._find_stray()
        if stray:
            told = f"{len(stray)} label files are of no image (the first: {stray[0]})"
            logger.warning(
                "%s: %s; images end in %s", source, told, ", ".join(sorted(IMAGE_ENDINGS))
            )
        if self.poses:
            logger.warning(
                "%s: the keypoints of %d objects are left out, their boxes are read",
                source,
                self.poses,
            )
        if self.empty:
            told = (
                "outlines enclose no pixel and give a box alone; poses need kpt_shape in data.yaml"
            )
            logger.warning("%s: %d of %d %s", source, self.empty, self.outlines, told)
        if self.outlines > 1 and self.of_four_points == self.outlines:
            told = "outlines have four points; if these are turned boxes (YOLO OBB), their masks are boxes too"
            logger.warning("%s: all %d %s", source, self.outlines, told)

    def _find_stray(self) -> list[Path]:
        """Text files without an image, in folders of labels."""
        folders = {
            path.parent for path in self.labels if "labels" in map(str.casefold, path.parts)
        }
        there = (path for folder in sorted(folders) for path in sorted(folder.glob("*.txt")))
        return [path for path in there if path not in self.labels and path.stem != "classes"]


def write_yolo(content: dict[str, Any], images: Path, folder: Path) -> dict[str, int]:
    """Write masks for YOLO segmentation: a line `class x y x y …` per object, one outline around all its pieces.

    What to train and to validate on is told by lists, `train.txt` and `val.txt`, and `test.txt` where a folder has that
    name: by the folders of the images where they have these names, else every fifth image, by chance, is validated on.

    Args:
        content: COCO instances; annotations without a mask, or with an empty one, and crowds are left out, and so are
            images without a file.
        images: Folder of its images; `folder/images` gets links to them.
        folder: A new folder.

    Returns:
        Split -> how many images.

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
                lines[annotation["image_id"]].append(
                    f"{label_of[annotation['category_id']]} {outline}"
                )
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, str] = {}
    for image in content["images"]:
        name = image["file_name"]
        if not is_inside(name) or not os.path.isfile(images / name):  # noqa: PTH113 - False for any name at all
            continue
        place = _place(name)
        path = (folder / "labels" / place).with_suffix(".txt")
        if path in written:
            raise DataError(
                f"{images}: {name} and {written[path]} differ in their ending alone; YOLO needs names that differ "
                "before it (rename one of them, in the annotation file too)"
            )
        written[path] = name
        with naming_storage_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines[image["id"]]))
            link = folder / "images" / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((images / name).absolute())
    splits = split_names(list(written.values()))
    for split, names_of_split in splits.items():
        write_atomic(
            folder / f"{split}.txt",
            "".join(f"./images/{_place(name)}\n" for name in names_of_split),
        )
    listed = "".join(f"{split}: {split}.txt\n" for split in splits)
    names = "".join(
        f"  {label}: {json.dumps(each['name'])}\n" for label, each in enumerate(categories)
    )
    # Without a `path`, trainers look beside this file; with `.`, where they were started or where they keep their sets.
    write_atomic(folder / "data.yaml", f"{listed}names:\n{names}")
    return {split: len(names_of_split) for split, names_of_split in splits.items()}


def _place(name: str) -> str:
    """Where an image lies below `images`: without folders of that name, as labels are looked for beside the last."""
    *folders, last = name.split("/")
    return "/".join([*(each for each in folders if each != "images"), last])


def split_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Images to train, validate and test on: by their folders, or else a fifth to validate on; empty ones are left out.

    The same image comes on the same side again, as far as the share allows, when others come or go.
    """
    of_folder = {name: _split_of(name) for name in names}
    if not {"train", "val"} <= set(of_folder.values()):
        order = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        held_out = set(order[: max(1, round(VAL_SHARE * len(order)))] if len(order) > 1 else [])
        of_folder = {name: "val" if name in held_out else "train" for name in names}
    splits = {split: [name for name in names if of_folder[name] == split] for split in SPLITS}
    return {split: listed for split, listed in splits.items() if listed or split == "train"}


def _split_of(name: str) -> str:
    folders = [each.lower() for each in name.split("/")[:-1]]
    return next((SPLIT_FOLDERS[each] for each in folders if each in SPLIT_FOLDERS), "train")


def _outline(segmentation: Any, size: tuple[int, int]) -> str:
    """One outline as shares of width and height; empty for an empty mask."""
    polygons = find_part_polygons(segmentation, size)
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
    names, layout, keypoints = _read_layout(source)
    splits: dict[str, CocoSplit] = {}
    unreadable: list[UnreadableError] = []
    about = Reading(keypoints=keypoints)
    for split_name, places in layout.items():
        if places in [layout[before] for before in splits]:
            continue  # small data sets validate on what they train on
        splits[split_name] = split = CocoSplit(source, names)
        for path in (path for place in places for path in _images_of(place)):
            about.labels.update(_label_paths(path))
            if path.stem not in exclude:
                try:
                    shape = read_picture(path, Shape.of)
                except UnreadableError as error:
                    unreadable.append(error)
                else:
                    _add_image(split, source, path, shape, about)
    if unreadable and not any(split.content["images"] for split in splits.values()):
        first = unreadable[0]
        there = Names.below(source).find(str(first.args[0]))
        hint = (
            f"; {there!r} is there: lists have paths with /, from their own folder on"
            if there
            else ""
        )
        raise DataError(
            f"{source}: none of {len(unreadable)} images can be read; the first: {first}{hint}"
        )
    for each in unreadable[:SHOWN_IMAGES]:
        logger.warning("left out: %s", each)
    if len(unreadable) > SHOWN_IMAGES:
        logger.warning(
            "left out: %d more images that cannot be read", len(unreadable) - SHOWN_IMAGES
        )
    about.tell(source)
    return splits


def _read_layout(source: Path) -> tuple[list[str], dict[str, list[Path]], int]:
    """Names of the classes, the folders, lists or images of each split, and how many numbers keypoints take."""
    found = sorted(
        [*source.glob("*.yaml"), *source.glob("*.yml")],
        key=lambda path: (path.stem != "data", path),
    )
    if found:
        try:
            return _parse_layout(source, read_yaml(found[0], LAYOUT_RULE))
        except (OSError, ValueError) as error:
            raise DataError(f"{found[0]}: {error}; {LAYOUT_RULE} (correct the file)") from error
    classes = next(
        (
            path
            for path in (source / "classes.txt", source / "labels/classes.txt")
            if path.is_file()
        ),
        None,
    )
    if classes is None or not (source / "images").is_dir():
        raise DataError(
            f"{source}: is no YOLO data set; it needs data.yaml, or images/, labels/ and classes.txt"
        )
    names = [line.strip() for line in read_listing(classes).rstrip().splitlines()]
    return names, {"all": [source / "images"]}, 0


def _parse_layout(source: Path, content: Any) -> tuple[list[str], dict[str, list[Path]], int]:
    """What `_read_layout` gives, of the content of data.yaml.

    Raises:
        ValueError: something is missing, or of another kind.
        DataError: a split leads out of the folder, or nowhere.
    """
    if not isinstance(content, dict):
        raise ValueError("holds no mapping")
    names = content.get("names")
    numbered = (
        {str(number): name for number, name in enumerate(names)}
        if isinstance(names, list)
        else names
    )
    if not isinstance(numbered, dict) or numbered.keys() != set(map(str, range(len(numbered)))):
        raise ValueError("`names` is no list, and no mapping from 0 on")
    if not all(isinstance(name, str) for name in numbered.values()):
        raise ValueError("`names` holds something else than texts")
    splits = {name: content[name] for name in SPLITS if content.get(name, "") not in NOTHING}
    base = content.get("path", "")
    base = "" if base in NOTHING else base
    lists = {
        name: listed if isinstance(listed, list) else [listed] for name, listed in splits.items()
    }
    for name, listed in {**lists, "path": [base]}.items():
        if not all(isinstance(each, str) for each in listed):
            raise ValueError(f"`{name}` is no path")
    places = {
        name: _places(source, base, listed)
        for name, listed in (lists or {"all": ["images"]}).items()
    }
    return (
        [numbered[str(number)] for number in range(len(numbered))],
        places,
        _keypoints(content.get("kpt_shape")),
    )


def _keypoints(shape: Any) -> int:
    """Numbers that the keypoints of a line take, of the value of `kpt_shape`: how many, and numbers for each."""
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(str(each).isdecimal() for each in shape)
    ):
        raise ValueError("`kpt_shape` is no list of two numbers")
    return int(shape[0]) * int(shape[1])


def read_listing(path: Path) -> str:
    """Text of a list, or of the labels of an image.

    Raises:
        DataError: it is no plain file, or not UTF-8.
    """
    return read_text(path, LIST_RULE)


def _places(source: Path, base: str, listed: list[str]) -> list[Path]:
    """Where a split lies: below `path`, below the folder itself, or there without the `../` that some tools write."""
    places = []
    for name in listed:
        tries = [source / base / name, source / name, source / re.sub(r"^(\.\./)+", "", name)]
        place = next((each for each in tries if each.exists()), None)
        if place is None or not place.resolve().is_relative_to(source.resolve()):
            raise DataError(
                f"{source}: has no {name} inside, which its data.yaml names (correct `path` or the split)"
            )
        places.append(place)
    return places


def _images_of(place: Path) -> Iterator[Path]:
    """Image files of a folder with all below, or of a list with a path a line."""
    if place.is_dir():
        yield from image_files(place)
    elif place.suffix == ".txt":
        yield from (
            place.parent / line.strip()
            for line in read_listing(place).splitlines()
            if line.strip()
        )
    else:
        yield place


def _add_image(split: CocoSplit, source: Path, path: Path, shape: Shape, about: Reading) -> None:
    split.add_image(Path(os.path.relpath(path, source)).as_posix(), shape.size)
    about.images += 1
    labels = next(filter(Path.exists, _label_paths(path)), None)
    if labels is None:
        about.without_labels.append(path)
        return
    for number, line in enumerate(read_listing(labels).splitlines(), start=1):
        if line.strip():
            try:
                _add_line(split, [float(word) for word in line.split()], shape, about)
            except (ValueError, IndexError, OverflowError) as error:
                told = f"{labels}:{number}: {error!s:.200}"
                raise DataError(f"{told}; {LINE_RULE} (correct or remove the line)") from error


def _add_line(split: CocoSplit, numbers: list[float], shape: Shape, about: Reading) -> None:
    label, shares = int(numbers[0]), np.array(numbers[1:])
    if label != numbers[0] or not 0 <= label < len(split.class_names):
        raise ValueError(f"class {numbers[0]:g} is none of 0 … {len(split.class_names) - 1}")
    if not np.isfinite(shares).all() or len(shares) < 4 or len(shares) % 2:
        raise ValueError(f"there are {len(shares)} finite numbers after the class")
    if about.keypoints and len(shares) == 4 + about.keypoints:
        shares = shares[:4]
        about.poses += 1
    elif about.keypoints and len(shares) != 4:
        raise ValueError(
            f"there are {len(shares)} numbers after the class, not 4 or {4 + about.keypoints} (kpt_shape)"
        )
    if np.abs(shares).max() > MAX_SHARE:
        raise ValueError(f"{np.abs(shares).max():g} is no share of width or height")
    if len(shares) == 4:
        x, y, width, height = shares.tolist()
        corners = np.array([[x - width / 2, y - height / 2], [x + width / 2, y + height / 2]])
        split.add_object(label, box=_box_around(shape.stored_pixels(corners)))
        return
    points = shape.stored_pixels(shares.reshape(-1, 2))
    mask = decode_segmentation([points.ravel().tolist()], shape.size)
    about.outlines += 1
    about.of_four_points += len(points) == 4
    about.empty += not mask.any()
    split.add_object(label, box=_box_around(points), mask=mask if mask.any() else None)


def _box_around(points: NDArray[np.float64]) -> list[float]:
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _label_paths(image: Path) -> list[Path]:
    """Where the text file of an image may be: in `labels` instead of the last `images`, or beside it."""
    parts = image.with_suffix(".txt").parts
    places = [number for number, part in enumerate(parts[:-1]) if part.casefold() == "images"]
    words = ("labels", "Labels", "LABELS")
    beside_images = [
        Path(*parts[: places[-1]], word, *parts[places[-1] + 1 :]) for word in words if places
    ]
    return [*beside_images, Path(*parts)]
