"""COCO boxes as samples; masks of the file are read to measure with, and to train with only where asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from boxseg.coco.checks import MASKS_RULE, MASKS_WAY_OUT, read_annotations
from boxseg.coco.entries import Content, Entry, objects_of
from boxseg.coco.masks import Rle, decode_segmentation, encode_segmentation
from boxseg.coco.segmentations import Size
from boxseg.config.method import CocoSource
from boxseg.data.images import read_image
from boxseg.errors import DataError, naming
from boxseg.files.names import INSIDE_RULE, is_inside
from boxseg.structures import DrawnMasks, Sample

T = TypeVar("T")


@dataclass(frozen=True)
class PackedMasks:
    """Segmentations of all boxes as JSON in one array: small, and shared by forked loader processes."""

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """(A + 1,): the text of box i is `text[ends[i]:ends[i + 1]]`, empty where no mask was drawn."""

    @classmethod
    def of(cls, content: Content, annotation_ids: NDArray[np.int64]) -> PackedMasks:
        """The masks of these annotations, in this order.

        Args:
            content: With the `mask_text` that `read_annotations` keeps; it is taken out, as it is large.
            annotation_ids: (A,).
        """
        texts: dict[int, bytes] = {}
        for annotation in content["annotations"]:
            if "mask_text" in annotation:
                texts[annotation["id"]] = annotation.pop("mask_text")
        ordered = [texts.get(annotation_id, b"") for annotation_id in annotation_ids.tolist()]
        lengths = [len(text) for text in ordered]
        return cls(
            text=np.frombuffer(b"".join(ordered), dtype=np.uint8),
            ends=np.cumsum([0, *lengths], dtype=np.int64),
        )

    def __getitem__(self, index: int) -> Any:
        """The segmentation of a box; None where no mask was drawn."""
        start, end = self.ends[index : index + 2]
        text = self.text[start:end].tobytes()
        return json.loads(text) if text else None


class CocoBoxes(Dataset[Sample]):
    """Images and boxes of a COCO instance file.

    The annotation file is read once, into arrays; segmentations are dropped while reading, or kept packed and
    decoded image by image where `use_masks` asks for them. Crowd regions are not instances and never become boxes.
    Boxes are clipped to their image and those without area are left out: `boxseg.coco.checks` reports them beforehand.
    Images are used as stored: an EXIF rotation is not applied, because COCO boxes refer to stored pixels. A data set
    can be pickled, so that loader processes can have it.

    Args:
        source: Image folder and annotation file.
        train: Leave out images without boxes; evaluation keeps them.
        use_masks: Give samples the drawn masks of the file.

    Raises:
        DataError: the annotation file is missing or not a COCO instance file, or has no mask for `use_masks`.

    >>> from tempfile import TemporaryDirectory
    >>> from boxseg.config.method import ToyConfig
    >>> from boxseg.data.toy import ensure_toy
    >>> with TemporaryDirectory() as folder:
    ...     train, val = ensure_toy(Path(folder), ToyConfig(train_images=2, val_images=1, size=64))
    ...     data = CocoBoxes(train, train=True)
    ...     len(data), tuple(data[0].image.shape), data.class_names[:3]
    (2, (3, 64, 64), ('disc', 'square', 'star'))
    """

    category_ids: tuple[int, ...]
    """Category id of each label."""
    class_names: tuple[str, ...]
    """Name of each label."""
    sizes: NDArray[np.int64]
    """(M, 2): height, width of all images in pixels."""

    def __init__(self, source: CocoSource, *, train: bool, use_masks: bool = False) -> None:
        self.source = source
        self.train = train
        self.use_masks = use_masks
        content = read_annotations(source.annotations, keep_masks=use_masks)
        try:
            self._read(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{source.annotations}: an entry is malformed ({type(error).__name__}: {error}); "
                "COCO instances have ids, sizes and boxes as numbers "
                "(`boxseg data check` names the entries)"
            ) from error
        self._masks: PackedMasks | None = None
        if use_masks:
            self._masks = PackedMasks.of(content, self._annotation_ids)
            if not len(self._masks.text):
                place = f"{source.annotations}: has no mask"
                raise DataError(f"{place}; {MASKS_RULE} ({MASKS_WAY_OUT})")

    def _read(self, content: Content) -> None:
        """Turn the entries into arrays: many loader processes share these, and copy lists of objects."""
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = tuple(category["id"] for category in categories)
        self.class_names = tuple(category["name"] for category in categories)
        images = content["images"]
        counts = np.bincount(self._read_boxes(content), minlength=len(images))
        kept_rows = np.flatnonzero(counts) if self.train else np.arange(len(images))
        # (M + 1,): the boxes of image i are `_boxes[_box_starts[i]:_box_starts[i + 1]]`
        self._box_starts = np.concatenate([[0], np.cumsum(counts[kept_rows])])
        file_names = np.array([image["file_name"] for image in images], dtype=np.str_)
        self._image_ids = _integers([image["id"] for image in images])[kept_rows]
        self._file_names = file_names[kept_rows]
        self.sizes = _image_sizes(images)[kept_rows]

    def _read_boxes(self, content: Content) -> NDArray[np.int64]:
        """Keep all instances that have an area, image by image; returns the place of the image of each in the file."""
        row_of = {image["id"]: row for row, image in enumerate(content["images"])}
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        instances = objects_of(content)
        image_rows = _integers([row_of[entry["image_id"]] for entry in instances])
        labels = _integers([label_of[entry["category_id"]] for entry in instances])
        annotation_ids = _integers([entry["id"] for entry in instances])
        bboxes = np.array([entry["bbox"] for entry in instances], dtype=np.float64)
        bboxes = bboxes.reshape(-1, 4)  # without any box it is flat
        top_left = bboxes[:, :2]
        bottom_right = top_left + bboxes[:, 2:]
        limits = _image_sizes(content["images"])[image_rows][:, ::-1]  # (A, 2): width, height
        clipped = [top_left.clip(0, limits), bottom_right.clip(0, limits)]
        corners = np.concatenate(clipped, axis=1).astype(np.float32)
        has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        sound = np.flatnonzero(np.isfinite(corners).all(axis=1) & has_area)
        # Boxes of one image stand together, in the order of the file.
        order = sound[np.argsort(image_rows[sound], kind="stable")]
        self._boxes = corners[order]
        self._labels = labels[order]
        self._annotation_ids = annotation_ids[order]
        return image_rows[order]

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The image with its boxes.

        Raises:
            DataError: the image cannot be read, or has another size than the annotation file says; a mask that is to
                be used cannot be decoded.
        """
        path, size = self.image_path(index), self.size(index)
        with naming(f"image {self.image_id(index)}:"):
            image = read_image(path)
        height, width = image.shape[1:]
        if (height, width) != size:
            raise DataError(
                f"{path}: image {self.image_id(index)} is {width} x {height} px, but "
                f"{self.source.annotations} says {size[1]} x {size[0]}; boxes refer to the stored "
                "pixels (correct the entry or replace the file)"
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

    @property
    def categories(self) -> list[tuple[int, str]]:
        """Category id and name of each label."""
        return list(zip(self.category_ids, self.class_names, strict=True))

    def boxes_and_labels(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes float (N, 4) and labels int64 (N,) of the image, as in its sample; the image is not read."""
        rows = self._rows(index)
        # Copies, so that nobody writes into the data set.
        boxes = torch.from_numpy(self._boxes[rows].copy())
        labels = torch.from_numpy(self._labels[rows].copy())
        return boxes, labels

    def _rows(self, index: int) -> slice:
        """Where the boxes of an image stand among all boxes."""
        return slice(self._box_starts[index], self._box_starts[index + 1])

    def image_path(self, index: int) -> Path:
        """File of the image.

        Raises:
            DataError: its name leads out of the image folder.
        """
        name = self.file_name(index)
        if not is_inside(name):
            raise DataError(
                f"{self.source.annotations}: image {self.image_id(index)} has file name {name!r}; "
                f"{INSIDE_RULE} (correct the name)"
            )
        return self.source.images / name

    def file_name(self, index: int) -> str:
        """File name of the image, as the annotation file says it."""
        return str(self._file_names[index])

    def image_id(self, index: int) -> int:
        """Id of the image in the COCO file."""
        return int(self._image_ids[index])

    def index_of(self, image_id: int) -> int:
        """Position of an image, given its COCO id.

        Raises:
            DataError: there is no such image.
        """
        matches = np.flatnonzero(self._image_ids == image_id)
        if len(matches) == 0:
            raise DataError(
                f"{self.source.annotations}: no image has id {image_id} "
                "(training leaves out images without boxes)"
            )
        return int(matches[0])

    def size(self, index: int) -> Size:
        """(height, width) of the image in pixels, as the annotation file says."""
        height, width = self.sizes[index]
        return int(height), int(width)

    def annotation_ids(self, index: int) -> list[int]:
        """COCO ids of the annotations behind the sample's boxes, in the same order."""
        return self._annotation_ids[self._rows(index)].tolist()

    def drawn_masks(self, index: int) -> DrawnMasks:
        """Drawn masks in the order and at the size of the sample.

        Without `use_masks` the first call reads the annotation file again.

        Raises:
            DataError: a segmentation cannot be decoded.
        """
        drawn = list(self._drawn(index, decode_segmentation))
        mask = torch.zeros((len(drawn), *self.size(index)), dtype=torch.bool)
        present = torch.zeros(len(drawn), dtype=torch.bool)
        for row, pixels in enumerate(drawn):
            if pixels is not None:
                mask[row] = torch.from_numpy(pixels)
                present[row] = True
        return DrawnMasks(mask, present)

    def drawn_rles(self, index: int) -> list[Rle | None]:
        """The drawn mask of each box of the sample as compressed run lengths; None where there is none.

        Raises:
            DataError: a segmentation cannot be decoded.
        """
        return list(self._drawn(index, encode_segmentation))

    def _drawn(self, index: int, use: Callable[[Any, Size], T]) -> Iterator[T | None]:
        """What `use` makes of the segmentation of each box, and of the size of its image."""
        if self._masks is None:
            content = read_annotations(self.source.annotations, keep_masks=True)
            self._masks = PackedMasks.of(content, self._annotation_ids)
        first_row = self._box_starts[index]
        for row, annotation_id in enumerate(self.annotation_ids(index), start=first_row):
            segmentation = self._masks[row]
            with naming(f"{self.source.annotations}: annotation {annotation_id}"):
                yield None if segmentation is None else use(segmentation, self.size(index))


def load_boxes(source: CocoSource, *, train: bool, use_masks: bool = False) -> CocoBoxes:
    """`CocoBoxes`, read once per process as long as the annotation file stays the same: trials share it.

    A file counts as the same by its path, size and time of change. Arguments and errors as for `CocoBoxes`.
    """
    try:
        status = source.annotations.stat()
    except OSError:  # reading it tells what is wrong
        return CocoBoxes(source, train=train, use_masks=use_masks)
    return _load_boxes(source, train, use_masks, (status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=4)
def _load_boxes(
    source: CocoSource, train: bool, use_masks: bool, state: tuple[int, int]
) -> CocoBoxes:
    return CocoBoxes(source, train=train, use_masks=use_masks)


def _image_sizes(images: list[Entry]) -> NDArray[np.int64]:
    sizes = [(image["height"], image["width"]) for image in images]
    return _integers(sizes).reshape(-1, 2)


def _integers(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
