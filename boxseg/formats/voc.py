"""Reads Pascal VOC: the published archive, and folders that annotation tools write in its format."""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from boxseg.coco.segmentations import MAX_SIDE_PX, Size
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.images import IMAGE_ENDINGS
from boxseg.files.names import Names, names_below
from boxseg.files.reading import UnreadableError, read_bytes, read_picture
from boxseg.formats.common import (
    UNPACK,
    Splits,
    find_objects,
    read_ids,
    read_listing,
    require_splits,
)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of VOC's and SBD's class numbers, from 1."""
VOID = 255
"""VOC's border pixels, which belong to no object."""
LISTS = ("train", "val", "trainval")
SPLIT_FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
"""Folder in which tools keep the images of a split -> name of the split here."""
VOC_LIST = "ImageSets/Segmentation/train.txt"
MAX_XML_BYTES = 2**22
"""Limit for an annotation file; each object takes some hundred bytes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VocObject:
    """An object of an annotation file."""

    name: str
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2 as in the file."""
    is_difficult: bool


@dataclass(frozen=True)
class VocImage:
    """What an annotation file says."""

    path: Path
    file_name: str
    """Empty if the file does not say it."""
    size: Size | None
    """(height, width), pixels; None if the file does not say it."""
    why_no_size: str
    objects: list[VocObject]
    polygons: int
    """How many of the objects have an outline, which is not read."""


def convert_voc(source: Path) -> Splits:
    """Pascal VOC: segmented images with their masks, and all images with their boxes.

    The first take masks and classes from `SegmentationObject` and `SegmentationClass`, and tight boxes. The second take
    the boxes of `Annotations`, which count pixels from 1 and include their last one. With other classes than VOC's, or
    a box that begins at pixel 0, these are files of a tool, read as below.

    A folder without `ImageSets`, as annotation tools write it, becomes one split named `all`, or those of its folders
    `train`, `valid` and `test`: its classes are those that occur, by name, and its boxes are corners in pixels from 0,
    as these tools write them.

    Source: the VOC2012 development kit's description of its files.
    """
    splits: Splits = {}
    segmented = _read_lists(source / "ImageSets/Segmentation")
    for name, stems in segmented.items():
        splits[name] = CocoSplit(source / "JPEGImages", VOC_CLASSES)
        for stem in stems:
            _add_masks(splits[name], source, stem)
    splits |= _box_splits(source, has_masks=bool(splits))
    if not splits:  # no lists, or lists of other names, as some tools write them
        splits = _convert_folder(source)
    _warn_of_missing(splits)
    return require_splits(splits, source, f"{VOC_LIST} and no *.xml", "VOC2012")


def _read_lists(folder: Path) -> dict[str, list[str]]:
    """Name of a list -> the images that it names."""
    paths = {name: folder / f"{name}.txt" for name in LISTS}
    return {name: read_stems(path) for name, path in paths.items() if path.is_file()}


def read_stems(path: Path) -> list[str]:
    """File names without ending that a list holds, one a line.

    Raises:
        DataError: it is no text file.
    """
    stems = []
    for line in read_listing(path).splitlines():
        # Lists of one class say behind each name whether the class is in the image: 1, -1, or 0 for a difficult one.
        name = PurePosixPath(re.sub(r"\s+(-1|0|1)$", "", line.strip()))
        # Names hold dots, so only what is known as the ending of an image is cut off.
        if name.suffix.lower() in IMAGE_ENDINGS:
            name = name.with_suffix("")
        if line.strip():
            stems.append(str(name))
    return stems


def _add_masks(split: CocoSplit, source: Path, stem: str) -> None:
    """Add an image with its masks."""
    path = source / "SegmentationClass" / f"{stem}.png"
    classes = read_ids(path)
    numbers = read_ids(source / "SegmentationObject" / f"{stem}.png")
    way_out = f"({UNPACK}, or take {stem} out of the lists)"
    if classes.shape != numbers.shape:
        one, other = (f"{ids.shape[1]} x {ids.shape[0]} px" for ids in (classes, numbers))
        raise DataError(
            f"{path}: is {one}, its namesake in SegmentationObject {other}; "
            f"both show one image {way_out}"
        )
    split.add_image(f"{stem}.jpg", classes.shape)
    for number in find_objects(path, numbers, lambda number: number not in (0, VOID)):
        mask = numbers == number
        # Void pixels become background; a stray pixel of another class does not matter.
        class_number = int(np.bincount(classes[mask] % VOID).argmax())
        if not 1 <= class_number <= len(VOC_CLASSES):
            raise DataError(
                f"{path}: has an object of class number {class_number}; "
                f"VOC's classes are 1 … {len(VOC_CLASSES)} {way_out}"
            )
        split.add_object(class_number - 1, mask=mask)


