"""Reads YOLO data sets: folders `images/` and `labels/`, a line of shares per object, `data.yaml` with the classes."""

from __future__ import annotations

import itertools
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.classes import COUNTED_FROM_1, are_counted_from_1
from boxseg.coco.masks import decode_segmentation
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.images import IMAGE_ENDINGS, image_files
from boxseg.files.names import Names, files_in
from boxseg.files.reading import DOES_NOT_EXIST, UnreadableError, read_picture, read_yaml
from boxseg.formats.common import Splits, TurnedPicture, example_json, read_listing
from boxseg.formats.yolo_writer import SPLITS

NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML says that a key has no value."""
SHOWN_IMAGES = 5
"""Images that cannot be read are named up to this many."""
MAX_SHARE = 2.0
"""Shares are 0 … 1, some more at the edge of an image; pixels are larger."""
SAME_SHARE = 0.002
"""Shares that differ by less are the same, rounded."""
LAYOUT_RULE = "it needs `names`, the class names from 0 on, and `train` or `val`"
LINE_RULE = (
    "a line is the class and x y width height, or the class and x y of three points or more, "
    "as shares, and nothing behind"
)
TRACK_RULE = "labels have no confidence and no track id behind the numbers of an object"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What `data.yaml` says."""

    class_names: list[str]
    places: dict[str, list[Path]]
    """Split -> the folders or lists of its images."""
    keypoints: int
    """How many numbers of a line are keypoints, behind the box; 0 without poses."""


