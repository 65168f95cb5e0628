"""Published data sets in their own formats -> COCO instances: Pascal VOC, SBD and Cityscapes.

Only annotation files are made; pictures stay where they are. What a source marks as not to be counted (VOC's difficult
objects, Cityscapes' groups) becomes a crowd region, which is neither trained on nor evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io.matlab import MatReadError
from scipy.optimize import linear_sum_assignment

from boxseg.errors import DataError
from boxseg.ops.boxes import box_iou

Format = Literal["voc", "sbd", "cityscapes"]

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
MIN_MATCH = 0.5
"""IoU of a VOC box and the box around a mask from which on they are one object."""


@dataclass
class CocoSplit:
    """A COCO instance file in the making."""

    images: Path
    """Folder that the file names are relative to."""
    class_names: Sequence[str]
    """Category ids count from 1 in this order."""
    content: dict[str, list[dict[str, Any]]] = field(init=False)

    def __post_init__(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.class_names, start=1)]
        self.content = {"images": [], "annotations": [], "categories": categories}

    def add_image(self, file_name: str, size: tuple[int, int]) -> None:
        """The next image, (height, width) in pixels; objects added from now on are in it."""
        number = len(self.content["images"]) + 1
        entry = {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}
        self.content["images"].append(entry)

    def add_object(
        self, label: int, box: Sequence[float], mask: NDArray[np.bool_] | None = None, *, crowd: bool = False
    ) -> None:
        """An object of the last image: label from 0, x1 y1 x2 y2 in pixels, bool (h, w) where there is a mask."""
        x1, y1, x2, y2 = map(float, box)
        entry: dict[str, Any] = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": len(self.content["images"]),
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        if mask is not None:
            encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            counts = encoded["counts"].decode()
            entry |= {"area": float(mask.sum()), "segmentation": {"size": list(mask.shape), "counts": counts}}
        self.content["annotations"].append(entry)


def convert(source: Path, format_name: Format, *, exclude: frozenset[str] = frozenset()) -> dict[str, CocoSplit]:
    """Read a data set in its published layout.

    Args:
        source: `VOC2012` of VOC's archive; `dataset` of SBD's; the folder with Cityscapes' `gtFine` and `leftImg8bit`.
        format_name: Which of them it is.
        exclude: File names (without folder and ending) of images to leave out, such as those that will be evaluated.

    Returns:
        Split name -> its images and objects: for VOC the lists of `ImageSets/Segmentation` and, as `boxes_…`, those of
        `ImageSets/Main`; for SBD `train`, `val` and both together as `trainval`; for Cityscapes `train` and `val`.

    Raises:
        DataError: a folder or file is missing or not in the format; names it.
    """
    return CONVERTERS[format_name](source, exclude)


def convert_voc(source: Path, exclude: frozenset[str]) -> dict[str, CocoSplit]:
    """Pascal VOC: segmented images with their masks, and all images with their boxes.

    The first take masks and classes from `SegmentationObject` and `SegmentationClass`, and tight boxes. The second take
    the boxes of `Annotations`, each with the mask that fits it best where the image is segmented. Boxes count pixels
    from 1 and include their last one.

    Source: the VOC2012 development kit's description of its files.
    """
    splits = {}
    for prefix, folder, add in (("", "Segmentation", _add_voc_masks), ("boxes_", "Main", _add_voc_boxes)):
        for name in ("train", "val", "trainval"):
            path = source / "ImageSets" / folder / f"{name}.txt"
            if path.is_file():
                splits[prefix + name] = split = CocoSplit(source / "JPEGImages", VOC_CLASSES)
                for stem in _listed(path, exclude):
                    add(split, source, stem)
    return _require(splits, source, "ImageSets/Segmentation/train.txt", "VOC2012")


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
            splits[name] = split = CocoSplit(source / "leftImg8bit", tuple(CITYSCAPES_CLASSES.values()))
            for path in paths:
                stem = path.name.removesuffix("_gtFine_instanceIds.png") + "_leftImg8bit"
                if stem not in exclude:
                    _add_cityscapes_image(split, path, f"{name}/{path.parent.name}/{stem}.png")
    return _require(splits, source, "gtFine/train/*/*_gtFine_instanceIds.png", "folder with gtFine and leftImg8bit")


CONVERTERS: dict[Format, Callable[[Path, frozenset[str]], dict[str, CocoSplit]]] = {
    "voc": convert_voc,
    "sbd": convert_sbd,
    "cityscapes": convert_cityscapes,
}
"""Format -> what reads it."""


def _add_voc_masks(split: CocoSplit, source: Path, stem: str) -> None:
    classes = _read_ids(source / "SegmentationClass" / f"{stem}.png")
    split.add_image(f"{stem}.jpg", classes.shape)
    for mask in _voc_masks(source / "SegmentationObject" / f"{stem}.png"):
        category = int(np.bincount(classes[mask] % VOID).argmax())
        if not 1 <= category <= len(VOC_CLASSES):
            raise DataError(f"{source}: {stem} has an object of class number {category}; VOC's classes are 1 … 20")
        split.add_object(category - 1, _tight_box(mask), mask)


def _add_voc_boxes(split: CocoSplit, source: Path, stem: str) -> None:
    path = source / "Annotations" / f"{stem}.xml"
    try:
        root = ElementTree.parse(path).getroot()
        size = (_number(root, "size/height"), _number(root, "size/width"))
        objects = [(_label(each), _voc_box(each), each.findtext("difficult") == "1") for each in root.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is not an annotation of VOC: {error} (unpack the archive again)") from error
    split.add_image(f"{stem}.jpg", (int(size[0]), int(size[1])))
    picture = source / "SegmentationObject" / f"{stem}.png"
    mask_of = _match([box for _, box, _ in objects], _voc_masks(picture) if picture.is_file() else [])
    for index, (label, box, difficult) in enumerate(objects):
        split.add_object(label, box, mask_of.get(index), crowd=difficult)


def _label(entry: ElementTree.Element) -> int:
    name = entry.findtext("name")
    if name not in VOC_CLASSES:
        raise ValueError(f"class {name!r} is none of {', '.join(VOC_CLASSES)}")
    return VOC_CLASSES.index(name)


def _voc_box(entry: ElementTree.Element) -> list[float]:
    x1, y1, x2, y2 = (_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return [x1 - 1, y1 - 1, x2, y2]


def _number(entry: ElementTree.Element, place: str) -> float:
    text = entry.findtext(place)
    if text is None:
        raise ValueError(f"an object or the file has no {place}")
    return float(text)


def _voc_masks(path: Path) -> list[NDArray[np.bool_]]:
    """Masks of a picture of object numbers."""
    numbers = _read_ids(path)
    return [numbers == number for number in np.unique(numbers) if number not in (0, VOID)]


def _match(boxes: list[list[float]], masks: list[NDArray[np.bool_]]) -> dict[int, NDArray[np.bool_]]:
    """Index of a box -> the mask that fits it; each mask goes to one box, so that the sum of all IoUs is largest."""
    if not boxes or not masks:
        return {}
    found = torch.tensor([_tight_box(mask) for mask in masks])
    overlap = box_iou(torch.tensor(boxes), found).numpy()
    pairs = zip(*linear_sum_assignment(-overlap), strict=True)
    return {int(box): masks[mask] for box, mask in pairs if overlap[box, mask] >= MIN_MATCH}


def _add_sbd_image(split: CocoSplit, path: Path) -> None:
    try:
        truth = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["GTinst"]
        numbers, classes = np.asarray(truth.Segmentation), np.atleast_1d(truth.Categories)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(
            f"{path}: is not an instance file of SBD ({type(error).__name__}: {error}; unpack the archive again)"
        ) from error
    split.add_image(f"{path.stem}.jpg", numbers.shape)
    for number, category in enumerate(classes.tolist(), start=1):
        mask = numbers == number
        if mask.any():
            split.add_object(int(category) - 1, _tight_box(mask), mask)


def _add_cityscapes_image(split: CocoSplit, path: Path, file_name: str) -> None:
    ids = _read_ids(path)
    split.add_image(file_name, ids.shape)
    label_of = {label_id: label for label, label_id in enumerate(CITYSCAPES_CLASSES)}
    for number in np.flatnonzero(np.bincount(ids.ravel())).tolist():
        label_id, is_group = (number, True) if number < 1000 else (number // 1000, False)
        if label_id in label_of:
            mask = ids == number
            split.add_object(label_of[label_id], _tight_box(mask), mask, crowd=is_group)


def _read_ids(path: Path) -> NDArray[np.int64]:
    """Whole numbers (h, w) of a palette or 16-bit picture."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the picture cannot be read: {error} (unpack the archive again)") from error


def _tight_box(mask: NDArray[np.bool_]) -> list[float]:
    """x1 y1 x2 y2 around the True pixels of bool (h, w)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def _listed(path: Path, exclude: frozenset[str]) -> Iterable[str]:
    """File names without ending that a list holds, one a line."""
    return (stem for stem in path.read_text(encoding="utf-8").split() if stem not in exclude)


def _require(splits: dict[str, CocoSplit], source: Path, sign: str, folder: str) -> dict[str, CocoSplit]:
    if not splits:
        raise DataError(f"{source}: has no {sign}; the source is the {folder} of the archive (correct the path)")
    return splits