def _box_splits(source: Path, *, has_masks: bool) -> Splits:
    """The lists of `ImageSets/Main` with the boxes of their images."""
    stems = _read_lists(source / "ImageSets/Main")
    if not stems:
        return {}
    images = {}
    for name in stems:
        paths = [source / "Annotations" / f"{stem}.xml" for stem in stems[name]]
        images[name] = [_read_image(path) for path in paths]
    # Of all lists together, so that a label means the same in each of them.
    all_images = list(itertools.chain(*images.values()))
    class_names = _class_names(all_images)
    least = min((min(item.box) for image in all_images for item in image.objects), default=1)
    # Tools write folders that look like the archive. Only the archive has VOC's classes and counts pixels from 1, or
    # has masks.
    is_archive = has_masks or (set(class_names) <= set(VOC_CLASSES) and least >= 1)
    files = Names.below(source / "JPEGImages")
    splits: Splits = {}
    for name in stems:
        split = CocoSplit(source / "JPEGImages", VOC_CLASSES if is_archive else class_names)
        file_names = _find_files(source, stems[name], images[name], files)
        for image, file_name in zip(images[name], file_names, strict=True):
            _add_boxes(split, image, file_name, from_one=is_archive)
        splits[f"boxes_{name}"] = split
    return splits


def _convert_folder(source: Path) -> Splits:
    """A folder of a tool; nothing if it has no annotation file.

    The split `all`; or one for each of the folders `train`, `valid`, `val` and `test`, where all files are in these.
    """
    folder, paths = _find_annotations(source)
    images = [_read_image(path) for path in paths]
    if not images:
        return {}
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    # The first of these folders that has the first image, or else the last of them.
    for folder in (source / "JPEGImages", source / "images", source):
        if folder.is_dir():
            names = names_below(folder)
            files = Names(names)
            if files.alike(_find_file(stems[0], images[0].file_name, files)):
                break
    file_names = _find_files(source, stems, images, files)
    class_names = _class_names(images)
    # of files that are in none, ""
    tops = [stem.rpartition("/")[0].split("/")[0] for stem in stems]
    are_splits = SPLIT_FOLDERS.keys() >= set(tops)
    splits: Splits = {}
    for top, image, file_name in zip(tops, images, file_names, strict=True):
        name = SPLIT_FOLDERS[top] if are_splits else "all"
        split = splits.setdefault(name, CocoSplit(folder, class_names))
        _add_boxes(split, image, file_name, from_one=False)
    _warn_of_unannotated(source, names, file_names)
    if polygons := sum(image.polygons for image in images):
        what = f"the polygons of {polygons} objects are left out, their boxes are read"
        logger.warning("%s: %s (export COCO for both)", source, what)
    return splits


def _find_annotations(source: Path) -> tuple[Path, list[Path]]:
    """The annotation files of a folder of a tool, sorted, and the folder that they are in or below."""
    # LabelImg writes them where its user wants them, often beside the images.
    for folder in (source / "Annotations", source):
        names = [name for name in names_below(folder) if name.lower().endswith(".xml")]
        if names:
            break
    return folder, sorted(folder / name for name in names)


def _class_names(images: list[VocImage]) -> list[str]:
    return sorted({item.name for image in images for item in image.objects})


def _find_files(source: Path, stems: list[str], images: list[VocImage], files: Names) -> list[str]:
    """The file of each image, see `_find_file`; logs how many annotation files list another one."""
    names, others = [], []
    for stem, image in zip(stems, images, strict=True):
        names.append(_find_file(stem, image.file_name, files))
        listed = files.find(image.file_name) if image.file_name else None
        if listed not in (None, names[-1]):
            others.append((image.path, listed, names[-1]))
    if others:
        path, listed, name = others[0]
        logger.warning(
            f"{source}: {len(others)} of {len(images)} annotation files name the image of another one inside, as files "
            f"that were renamed do: {path} names {listed}, and {name} is taken (correct <filename> in them if that is "
            "wrong)"
        )
    return names


def _find_file(stem: str, listed: str, files: Names) -> str:
    """The file of an image: named like its annotation file, else as listed inside; if neither exists, the former name.

    Tools find annotations by file name, and people rename both files together; `<filename>` keeps the old name.
    """
    match = files.find(listed) if listed else None
    if match is not None and PurePosixPath(match).stem == PurePosixPath(stem).name:
        return match
    candidates = [f"{stem}{ending}" for ending in (".jpg", *sorted(IMAGE_ENDINGS))]
    for candidate in candidates:
        own = files.find(candidate)
        if own:
            return own
    return match or listed or candidates[0]


