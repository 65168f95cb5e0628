"""Data sets in other formats -> COCO instances: Pascal VOC, SBD, Cityscapes, YOLO, and COCO itself cleaned.

Only annotation files are made; pictures stay where they are. What a source marks as not to be counted (VOC's difficult
objects, Cityscapes' groups) becomes a crowd region, which is neither trained on nor evaluated.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.checks import read_whole
from boxseg.coco.fix import clean_content
from boxseg.coco.mend import Changes
from boxseg.coco.segmentations import MAX_SIDE_PX
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.images import IMAGE_ENDINGS
from boxseg.files.names import Names, is_inside
from boxseg.files.reading import UnreadableError, read_bytes, read_picture
from boxseg.formats.matlab import StructureReader
from boxseg.formats.yolo import convert_yolo, read_listing

Format = Literal["coco", "voc", "sbd", "cityscapes", "yolo"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of VOC's and SBD's class numbers, from 1."""
CITYSCAPES_CLASSES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"
}  # fmt: skip
"""Label id -> name of the classes that have instances."""
VOID = 255
"""VOC's border pixels, which belong to no object."""
LISTS = ("train", "val", "trainval")
VOC_LIST = "ImageSets/Segmentation/train.txt"

MAX_OBJECTS = 2000
"""Objects of one picture; far fewer have been drawn in any, and each takes a look at all pixels."""
MAX_XML_BYTES = 2**22
MAX_MAT_BYTES = 2**26
"""What a file of SBD holds once it is decompressed; published ones have a few MB."""
UNPACK = "unpack the archive again"
ID_RULE = "masks are palette, grey or 16-bit pictures, a whole number for each pixel"
SBD_RULE = "`GTinst` has `Segmentation`, numbers from 1 on, and `Categories`, a class 1 … 20 for each of them"

logger = logging.getLogger(__name__)


def convert(
    source: Path, format_name: Format, *, exclude: frozenset[str] = frozenset()
) -> dict[str, CocoSplit]:
    """Read a data set in its published layout.

    Args:
        source: A COCO file; `VOC2012` of VOC's archive; `dataset` of SBD's; the folder with Cityscapes' `gtFine` and
            `leftImg8bit`; a YOLO folder.
        format_name: Which of them it is.
        exclude: File names (without folder and ending) of images to leave out, such as those that will be evaluated.

    Returns:
        Split name -> its images and objects: for VOC the lists of `ImageSets/Segmentation` and, as `boxes_…`, those of
        `ImageSets/Main`; for SBD `train`, `val` and both together as `trainval`; for Cityscapes `train` and `val`.

    Raises:
        DataError: a folder or file is missing or not in the format; names it.
    """
    return CONVERTERS[format_name](source, exclude)


