"""A trained checkpoint and images in, boxes and masks out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from boxseg.build import build_network
from boxseg.config.criterion import least_score
from boxseg.config.method import BoxSegConfig
from boxseg.data.images import read_image
from boxseg.data.loader import collate
from boxseg.data.transforms import View, resize_only
from boxseg.engine import checkpoint
from boxseg.errors import BoxSegError, ShapeError
from boxseg.evaluation.finder import Finder
from boxseg.evaluation.tiles import Tiles, cut_tiles
from boxseg.structures import Batch, Detections, Sample

BATCH_SIZE = {"cpu": 1, "cuda": 16}
"""Images that are looked at together, by kind of device. A CPU takes as long for each of them as for one alone."""
BATCH_PIXELS = 2**23
"""Pixels of the images of a batch at most, if it has more than one: masks have the size of their image."""
PADDED_TO = 32
"""Both sides of what a network sees are multiples of this [px]."""
IMAGE_NEEDED = (
    "a path, a uint8 RGB tensor (3, h, w) or a uint8 RGB array (h, w, 3) is needed "
    '(of a PIL picture: np.array(picture.convert("RGB")))'
)

T = TypeVar("T")


class Predictor:
    """Finds objects and their masks with a trained network.

    ```python
    predictor = Predictor("runs/pennfudan/20261122-171500-k3f9/checkpoints/best")
    found = predictor(["street.jpg"])[0]
    print(predictor.class_names[found.labels[0]], found.scores[0], found.masks[0].sum())
    ```
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        """Load the better network of the checkpoint's evaluation.

        Args:
            folder: A checkpoint folder, or the folder of a run (its best checkpoint is taken).
            device: As torch names it.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged, or of another version.
        """
        self.folder = folder = checkpoint.find_checkpoint(Path(folder))
        about = checkpoint.load_about(folder)
        with checkpoint.of_this_version(folder):
            self.config = BoxSegConfig.model_validate(about["config"])
            self.class_names: list[str] = about["classes"]["names"]
            self.category_ids: list[int] = about["classes"]["ids"]
        self.network_name = checkpoint.better_network(about)
        self.min_score = least_score(about.get("metrics", {}))
        """From this score on detections were best in the last evaluation, see `least_score`."""
        self.device = torch.device(device)
        self.network = build_network(
            self.config, num_classes=len(self.class_names), weights="none"
        )
        checkpoint.load_weights(self.network, folder, self.network_name)
        self.network.eval().to(self.device)

    @property
    def batch_size(self) -> int:
        """Images that are looked at together, see `BATCH_SIZE`."""
        return BATCH_SIZE.get(self.device.type, 1)

    @torch.no_grad()
    def __call__(self, images: Iterable[str | Path | Tensor | np.ndarray]) -> list[Detections]:
        """Detections of each image, best first, at the image's own size.

        Args:
            images: Files, uint8 tensors (3, h, w) or uint8 arrays (h, w, 3), RGB.

        Raises:
            DataError: a file is missing or cannot be read.
            ShapeError: a tensor or array has another shape or dtype, or `images` is one image.
        """
        detections: list[Detections] = []
        batches = in_batches(
            as_images(images), size=self.batch_size, pixels=lambda image: image[0].numel()
        )
        for batch in batches:
            by_place: dict[int, Detections] = {}
            for places, alike in self._collate(batch):
                by_place |= dict(zip(places, self._find(alike), strict=True))
            for place in range(len(batch)):
                detections.append(replace(by_place[place], image_id=len(detections)))
        return detections

    def _collate(self, images: Sequence[Tensor]) -> Iterator[tuple[list[int], Batch]]:
        """Places in `images`, and these images as a batch."""
        train = self.config.train
        views: list[View] = []
        no_boxes, no_labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
        for image in images:
            size = (image.shape[1], image.shape[2])
            sample = Sample(image, no_boxes, no_labels, image_id=-1, original_size=size)
            views.append(resize_only(sample, train.eval_short_side, train.max_size))
        for places in of_one_size(views):
            alike = [views[place] for place in places]
            yield places, collate(alike, divisor=PADDED_TO, device=self.device)

    def _find(self, batch: Batch) -> list[Detections]:
        """Detections of the images of a batch, which is looked at in tiles where the run has them."""
        finder = Finder(self.network, batch, self.config.fcos)
        side = self.config.train.eval_tile
        for tiles in cut_tiles(batch, side=side, at_once=self.batch_size):
            for part, predictions in self.look(tiles):
                finder.add(part, predictions)
        return finder.detections()

    @torch.no_grad()
    def look(self, tiles: Tiles) -> Iterator[tuple[Tiles, Any]]:
        """The network's output for all of the tiles, or one half after the other where the device's memory is short.

        Raises:
            BoxSegError: one tile alone does not fit in memory.
        """
        batch = tiles.batch
        try:
            predictions = self.network(batch.weak, batch.valid)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                size = " x ".join(map(str, batch.sizes[0]))
                raise BoxSegError(
                    f"{self.device}: an image of {size} px (height x width in the network) does not fit in memory; "
                    "use --device cpu, or a model with a smaller train.eval_size or train.eval_tile"
                ) from error
            # not within `except`: the error holds on to memory that the halves need
            predictions = None
        if predictions is not None:
            yield tiles, predictions
        else:
            for half in tiles.split(2):
                yield from self.look(half)


def in_batches(items: Iterable[T], *, size: int, pixels: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items, at most `size` of them and `BATCH_PIXELS` together, but one at least; none is read ahead
    where batches are of one."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + pixels(item) > BATCH_PIXELS:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += pixels(item)
        if len(batch) == size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def of_one_size(views: Sequence[View]) -> list[list[int]]:
    """Places of the views that may share a batch, in the order of their first ones.

    They have one size in the network: more padding than a view has alone would change the network's output.
    """
    by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, view in enumerate(views):
        size = tuple(-(-side // PADDED_TO) for side in view.size)  # rounded up
        by_size[size].append(place)
    return list(by_size.values())


def as_images(images: Iterable[str | Path | Tensor | np.ndarray]) -> Iterator[Tensor]:
    """Each image in turn, see `as_image`.

    Raises:
        ShapeError: `images` is one image.
    """
    # Letters of a path and rows of an image are no images, and what is said of them would not help.
    if isinstance(images, (str, Path)) or getattr(images, "ndim", 0) == 3:
        raise ShapeError("images is one image; a list of images is needed (write [image])")
    return map(as_image, images)


def as_image(item: str | Path | Tensor | np.ndarray) -> Tensor:
    """uint8 (3, h, w) RGB of a file, tensor or array.

    Raises:
        DataError: the file is missing or cannot be read.
        ShapeError: the tensor or array has another shape or dtype, or `item` is something else.
    """
    if isinstance(item, (str, Path)):
        return read_image(Path(item))
    if not isinstance(item, (Tensor, np.ndarray)):
        raise ShapeError(f"image is of type {type(item).__name__}; {IMAGE_NEEDED}")
    shape = tuple(item.shape)
    channels = shape[:1] if isinstance(item, Tensor) else shape[2:]
    if (
        item.dtype not in (torch.uint8, np.uint8)
        or (len(shape), *channels) != (3, 3)
        or not all(shape)
    ):
        raise ShapeError(f"image has dtype {item.dtype} and shape {shape}; {IMAGE_NEEDED}")
    if isinstance(item, Tensor):
        return item
    # A copy, as torch takes neither an array that runs backwards, such as pixels[..., ::-1], nor one that is read-only.
    return torch.from_numpy(item.copy()).permute(2, 0, 1)