@dataclass
class Tally:
    """What was noticed while a data set was read, for warnings at the end."""

    images: int = 0
    without_labels: list[Path] = field(default_factory=list)
    """Images without a text file."""
    splits_of: dict[Path, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Image -> the splits that it is in."""
    read_labels: dict[Path, set[Path]] = field(default_factory=lambda: defaultdict(set))
    """Text file -> the images for which it was read."""
    unreadable: list[UnreadableError] = field(default_factory=list)
    """Images that cannot be read."""
    poses: int = 0
    """Objects whose keypoints were left out."""
    points: Counter[int] = field(default_factory=Counter)
    """How many points an outline has -> how many such outlines there are."""
    ending_in_1: Counter[int] = field(default_factory=Counter)
    """The same for outlines whose last number is 1, which may be the id of the first track; larger ids are no shares.
    Outlines of three points are counted only if they fit as a box with its confidence and id."""
    empty: int = 0
    """Outlines without a pixel inside."""
    classes: set[int] = field(default_factory=set)
    """Numbers of the classes that occur."""


def convert_yolo(source: Path) -> Splits:
    """YOLO: images with a text file each, a line `class x y width height` or `class x y x y …` per object, in shares.

    Args:
        source: A folder with `data.yaml`, or with `images/`, `labels/` and the names of the classes in `classes.txt`.

    Returns:
        The splits of `data.yaml`, each place once, or else one named `all`. Images that cannot be read are left out,
        with a warning.

    Raises:
        DataError: the classes are not named, or a line is malformed; names file and line.

    Source: the description of the format by Ultralytics.
    """
    layout = _read_layout(source)
    splits: Splits = {}
    tally = Tally()
    for split_name, places in layout.places.items():
        if any(places == layout.places[earlier] for earlier in splits):
            continue  # small data sets may validate on the images that they train on
        splits[split_name] = split = CocoSplit(source, layout.class_names)
        # A dict instead of a set keeps the order: lists that were joined name some images twice.
        for path in dict.fromkeys(itertools.chain(*map(_images_of, places))):
            tally.splits_of[path].append(split_name)
            _add_image(split, source, path, layout.keypoints, tally)
    if not any(split.content["images"] for split in splits.values()):
        _require_readable(tally, source)
    _warn_of_images(tally)
    _warn_of_labels(tally, source)
    _warn_of_outlines(tally, source)
    if are_counted_from_1(tally.classes):
        value = (
            f"no object is of class 0, {layout.class_names[0]!r}, but of 1 to {max(tally.classes)}"
        )
        logger.warning("%s: %s; %s (%s)", source, value, *COUNTED_FROM_1)
    return splits


def _require_readable(tally: Tally, source: Path) -> None:
    """Refuse a data set of which no image can be read."""
    if not tally.unreadable:
        return
    first = tally.unreadable[0]
    hint = ""
    if first.value == DOES_NOT_EXIST:
        match = Names.below(source).find(str(first.args[0]))
        if match is not None:
            hint = f"; {match!r} is there: lists have paths with /, from their own folder on"
    raise DataError(
        f"{source}: none of {len(tally.unreadable)} images can be read; the first: {first}{hint}"
    )


def _warn_of_images(tally: Tally) -> None:
    for error in tally.unreadable[:SHOWN_IMAGES]:
        logger.warning("left out: %s", error)
    more = len(tally.unreadable) - SHOWN_IMAGES
    if more > 0:
        logger.warning("left out: %d more images that cannot be read", more)


def _warn_of_labels(tally: Tally, source: Path) -> None:
    """Log how many images have no text file, and how many text files have no image.

    Raises:
        DataError: no image has a text file.
    """
    if tally.without_labels:
        paths = _label_paths(tally.without_labels[0])
        # Only one, if they are the same.
        first_and_last = dict.fromkeys([str(paths[0]), str(paths[-1])])
        places = " and ".join(first_and_last)
        count = f"{len(tally.without_labels)} of {tally.images}"
        value = f"{count} images have no label file (looked for {places})"
        if len(tally.without_labels) == tally.images:
            rule = "labels are text files named like the image (correct the folders)"
            raise DataError(f"{source}: {value}; {rule}")
        logger.warning("%s: %s; they count as images without objects", source, value)
    repeated = [path for path, splits in tally.splits_of.items() if len(splits) > 1]
    if repeated:
        splits = " and ".join(tally.splits_of[repeated[0]])
        value = f"{len(repeated)} images are in several splits, such as {repeated[0]} in {splits}"
        rule = "results on images that were trained on say nothing about new ones"
        logger.warning("%s: %s; %s (correct the folders in data.yaml)", source, value, rule)
    shared = [path for path, images in tally.read_labels.items() if len(images) > 1]
    if shared:
        value = f"{len(shared)} label files are read for several images (the first: {shared[0]})"
        rule = "images that differ in their ending alone share one, and its objects are in each of them"
        logger.warning("%s: %s; %s (rename or remove one of them)", source, value, rule)
    stray = _find_stray({path for image in tally.splits_of for path in _label_paths(image)})
    if stray:
        value = f"{len(stray)} label files belong to no image (the first: {stray[0]})"
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        logger.warning("%s: %s; images end in %s", source, value, endings)


def _find_stray(label_paths: set[Path]) -> list[Path]:
    """Text files that belong to no image, in folders of labels."""
    folders = {path.parent for path in label_paths if "labels" in map(str.casefold, path.parts)}
    stray = []
    for folder in sorted(folders):
        for path in files_in(folder, ".txt"):
            # Some tools write the names of the classes beside the labels.
            if path not in label_paths and path.stem.lower() != "classes":
                stray.append(path)
    return stray


def _warn_of_outlines(tally: Tally, source: Path) -> None:
    """Log what is odd about the outlines as a whole.

    Raises:
        DataError: all are boxes, each with a confidence and a track id: read as three points, they would be wrong.
    """
    outlines, triangles = tally.points.total(), tally.points[3]
    # a box with its confidence and track id looks like three points
    tracks, ending_in_1 = tally.ending_in_1[3], tally.ending_in_1.total()
    if outlines and outlines == tracks:
        raise DataError(
            f"{source}: all {outlines} outlines have three points, fit as boxes and end in 1; "
            f"{TRACK_RULE} (keep the class and x y width height of each line)"
        )
    if tracks:
        value = "outlines of three points end in 1; if these are boxes with a confidence"
        logger.warning(f"{source}: {tracks} of {triangles} {value}, {TRACK_RULE}")
    elif outlines > 1 and 2 * ending_in_1 > outlines:
        value = "outlines end in 1; if these are track ids, cut them and the confidences"
        logger.warning(f"{source}: {ending_in_1} of {outlines} {value}")
    if tally.poses:
        warning = "%s: the keypoints of %d objects are left out, their boxes are read"
        logger.warning(warning, source, tally.poses)
    if tally.empty:
        # Without `kpt_shape` a pose reads as an outline: the points of a line, there and back.
        value = "outlines enclose no pixel and give a box alone; poses need kpt_shape in data.yaml"
        logger.warning("%s: %d of %d %s", source, tally.empty, outlines, value)
    if outlines > 1 and tally.points[4] == outlines:
        value = "outlines have four points; if these are turned boxes (YOLO OBB), their masks are boxes too"
        logger.warning("%s: all %d %s", source, outlines, value)


def _read_layout(source: Path) -> Layout:
    """Classes and splits of the folder, from `data.yaml` or else `classes.txt`."""
    files = files_in(source, ".yaml", ".yml")
    if files:
        # `data.yaml`, or else the first by name: tools also call it `dataset.yaml` or like the data set.
        file = min(files, key=lambda path: (path.stem != "data", path))
        try:
            return _parse_layout(source, read_yaml(file, LAYOUT_RULE))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: {error}; {LAYOUT_RULE} (correct the file)") from error
    for file in [*files_in(source, ".txt"), *files_in(source / "labels", ".txt")]:
        if file.stem.lower() == "classes" and (source / "images").is_dir():
            lines = read_listing(file).rstrip().splitlines()
            if "" in map(str.strip, lines):
                number = [line.strip() for line in lines].index("") + 1
                raise DataError(
                    f"{file}:{number}: is empty; a line names the class of its number, from 0 "
                    "(remove the line, or name the class)"
                )
            return Layout([line.strip() for line in lines], {"all": [source / "images"]}, 0)
    raise DataError(
        f"{source}: is not a YOLO data set; it needs data.yaml, or images/, labels/ and classes.txt "
        "(such as a data.yaml of two lines, train: FOLDER and names: [CLASS, …]; a COCO file is named itself"
        f"{example_json(source)})"
    )


def _parse_layout(source: Path, content: Any) -> Layout:
    """The layout that the content of `data.yaml` describes.

    Raises:
        ValueError: something is missing, or of another kind.
        DataError: a split leads out of the folder, or nowhere.
    """
    if not isinstance(content, dict):
        raise ValueError("holds no mapping")  # an empty file, or a list
    class_names = _class_names(content.get("names"))
    count = content.get("nc", "")
    if count not in NOTHING and count != str(len(class_names)):
        value = f"nc is {count}, and names holds {len(class_names)}"
        logger.warning("%s: %s; numbers of classes count the names from 0 on", source, value)
    base = content.get("path", "")
    if base in NOTHING:
        base = ""
    listed: dict[str, list[Any]] = {}
    for split in SPLITS:
        value = content.get(split, "")
        if value not in NOTHING:
            listed[split] = value if isinstance(value, list) else [value]
    for key, paths in {**listed, "path": [base]}.items():
        if not all(isinstance(path, str) for path in paths):
            raise ValueError(f"`{key}` is no path")
    if not listed:
        listed = {"all": ["images"]}
    places = {}
    for split, paths in listed.items():
        try:
            places[split] = _find_places(source, base, paths)
        except DataError as error:
            # Exporters name a test split even where there is none, and it is not needed for training.
            if split != "test" or len(listed) == 1:
                raise
            logger.warning("%s: the split is left out", error)
    return Layout(class_names, places, _keypoints(content.get("kpt_shape")))


def _class_names(names: Any) -> list[str]:
    """Names of the classes, of the value of `names`: a list, or a mapping from numbers to names."""
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    # Keys are texts, as `read_yaml` leaves numbers as they are written.
    is_mapping = isinstance(names, dict)
    numbers = [str(number) for number in range(len(names))] if is_mapping else []
    if not is_mapping or names.keys() != set(numbers):
        raise ValueError("`names` is no list, and no mapping from 0 on")
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError("`names` holds something else than texts")
    return [names[number] for number in numbers]


def _keypoints(shape: Any) -> int:
    """Numbers that the keypoints of a line take, of the value of `kpt_shape`: how many, and numbers for each."""
    if shape is None:
        return 0
    is_pair = isinstance(shape, list) and len(shape) == 2
    if not is_pair or not all(str(number).isdecimal() for number in shape):
        raise ValueError("`kpt_shape` is no list of two numbers")
    return int(shape[0]) * int(shape[1])


def _find_places(source: Path, base: str, listed: list[str]) -> list[Path]:
    """Where the folders or lists of a split are; they must be inside the data set."""
    places = []
    for name in listed:
        # Tools write paths from `path` on, from the file on, or from a folder beside it (`../train/images`).
        without_dots = re.sub(r"^(\.\./)+", "", name)
        candidates = [source / base / name, source / name, source / without_dots]
        # By the path as written: a link inside may lead anywhere.
        inside = [
            path for path in candidates if ".." not in Path(os.path.relpath(path, source)).parts
        ]
        place = next(filter(Path.exists, inside), None)
        if place is None:
            # Notebooks write paths of another machine, whose last parts may exist here.
            parts = name.replace("\\", "/").split("/")
            tails = ["/".join(parts[start:]) for start in range(1, len(parts))]
            here = next((tail for tail in tails if tail and (source / tail).exists()), None)
            hint = f"; {here} is there" if here else ""
            raise DataError(
                f"{source}: has no {name} inside, which its data.yaml names{hint} "
                "(correct `path` or the split)"
            )
        places.append(place)
    return places


def _images_of(place: Path) -> Iterator[Path]:
    """Image files in and below a folder, or of a list with a path on each line."""
    if place.is_dir():
        yield from image_files(place)
    elif place.suffix.lower() == ".txt":
        for line in read_listing(place).splitlines():
            if line.strip():
                yield place.parent / line.strip()
    else:
        yield place


def _label_paths(image: Path) -> list[Path]:
    """Where the text file of an image may be: in `labels` instead of the last `images`, or beside it."""
    parts = image.with_suffix(".txt").parts
    positions = [index for index, part in enumerate(parts[:-1]) if part.casefold() == "images"]
    paths = []
    if positions:
        # The last one: a data set may lie in another folder of that name. Its case matters where the disk's does.
        before, after = parts[: positions[-1]], parts[positions[-1] + 1 :]
        paths = [Path(*before, folder, *after) for folder in ("labels", "Labels", "LABELS")]
    paths.append(Path(*parts))
    # Disks of Macs may write an accented letter as two characters, so an archive can have either.
    plain = paths[-1].stem
    stems = [plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    names = [stem + ending for ending in (".txt", ".TXT") for stem in stems]
    others = [path.with_name(name) for name in names for path in paths]
    return list(dict.fromkeys([*paths, *others]))


def _add_image(split: CocoSplit, source: Path, path: Path, keypoints: int, tally: Tally) -> None:
    """Add an image with the objects of its text file; one that cannot be read is left out."""
    try:
        picture = read_picture(path, TurnedPicture.of)
    except UnreadableError as error:
        tally.unreadable.append(error)
        return
    split.add_image(Path(os.path.relpath(path, source)).as_posix(), picture.size)
    tally.images += 1
    labels = next(filter(Path.exists, _label_paths(path)), None)
    if labels is None:
        tally.without_labels.append(path)
        return
    tally.read_labels[labels].add(path)
    for line_number, line in enumerate(read_listing(labels).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            numbers = [float(word) for word in line.split()]
            _add_object(split, numbers, picture, keypoints, tally)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{labels}:{line_number}: {error!s:.200}; {LINE_RULE} (correct or remove the line)"
            ) from error


def _add_object(
    split: CocoSplit, numbers: list[float], picture: TurnedPicture, keypoints: int, tally: Tally
) -> None:
    """Add the object of a line.

    Raises:
        ValueError: it is malformed.
        OverflowError: its class is infinite.
    """
    label = _label(numbers[0], len(split.class_names))
    tally.classes.add(label)
    shares = _shares(numbers[1:], keypoints)
    if len(shares) < len(numbers) - 1:
        tally.poses += 1
    if len(shares) == 4:
        x, y, width, height = shares.tolist()
        top_left = x - width / 2, y - height / 2
        bottom_right = x + width / 2, y + height / 2
        corners = np.array([top_left, bottom_right])
        split.add_object(label, box=_box_around(picture.stored_pixels(corners)))
        return
    points = picture.stored_pixels(_outline(shares))
    # An outline between pixel centres encloses none; its box is of use all the same.
    mask = decode_segmentation([points.ravel().tolist()], picture.size)
    has_pixels = bool(mask.any())
    tally.points[len(points)] += 1
    # 1: the id of the first track, or the lower edge of the picture.
    ends_in_1 = numbers[-1] == 1
    if len(points) == 3:  # as a box, most triangles at the lower edge would reach beyond it
        ends_in_1 = ends_in_1 and _is_box_inside(shares[:4])
    tally.ending_in_1[len(points)] += ends_in_1
    tally.empty += not has_pixels
    split.add_object(label, box=_box_around(points), mask=mask if has_pixels else None)


def _is_box_inside(shares: NDArray[np.float64]) -> bool:
    """Whether x y width height are those of a box inside the picture."""
    middle, sides = shares[:2], shares[2:]
    reach = np.abs(middle - 0.5) + sides / 2  # of its far side from the middle of the picture
    return bool(sides.min() > 0 and reach.max() < 0.5 + SAME_SHARE)


def _outline(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) of an outline, without the box before them that some tools write."""
    points = shares.reshape(-1, 2)
    if len(points) < 5:
        return points
    start, end = points[2:].min(axis=0), points[2:].max(axis=0)
    box = np.array([(start + end) / 2, end - start])
    return points[2:] if np.abs(points[:2] - box).max() < SAME_SHARE else points


def _label(number: float, num_classes: int) -> int:
    label = int(number)
    if label != number or not 0 <= label < num_classes:
        raise ValueError(f"class {number:g} is not in 0 … {num_classes - 1}")
    return label


def _shares(numbers: list[float], keypoints: int) -> NDArray[np.float64]:
    """The numbers behind the class, without those of keypoints: a box, or the points of an outline.

    Raises:
        ValueError: they are neither.
    """
    shares = np.array(numbers)
    if not np.isfinite(shares).all() or len(shares) < 4 or len(shares) % 2:
        raise ValueError(f"there are {len(shares)} finite numbers after the class")
    if keypoints and len(shares) not in (4, 4 + keypoints):
        raise ValueError(
            f"there are {len(shares)} numbers after the class, not 4 or {4 + keypoints} (kpt_shape)"
        )
    if keypoints:
        shares = shares[:4]
    if len(shares) > 4 and np.abs(shares[:-1]).max() <= 1 < shares[-1] == int(shares[-1]):
        raise ValueError(
            f"it ends in {shares[-1]:g}, no share but perhaps a track id; {TRACK_RULE}"
        )
    if np.abs(shares).max() > MAX_SHARE:
        raise ValueError(f"{np.abs(shares).max():g} is no share of width or height")
    return shares


def _box_around(points: NDArray[np.float64]) -> list[float]:
    """x1 y1 x2 y2 around points (n, 2)."""
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