def convert_coco(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """COCO: the sound entries with all their fields, boxes cut to their image; what is left out is logged."""
    content, changes = read_whole(source), Changes()

    def keep(image: dict[str, Any]) -> bool:
        return is_inside(image["file_name"]) and Path(image["file_name"]).stem not in exclude

    clean_content(content, changes, keep_image=keep)
    for line in changes.lines():
        logger.warning("%s: %s", source, line)
    split = CocoSplit(source.parent, [each["name"] for each in content["categories"]])
    split.content = content
    return {source.stem: split}


def convert_voc(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """Pascal VOC: segmented images with their masks, and all images with their boxes.

    The first take masks and classes from `SegmentationObject` and `SegmentationClass`, and tight boxes. The second take
    the boxes of `Annotations`, which count pixels from 1 and include their last one. With other classes than VOC's
    these are files of a tool, read as below.

    A folder without `ImageSets`, as annotation tools write it, becomes one split named `all`: its classes are those
    that occur, by name, and its boxes are corners in pixels from 0, as these tools write them.

    Source: the VOC2012 development kit's description of its files.
    """
    if not (source / "ImageSets").is_dir():
        return _convert_voc_folder(source, exclude)
    splits = {}
    for name in LISTS:
        path = source / "ImageSets/Segmentation" / f"{name}.txt"
        if path.is_file():
            splits[name] = split = CocoSplit(source / "JPEGImages", VOC_CLASSES)
            for stem in _listed(path, exclude):
                _add_voc_masks(split, source, stem)
    lists = {name: source / "ImageSets/Main" / f"{name}.txt" for name in LISTS}
    stems = {name: list(_listed(path, exclude)) for name, path in lists.items() if path.is_file()}
    boxes = {
        name: [_read_voc(source / "Annotations" / f"{stem}.xml") for stem in stems[name]]
        for name in stems
    }
    found = {name for images in boxes.values() for image in images for name, _, _ in image.objects}
    is_voc = found <= set(VOC_CLASSES) or bool(splits)  # with masks it is the archive itself
    files = Names.below(source / "JPEGImages")
    for name, images in boxes.items():
        splits[f"boxes_{name}"] = split = CocoSplit(
            source / "JPEGImages", VOC_CLASSES if is_voc else sorted(found)
        )
        for stem, image in zip(stems[name], images, strict=True):
            _add_voc_boxes(split, image, _voc_file(stem, image.file_name, files), from_one=is_voc)
    if not splits:  # lists of other names, as some tools write them
        return _convert_voc_folder(source, exclude)
    _tell_missing(splits)
    return splits


def convert_sbd(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """SBD: masks of `inst/*.mat`, and the tight boxes around them.

    Source: the description that comes with the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011).
    """
    lists = {name: source / f"{name}.txt" for name in ("train", "val")}
    stems = {name: list(_listed(path, exclude)) for name, path in lists.items() if path.is_file()}
    if len(stems) == 2:
        stems["trainval"] = stems["train"] + stems["val"]
    splits = {}
    for name, listed in stems.items():
        splits[name] = split = CocoSplit(source / "img", VOC_CLASSES)
        for stem in listed:
            _add_sbd_image(split, source / "inst" / f"{stem}.mat")
    return _require(splits, source, "train.txt", "benchmark_RELEASE/dataset")


def convert_cityscapes(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """Cityscapes: the eight classes that have instances, from `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`.

    A pixel is 1000 x label id + number of the instance; the bare label id marks a group, which becomes a crowd.

    Source: the description of the Cityscapes scripts.
    """
    splits = {}
    for name in ("train", "val"):
        paths = sorted((source / "gtFine" / name).glob("*/*_gtFine_instanceIds.png"))
        if paths:
            splits[name] = split = CocoSplit(
                source / "leftImg8bit", tuple(CITYSCAPES_CLASSES.values())
            )
            for path in paths:
                stem = path.name.removesuffix("_gtFine_instanceIds.png") + "_leftImg8bit"
                if stem not in exclude:
                    _add_cityscapes_image(split, path, f"{name}/{path.parent.name}/{stem}.png")
    return _require(
        splits,
        source,
        "gtFine/train/*/*_gtFine_instanceIds.png",
        "folder with gtFine and leftImg8bit",
    )


def _convert_voc_folder(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    paths = sorted((source / "Annotations").glob("*.xml")) or sorted(source.glob("*.xml"))
    paths = [path for path in paths if path.stem not in exclude]
    images = [_read_voc(path) for path in paths]
    names = sorted({name for image in images for name, _, _ in image.objects})
    folders = [
        each for each in (source / "JPEGImages", source / "images", source) if each.is_dir()
    ]
    files = [Names.below(folder) for folder in folders]
    best = next(
        (
            place
            for place, each in enumerate(files)
            if images and _is_there(paths[0].stem, images[0], each)
        ),
        -1,
    )
    split = CocoSplit(folders[best], names)
    for path, image in zip(paths, images, strict=True):
        _add_voc_boxes(
            split, image, _voc_file(path.stem, image.file_name, files[best]), from_one=False
        )
    splits = {"all": split} if images else {}
    _tell_missing(splits)
    return _require(splits, source, f"{VOC_LIST} and no *.xml", "VOC2012")


def _is_there(stem: str, image: VocImage, files: Names) -> bool:
    return bool(files.alike(_voc_file(stem, image.file_name, files)))


def _voc_file(stem: str, listed: str, files: Names) -> str:
    """The file of an image: as listed, or named like the annotation, if there is one."""
    names = (listed, *(f"{stem}{ending}" for ending in (".jpg", *sorted(IMAGE_ENDINGS))))
    return next(
        (found for found in map(files.find, filter(None, names)) if found), listed or f"{stem}.jpg"
    )


def _tell_missing(splits: dict[str, CocoSplit]) -> None:
    """Log how many images of a data set are not in its folder."""
    for name, split in splits.items():
        listed = [image["file_name"] for image in split.content["images"]]
        missing = [each for each in listed if not (split.images / each).is_file()]
        if missing:
            told = f"{len(missing)} of {len(listed)} images are not there (looked for {split.images / missing[0]})"
            logger.warning("%s: %s", name, told)


@dataclass(frozen=True)
class VocImage:
    """What an annotation file of VOC says."""

    path: Path
    file_name: str
    """Empty if it is not told."""
    size: tuple[int, int] | None
    """(height, width), pixels; None if it is not told."""
    why_no_size: str
    objects: list[tuple[str, list[float], bool]]
    """Name, corners and whether it is difficult of each object."""


CONVERTERS: dict[Format, Callable[[Path, frozenset[str]], dict[str, CocoSplit]]] = {
    "coco": convert_coco,
    "voc": convert_voc,
    "sbd": convert_sbd,
    "cityscapes": convert_cityscapes,
    "yolo": convert_yolo,
}
"""Format -> what reads it."""


def _add_voc_masks(split: CocoSplit, source: Path, stem: str) -> None:
    path = source / "SegmentationClass" / f"{stem}.png"
    classes, numbers = _read_ids(path), _read_ids(source / "SegmentationObject" / f"{stem}.png")
    way_out = f"({UNPACK}, or take {stem} out of the lists)"
    if classes.shape != numbers.shape:
        here, there = (f"{each.shape[1]} x {each.shape[0]} px" for each in (classes, numbers))
        raise DataError(
            f"{path}: is {here}, its namesake in SegmentationObject {there}; both show one image {way_out}"
        )
    split.add_image(f"{stem}.jpg", classes.shape)
    for number in _objects(path, numbers, lambda number: number not in (0, VOID)):
        mask = numbers == number
        category = int(np.bincount(classes[mask] % VOID).argmax())
        if not 1 <= category <= len(VOC_CLASSES):
            rule = f"has an object of class number {category}; VOC's classes are 1 … {len(VOC_CLASSES)}"
            raise DataError(f"{path}: {rule} {way_out}")
        split.add_object(category - 1, mask=mask)


def _add_voc_boxes(split: CocoSplit, image: VocImage, file_name: str, *, from_one: bool) -> None:
    """Boxes that count pixels from 1 include their last pixel."""
    split.add_image(file_name, image.size or _size_of(image, split.images / file_name))
    for name, (x1, y1, x2, y2), is_difficult in image.objects:
        if name not in split.class_names:
            rule = f"class {name!r} is none of {', '.join(split.class_names)}"
            raise DataError(
                f"{image.path}: is not an annotation of VOC: {rule} (unpack the archive again)"
            )
        box = [x1 - from_one, y1 - from_one, x2, y2]
        split.add_object(split.class_names.index(name), box=box, crowd=is_difficult)


def _size_of(image: VocImage, path: Path) -> tuple[int, int]:
    try:
        return read_picture(path, lambda picture: (picture.height, picture.width))
    except UnreadableError as error:
        told = f"{image.why_no_size}, and the image {error.value}"
        raise DataError(
            f"{image.path}: is not an annotation of VOC: {told} (correct or remove it)"
        ) from error


def _read_voc(path: Path) -> VocImage:
    data = read_bytes(path, "an annotation of VOC is a small XML file", limit=MAX_XML_BYTES)
    try:
        if b"<!ENTITY" in data.replace(b"\0", b""):
            raise ValueError(
                "it declares entities, of which a few can stand for more than memory holds"
            )
        root = ElementTree.fromstring(data)
        size, why_no_size = _read_size(root)
        objects = [
            (
                _text(each, "name"),
                [_number(each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")],
                _is_difficult(each, path),
            )
            for each in root.iter("object")
        ]
    except (
        ElementTree.ParseError,
        ValueError,
        LookupError,
    ) as error:  # the last of an unknown encoding
        raise DataError(
            f"{path}: is not an annotation of VOC: {error} (correct or remove it)"
        ) from error
    return VocImage(path, (root.findtext("filename") or "").strip(), size, why_no_size, objects)


def _read_size(root: ElementTree.Element) -> tuple[tuple[int, int] | None, str]:
    """(height, width), or why it is not told: an element is missing, or 0."""
    told = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    try:
        return (int(_number(root, "size/height", 1)), int(_number(root, "size/width", 1))), ""
    except ValueError as error:
        if all(text.strip("0.") for text in told):
            raise
        return None, str(error)


def _is_difficult(entry: ElementTree.Element, path: Path) -> bool:
    told = (entry.findtext("difficult") or "0").strip()
    if told not in ("0", "1"):
        logger.warning(
            "%s: an object has difficult %r, which is neither 0 nor 1: it counts as 0", path, told
        )
    return told == "1"


def _number(entry: ElementTree.Element, place: str, least: float = -MAX_SIDE_PX) -> float:
    number = float(_text(entry, place))
    if not least <= number <= MAX_SIDE_PX:
        raise ValueError(f"{place} is {number:g}, not {least:g} … {MAX_SIDE_PX}")
    return number


def _text(entry: ElementTree.Element, place: str) -> str:
    text = (entry.findtext(place) or "").strip()
    if not text:
        raise ValueError(f"an object or the file has no {place}")
    return text


def _add_sbd_image(split: CocoSplit, path: Path) -> None:
    numbers, classes = _read_sbd(path)
    split.add_image(f"{path.stem}.jpg", numbers.shape)
    for number, category in enumerate(classes, start=1):
        mask = numbers == number
        if mask.any():
            split.add_object(category - 1, mask=mask)


def _read_sbd(path: Path) -> tuple[NDArray[Any], list[int]]:
    """Numbers of objects (h, w), and the class number of each."""
    data = read_bytes(path, SBD_RULE)
    try:
        truth = StructureReader(data, "GTinst", most_bytes=MAX_MAT_BYTES)
        numbers, classes = truth.matrix("Segmentation"), truth.matrix("Categories").ravel()
        if numbers.ndim != 2 or not numbers.size:
            raise ValueError(f"Segmentation has the shape {numbers.shape}")
        if (
            len(classes) > MAX_OBJECTS
            or not np.isin(classes, range(1, len(VOC_CLASSES) + 1)).all()
        ):
            raise ValueError(f"Categories are {classes[:9].tolist()}")
    except ValueError as error:
        raise DataError(
            f"{path}: is not an instance file of SBD: {error}; {SBD_RULE} ({UNPACK})"
        ) from error
    return numbers, [int(each) for each in classes.tolist()]


def _add_cityscapes_image(split: CocoSplit, path: Path, file_name: str) -> None:
    ids = _read_ids(path)
    split.add_image(file_name, ids.shape)
    label_of = {label_id: label for label, label_id in enumerate(CITYSCAPES_CLASSES)}
    for number in _objects(
        path, ids, lambda number: (number if number < 1000 else number // 1000) in label_of
    ):
        label_id, is_group = (number, True) if number < 1000 else (number // 1000, False)
        split.add_object(label_of[label_id], mask=ids == number, crowd=is_group)


def _objects(path: Path, ids: NDArray[Any], is_wanted: Callable[[int], bool]) -> list[int]:
    """The numbers in a picture that are wanted, in order."""
    found = [number for number in np.unique(ids).tolist() if is_wanted(number)]
    if len(found) > MAX_OBJECTS:
        raise DataError(
            f"{path}: has {len(found)} objects, more than {MAX_OBJECTS}; {ID_RULE} ({UNPACK})"
        )
    return found


def _read_ids(path: Path) -> NDArray[Any]:
    """Whole numbers (h, w), none negative, of a palette, grey or 16-bit picture."""
    try:
        return read_picture(path, lambda picture: _ids(path, picture), ID_RULE, UNPACK)
    except UnreadableError as error:
        raise DataError(
            f"{path}: the picture {error.value}; {ID_RULE} ({error.way_out})"
        ) from error


def _ids(path: Path, picture: Image.Image) -> NDArray[Any]:
    if picture.mode not in ("P", "L", "I") and not picture.mode.startswith("I;16"):
        raise UnreadableError(path, f"has pixels of mode {picture.mode}", ID_RULE, UNPACK)
    ids = np.asarray(picture)
    if ids.min() < 0:
        raise UnreadableError(path, f"has the number {ids.min()}", ID_RULE, UNPACK)
    return ids


def _listed(path: Path, exclude: frozenset[str]) -> Iterable[str]:
    """File names without ending that a list holds, one a line, perhaps with -1, 0 or 1 behind it."""
    lines = (re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in read_listing(path).splitlines())
    stems = (PurePosixPath(line) for line in lines if line)
    names = (
        str(each.with_suffix("")) if each.suffix.lower() in IMAGE_ENDINGS else str(each)
        for each in stems
    )
    return (name for name in names if name not in exclude)


def _require(
    splits: dict[str, CocoSplit], source: Path, sign: str, folder: str
) -> dict[str, CocoSplit]:
    if not splits:
        raise DataError(
            f"{source}: has no {sign}; the source is the {folder} of the archive (correct the path)"
        )
    return splits
