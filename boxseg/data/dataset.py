"""COCO boxes as samples; masks of the file are read to measure with, and to train with only where asked for."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from boxseg.coco.checks import MASKS_RULE, MASKS_WAY_OUT, read_annotations, read_well_formed
from boxseg.coco.masks import decode_segmentation, encode_segmentation
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.files.reading import (
    COLOURS,
    DOES_NOT_EXIST,
    IMAGE_RULE,
    NO_COLOURS,
    UnreadableError,
    is_number,
    read_picture,
)
from boxseg.structures import DrawnMasks, Sample

T = TypeVar("T")


@dataclass(frozen=True)
class PackedMasks:
    """Segmentations of all boxes as JSON in one array: small, and shared by forked loader processes."""

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """(A + 1,): the text of box i is `text[ends[i]:ends[i + 1]]`, empty where no mask was drawn."""


KEPT_BYTES = 2**27
"""A data set whose images take no more than this once decoded is decoded once in each process."""


class CocoBoxes(Dataset[Sample]):
    """Images and boxes of a COCO instance file.

    The annotation file is read once, into arrays; segmentations are dropped while reading, or kept packed and
    decoded image by image where `use_masks` asks for them. Crowd regions are no
    instances and never become boxes. Boxes are clipped to their image and those without area are left out:
    `boxseg.coco.checks` reports them beforehand. Images are used as stored: an EXIF rotation is not applied, because
    COCO boxes refer to stored pixels. Picklable, so loader processes can have it.

    Args:
        source: Image folder and annotation file.
        train: Leave out images without boxes; evaluation keeps them.
        use_masks: Give samples the drawn masks of the file.
        keep_bytes: Keep decoded images if all together take no more than this; samples share their memory.

    Raises:
        DataError: the annotation file is missing or not a COCO instance file, or has no mask for `use_masks`.
    """

    def __init__(
        self,
        source: CocoSource,
        *,
        train: bool,
        use_masks: bool = False,
        keep_bytes: int = KEPT_BYTES,
    ) -> None:
        self.source = source
        self.train = train
        self.use_masks = use_masks
        content = read_annotations(source.annotations, keep_masks=use_masks)
        try:
            self._read(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{source.annotations}: an entry is malformed ({type(error).__name__}: {error}); COCO instances have "
                "ids, sizes and boxes as numbers (`boxseg data check` names the entries)"
            ) from error
        self._keeps = 3 * int(self.sizes.prod(axis=1).sum()) <= keep_bytes
        # fingerprint of the file, and its image
        self._kept: dict[int, tuple[tuple[int, int], Tensor]] = {}
        self._masks = self._pack_masks(content) if use_masks else None
        if self._masks is not None and not len(self._masks.text):
            raise DataError(f"{source.annotations}: has no mask; {MASKS_RULE} ({MASKS_WAY_OUT})")

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The image with its boxes.

        Raises:
            DataError: the image cannot be read, or has another size than the annotation file says; a mask that is to
                be used cannot be decoded.
        """
        path, size = self.image_path(index), self.size(index)
        try:
            image = self._image(index, path)
        except DataError as error:
            raise DataError(f"image {self.image_id(index)}: {error}") from error
        found = (image.shape[1], image.shape[2])
        if found != size:
            raise DataError(
                f"{path}: image {self.image_id(index)} is {found[1]} x {found[0]} px, but {self.source.annotations} "
                f"says {size[1]} x {size[0]}; boxes refer to the stored pixels (correct the entry or replace the file)"
            )
        boxes, labels = self.boxes_and_labels(index)
        return Sample(
            image=image,
            boxes=boxes,
            labels=labels,
            image_id=self.image_id(index),
            original_size=size,
            drawn=self.drawn_masks(index) if self.use_masks else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # the next process reads for itself

    def _image(self, index: int, path: Path) -> Tensor:
        """The image of the file as it is now, perhaps decoded before."""
        found = _fingerprint(path) if self._keeps else None
        if found is not None and index in self._kept and self._kept[index][0] == found:
            return self._kept[index][1]
        image = read_image(path)
        # others may be far larger than listed
        if found is not None and image.shape[1:] == self.size(index):
            self._kept[index] = found, image
        return image

    def boxes_and_labels(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes float (N, 4) and labels int64 (N,) of the image, as in its sample; the image is not read."""
        boxes = slice(self._box_starts[index], self._box_starts[index + 1])
        return torch.from_numpy(self._boxes[boxes].copy()), torch.from_numpy(
            self._labels[boxes].copy()
        )

    def image_path(self, index: int) -> Path:
        """File of the image."""
        name = self.file_name(index)
        if not is_inside(name):
            raise DataError(
                f"{self.source.annotations}: image {self.image_id(index)} has file name {name!r}; file names are "
                "relative to the image folder and stay inside (correct the name)"
            )
        return self.source.images / name

    def file_name(self, index: int) -> str:
        """File name of the image, as the annotation file says it."""
        return str(self._file_names[index])

    def image_id(self, index: int) -> int:
        """Id of the image in the COCO file."""
        return int(self._image_ids[index])

    def index_of(self, image_id: int) -> int:
        """Position of an image, given its COCO id."""
        found = np.flatnonzero(self._image_ids == image_id)
        if len(found) == 0:
            raise DataError(
                f"{self.source.annotations}: no image has id {image_id} (without boxes it is left out)"
            )
        return int(found[0])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image in pixels, as the annotation file says."""
        height, width = self.sizes[index]
        return int(height), int(width)

    def annotation_ids(self, index: int) -> list[int]:
        """COCO ids of the annotations behind the sample's boxes, in the same order."""
        return self._annotation_ids[self._box_starts[index] : self._box_starts[index + 1]].tolist()

    def true_masks(self, index: int) -> Tensor | None:
        """Drawn masks of all boxes of the sample, or None if one has none; to measure with, see `drawn_masks`."""
        drawn = self.drawn_masks(index)
        return drawn.mask if bool(drawn.present.all()) else None

    def drawn_masks(self, index: int) -> DrawnMasks:
        """Drawn masks in the order and at the size of the sample.

        Without `use_masks` the first call reads the annotation file again.

        Raises:
            DataError: a segmentation cannot be decoded.
        """
        if self._masks is None:
            self._masks = self._pack_masks(
                read_annotations(self.source.annotations, keep_masks=True)
            )
        size = self.size(index)
        drawn = list(self._drawn(index, decode_segmentation))
        mask, present = (
            torch.zeros((len(drawn), *size), dtype=torch.bool),
            torch.zeros(len(drawn), dtype=torch.bool),
        )
        for row, found in enumerate(drawn):
            if found is not None:
                mask[row], present[row] = torch.from_numpy(found), True
        return DrawnMasks(mask, present)

    def drawn_rles(self, index: int) -> list[dict[str, Any] | None]:
        """The drawn mask of each box of the sample as compressed run lengths; None where there is none.

        Raises:
            DataError: a segmentation cannot be decoded.
        """
        return list(self._drawn(index, encode_segmentation))

    def _drawn(self, index: int, use: Callable[[Any, tuple[int, int]], T]) -> Iterator[T | None]:
        """What `use` makes of the segmentation of each box, and of the size of its image."""
        if self._masks is None:
            self._masks = self._pack_masks(
                read_annotations(self.source.annotations, keep_masks=True)
            )
        first = self._box_starts[index]
        for row, annotation_id in enumerate(self.annotation_ids(index), start=first):
            text = self._masks.text[slice(*self._masks.ends[row : row + 2])].tobytes()
            try:
                yield use(json.loads(text), self.size(index)) if text else None
            except DataError as error:
                raise DataError(
                    f"{self.source.annotations}: annotation {annotation_id} {error}"
                ) from error

    def _pack_masks(self, content: dict[str, Any]) -> PackedMasks:
        texts = {
            entry["id"]: entry.pop("mask_text")
            for entry in content["annotations"]
            if "mask_text" in entry
        }
        ordered = [
            texts.get(annotation_id, b"") for annotation_id in self._annotation_ids.tolist()
        ]
        return PackedMasks(
            np.frombuffer(b"".join(ordered), dtype=np.uint8),
            np.cumsum([0, *map(len, ordered)], dtype=np.int64),
        )

    def _read(self, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in categories)
        """Category id of each label."""
        self.class_names: tuple[str, ...] = tuple(category["name"] for category in categories)
        """Name of each label."""
        boxes, labels, annotation_ids, image_rows = _read_boxes(content, self.category_ids)
        images = content["images"]
        counts = np.bincount(image_rows, minlength=len(images))
        kept = np.flatnonzero(counts) if self.train else np.arange(len(images))
        order = np.argsort(image_rows, kind="stable")
        self._boxes, self._labels, self._annotation_ids = (
            boxes[order],
            labels[order],
            annotation_ids[order],
        )
        self._box_starts = np.concatenate([[0], np.cumsum(counts[kept])])
        self._image_ids = np.array([image["id"] for image in images], dtype=np.int64)[kept]
        self.sizes: NDArray[np.int64] = _image_sizes(images)[kept]
        """(M, 2): height, width of all images in pixels."""
        self._file_names = np.array([image["file_name"] for image in images], dtype=np.str_)[kept]


def load_boxes(source: CocoSource, *, train: bool, use_masks: bool = False) -> CocoBoxes:
    """`CocoBoxes`, read once per process as long as the annotation file stays the same: trials share it.

    A file counts as the same by its path, size and time of change. Arguments and errors as for `CocoBoxes`.
    """
    found = _fingerprint(source.annotations)
    if found is None:
        return CocoBoxes(source, train=train, use_masks=use_masks)
    return _load_boxes(source, train, use_masks, found)


def _fingerprint(path: Path) -> tuple[int, int] | None:
    """Time of change and size of a file; None where there is none, which reading it then tells."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=4)
def _load_boxes(
    source: CocoSource, train: bool, use_masks: bool, fingerprint: tuple[int, int]
) -> CocoBoxes:
    return CocoBoxes(source, train=train, use_masks=use_masks)


def read_image(path: Path) -> Tensor:
    """An image file as uint8 (3, h, w) RGB, in memory pixel by pixel: so resizing takes a third of the time.

    Grey, palette, CMYK and 16-bit images are converted; transparency and EXIF rotation are ignored. Colour JPEG files
    are decoded by torchvision: the same pixels as PIL's in nine tenths of the time.

    Raises:
        DataError: the file is missing, truncated, in no known format, or its pixels are no colours.
    """
    try:
        return read_picture(path, lambda picture: _rgb_image(path, picture))
    except UnreadableError as error:
        if error.value == DOES_NOT_EXIST:
            raise DataError(
                f"{path}: the image does not exist (add it, or remove it from the list)"
            ) from error
        raise DataError(
            f"{path}: the image {error.value}; {IMAGE_RULE} ({error.way_out})"
        ) from error


def _rgb_image(path: Path, picture: Image.Image) -> Tensor:
    if picture.format == "JPEG" and picture.mode == "RGB":
        with contextlib.suppress(RuntimeError):  # what libjpeg refuses, PIL names better
            return decode_jpeg(
                torch.from_numpy(np.fromfile(path, dtype=np.uint8)), mode=ImageReadMode.RGB
            )
    if picture.mode in NO_COLOURS:
        raise UnreadableError(path, NO_COLOURS[picture.mode], *COLOURS)
    return torch.from_numpy(_rgb_pixels(picture)).permute(2, 0, 1)


def coco_ground_truth(source: CocoSource) -> COCO:
    """The annotation file as pycocotools wants it for evaluation, with `area` and `iscrowd` filled in where missing.

    Annotations are numbered from 1: pycocotools takes the id 0 for "no match".

    Raises:
        DataError: the annotation file is missing or not a COCO instance file, or a segmentation cannot be decoded.
    """
    ground_truth = COCO()
    content = ground_truth.dataset = read_well_formed(source.annotations, unlisted=True)
    content.setdefault("info", {})
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))
        area = annotation["bbox"][2] * annotation["bbox"][3]
        # a crowd's image may not be listed: nobody looks at it then
        size = sizes.get(annotation["image_id"])
        if annotation.get("segmentation") and size is not None:
            try:
                area = float(coco_mask.area(encode_segmentation(annotation["segmentation"], size)))
            except DataError as error:
                raise DataError(
                    f"{source.annotations}: annotation {annotation['id']} {error}"
                ) from error
        if not is_number(annotation.get("area")):
            annotation["area"] = float(area)
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ground_truth.createIndex()
    return ground_truth


def require_same_classes(train: CocoBoxes, val: CocoBoxes) -> None:
    """Raise DataError unless both sources list the same categories: labels would mean different classes."""
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        raise DataError(
            f"{val.source.annotations}: categories {_listing(val)} differ from those of {train.source.annotations}, "
            f"{_listing(train)}; both files need the same ids and names (copy the list of categories)"
        )


def _read_boxes(
    content: dict[str, Any], category_ids: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Clipped boxes (A, 4), labels, annotation ids and image rows (A,) of all instances that have an area."""
    row_of = {image["id"]: row for row, image in enumerate(content["images"])}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    instances = [
        annotation for annotation in content["annotations"] if not annotation.get("iscrowd")
    ]
    image_rows = np.array(
        [row_of[annotation["image_id"]] for annotation in instances], dtype=np.int64
    )
    labels = np.array(
        [label_of[annotation["category_id"]] for annotation in instances], dtype=np.int64
    )
    annotation_ids = np.array([annotation["id"] for annotation in instances], dtype=np.int64)
    xywh = np.array([annotation["bbox"] for annotation in instances], dtype=np.float64).reshape(
        -1, 4
    )
    limits = _image_sizes(content["images"])[image_rows][:, ::-1]  # (A, 2): width, height
    top_left = xywh[:, :2].clip(0, limits)
    bottom_right = (xywh[:, :2] + xywh[:, 2:]).clip(0, limits)
    boxes = np.concatenate([top_left, bottom_right], axis=1).astype(np.float32)
    sound = (
        np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    )
    return boxes[sound], labels[sound], annotation_ids[sound], image_rows[sound]


def _image_sizes(images: list[dict[str, Any]]) -> NDArray[np.int64]:
    return np.array(
        [(image["height"], image["width"]) for image in images], dtype=np.int64
    ).reshape(-1, 2)


def _rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 (h, w, 3), writable."""
    # PIL would clip 16 bits to 8 instead of scaling them
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        high_byte = (np.asarray(picture).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(high_byte[..., None], 3, axis=2)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _listing(dataset: CocoBoxes) -> str:
    pairs = [
        f"{i} {name}" for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    return ", ".join(pairs[:5]) + (", …" if len(pairs) > 5 else "")