def _warn_of_unannotated(source: Path, names: list[str], used: list[str]) -> None:
    """Log how many images of a folder have no annotation file."""
    wanted = {name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS}
    left_out = sorted(wanted - set(used))
    if left_out:
        logger.warning(
            f"{source}: {len(left_out)} of {len(wanted)} images have no annotation file and are left out, such as "
            f"{left_out[0]} (an image without objects has one too, without <object>)"
        )


def _warn_of_missing(splits: Splits) -> None:
    """Log how many images of a data set are not in its folder."""
    for name, split in splits.items():
        files = [split.images / image["file_name"] for image in split.content["images"]]
        missing = [file for file in files if not file.is_file()]
        if missing:
            count = f"{len(missing)} of {len(files)} images"
            logger.warning(f"{name}: {count} are not there (looked for {missing[0]})")


def _add_boxes(split: CocoSplit, image: VocImage, file_name: str, *, from_one: bool) -> None:
    """Add an image with its boxes.

    Args:
        split: Gets the image.
        image: What its annotation file says.
        file_name: Its file, relative to the folder of images.
        from_one: Whether boxes count pixels from 1 and include their last pixel.
    """
    size = image.size or _measure(image, split.images / file_name)
    split.add_image(file_name, size)
    for item in image.objects:
        if item.name not in split.class_names:
            classes = ", ".join(split.class_names)
            raise DataError(
                f"{image.path}: is not an annotation of VOC: class {item.name!r} is none of "
                f"{classes} ({UNPACK})"
            )
        x1, y1, x2, y2 = item.box
        # Pixel 1 is our pixel 0; a box that includes it ends on its far side, which is our 1.
        box = [x1 - from_one, y1 - from_one, x2, y2]
        label = split.class_names.index(item.name)
        split.add_object(label, box=box, crowd=item.is_difficult)


def _measure(image: VocImage, path: Path) -> Size:
    """(height, width) of an image file whose annotation file does not say it."""
    try:
        return read_picture(path, lambda picture: (picture.height, picture.width))
    except UnreadableError as error:
        raise DataError(
            f"{image.path}: is not an annotation of VOC: {image.why_no_size}, and the image "
            f"{error.value} (correct or remove it)"
        ) from error


def _read_image(path: Path) -> VocImage:
    """Read an annotation file.

    Raises:
        DataError: it is missing or malformed.
    """
    rule = "an annotation of VOC is a small XML file"
    data = read_bytes(path, rule, limit=MAX_XML_BYTES)
    try:
        # Zero bytes stand between the letters of UTF-16.
        if b"<!ENTITY" in data.replace(b"\0", b""):
            raise ValueError(
                "it declares entities, of which a few can stand for more than memory holds"
            )
        root = ElementTree.fromstring(data)
        if root.tag == "annotations":
            raise ValueError(
                "it is of CVAT for images, with all of them in one file; export PASCAL VOC or COCO there"
            )
        size, why_no_size = _read_size(root)
        objects = [_read_object(element, path) for element in root.iter("object")]
    except (
        ElementTree.ParseError,
        ValueError,
        LookupError,
    ) as error:  # the last: unknown encoding
        raise DataError(
            f"{path}: is not an annotation of VOC: {error} (correct or remove it)"
        ) from error
    file_name = (root.findtext("filename") or "").strip()
    polygons = sum(element.find("polygon") is not None for element in root.iter("object"))
    return VocImage(path, file_name, size, why_no_size, objects, polygons)


def _read_object(element: ElementTree.Element, path: Path) -> VocObject:
    name = _text(element, "name")
    x1, y1, x2, y2 = (
        _number(element, f"bndbox/{side}", least=-MAX_SIDE_PX)
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    # Some tools write the corners in the order in which they were drawn.
    (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        warning = "%s: an object has difficult %r, which is neither 0 nor 1: it counts as 0"
        logger.warning(warning, path, difficult)
    return VocObject(name, (x1, y1, x2, y2), is_difficult=difficult == "1")


def _read_size(root: ElementTree.Element) -> tuple[Size | None, str]:
    """(height, width), or None and why: an element is missing, or 0."""
    try:
        height = _number(root, "size/height", least=1)
        width = _number(root, "size/width", least=1)
    except ValueError as error:
        texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
        # Tools that do not know the size leave it out, or write 0. Anything else is a mistake.
        if all(text.strip("0.") for text in texts):
            raise
        return None, str(error)
    return (int(height), int(width)), ""


def _number(element: ElementTree.Element, place: str, *, least: float) -> float:
    number = float(_text(element, place))
    if not least <= number <= MAX_SIDE_PX:
        raise ValueError(f"{place} is {number:g}, not {least:g} … {MAX_SIDE_PX}")
    return number


def _text(element: ElementTree.Element, place: str) -> str:
    text = (element.findtext(place) or "").strip()
    if not text:
        raise ValueError(f"an object or the file has no {place}")
    return text
