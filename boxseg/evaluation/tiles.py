"""Large images in overlapping tiles, so that the memory to look at them is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.coco.segmentations import Size
from boxseg.ops.boxes import box_area
from boxseg.structures import Batch

OVERLAP = 0.25
"""Least share of its side that a tile has in common with the next one; objects up to this size are whole in one."""
GRID = 32
"""Tiles begin and end at multiples of this [px], as pyramids have it."""

Corner = tuple[int, int]
"""First row and column of a tile in its image, pixels."""
Place = tuple[int, Corner, Tensor]
"""An image of the batch, a corner in it, and the boxes that belong there, int64 (n,)."""


@dataclass(frozen=True)
class Tiles:
    """Parts of the images of a batch, to be looked at together."""

    batch: Batch
    """The parts as images. A box is in the tile that shows most of it, cut to that tile."""
    image_index: list[int]
    """The image of each tile."""
    corners: list[Corner]
    """First row and column of each tile in its image, pixels."""
    rows: list[Tensor]
    """int64 (n,): which boxes of its image each tile has."""
    are_whole: bool
    """Whether these are whole images."""

    def split(self, parts: int) -> list[Tiles]:
        """`parts` groups of consecutive tiles; fewer where there are fewer tiles."""
        batches = self.batch.split(parts)
        ends = list(accumulate(map(len, batches), initial=0))
        return [
            Tiles(batch, self.image_index[a:b], self.corners[a:b], self.rows[a:b], self.are_whole)
            for batch, (a, b) in zip(batches, pairwise(ends), strict=True)
        ]


def whole_images(batch: Batch) -> Tiles:
    """The images of a batch as one tile each."""
    rows = [torch.arange(len(boxes), device=boxes.device) for boxes in batch.boxes]
    count = len(batch)
    return Tiles(batch, list(range(count)), [(0, 0)] * count, rows, are_whole=True)


def cut_tiles(batch: Batch, *, side: int | None, at_once: int) -> Iterator[Tiles]:
    """The parts of a batch that a network looks at, at most `at_once` at a time.

    Args:
        batch: Images of any size.
        side: Side of square tiles, a multiple of 32 [px]; None: whole images. So too where no image is larger.
        at_once: Tiles or images.
    """
    if side is None or all(max(size) <= side for size in batch.sizes):
        yield from whole_images(batch).split(-(-len(batch) // at_once))
        return
    places: list[Place] = []
    for image, size in enumerate(batch.sizes):
        for corner, rows in _place_tiles(batch.boxes[image], size, side):
            places.append((image, corner, rows))
    # Tiles of several images share a batch: all of them are of one size.
    for start in range(0, len(places), at_once):
        yield _cut(batch, places[start : start + at_once], side)


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` begin on an axis of `length`, both in pixels: evenly spread, at multiples of 32."""
    if length <= side:
        return [0]
    last = -(-(length - side) // GRID) * GRID  # the last tile may reach into the padding
    step = max(int(side * (1 - OVERLAP)) // GRID, 1) * GRID
    steps = -(-last // step)
    return [round(last * number / steps / GRID) * GRID for number in range(steps + 1)]


def _place_tiles(boxes: Tensor, size: Size, side: int) -> list[tuple[Corner, Tensor]]:
    """Corner of each tile of an image, and the boxes (N, 4) that it shows most of, int64 (n,)."""
    height, width = size
    corners = list(product(tile_starts(height, side), tile_starts(width, side)))
    areas = [box_area(_in_tile(boxes, corner, size, side)) for corner in corners]
    best = torch.stack(areas).argmax(dim=0)  # of each box its tile; (tiles, N) -> (N,)
    return [(corner, (best == number).nonzero()[:, 0]) for number, corner in enumerate(corners)]


def _in_tile(boxes: Tensor, corner: Corner, size: Size, side: int) -> Tensor:
    """Boxes (N, 4) of an image, cut to a tile and in its pixels."""
    shifted = boxes - boxes.new_tensor([corner[1], corner[0]] * 2)
    return clip_boxes_to_image(shifted, _tile_size(corner, size, side))


def _tile_size(corner: Corner, size: Size, side: int) -> Size:
    top, left = corner
    height, width = size
    return min(side, height - top), min(side, width - left)


def _cut(batch: Batch, places: Sequence[Place], side: int) -> Tiles:
    """The tiles of a batch at these places."""
    height, width = (min(side, padded) for padded in batch.weak.shape[-2:])
    weak, valid, boxes, labels, sizes, original_sizes = [], [], [], [], [], []
    for image, corner, rows in places:
        top, left = corner
        down, across = slice(top, top + height), slice(left, left + width)
        size = batch.sizes[image]
        weak.append(batch.weak[image, :, down, across])
        valid.append(batch.valid[image, down, across])
        boxes.append(_in_tile(batch.boxes[image][rows], corner, size, side))
        labels.append(batch.labels[image][rows])
        sizes.append(_tile_size(corner, size, side))
        original_sizes.append(_in_file(sizes[-1], batch.original_sizes[image], size))
    images, corners, rows_of = zip(*places, strict=True)
    stacked = torch.stack(weak)
    tiles = Batch(
        weak=stacked,
        strong=stacked,  # nothing is trained on tiles
        valid=torch.stack(valid),
        boxes=boxes,
        labels=labels,
        sizes=sizes,
        original_sizes=original_sizes,
        image_ids=[batch.image_ids[image] for image in images],
    )
    return Tiles(tiles, list(images), list(corners), list(rows_of), are_whole=False)


def _in_file(tile: Size, original: Size, size: Size) -> Size:
    """About how many rows and columns of the image file a tile shows."""
    height = round(tile[0] * original[0] / size[0])
    width = round(tile[1] * original[1] / size[1])
    return max(height, 1), max(width, 1)
