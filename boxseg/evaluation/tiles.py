"""Large images in overlapping tiles, so that the memory to look at them is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.coco.segmentations import Size
from boxseg.ops.boxes import box_area
from boxseg.structures import Batch

OVERLAP = 0.25
"""Least share of its side that a tile shares with the next one; objects up to this size are whole in one tile."""
GRID = 32
"""Tiles begin and end at multiples of this [px], the coarsest step of the pyramid."""

Corner = tuple[int, int]
"""First row and column of a tile in its image, pixels."""


@dataclass(frozen=True)
class Tile:
    """Where a tile is."""

    image: int
    """Which image of the batch."""
    corner: Corner
    rows: Tensor
    """int64 (n,): the boxes of its image that this tile shows more of than the others do."""


@dataclass(frozen=True)
class Tiles:
    """Parts of the images of a batch, to be looked at together."""

    batch: Batch
    """The parts as images. A box is in the tile that shows most of it, cut to that tile."""
    places: list[Tile]
    """Where each of them is."""
    are_whole: bool
    """Whether these are whole images."""

    def split(self, parts: int) -> list[Tiles]:
        """`parts` groups of consecutive tiles; fewer where there are fewer tiles."""
        batches = self.batch.split(parts)
        ends = list(accumulate(map(len, batches), initial=0))
        return [
            Tiles(batch, self.places[start:end], self.are_whole)
            for batch, (start, end) in zip(batches, pairwise(ends), strict=True)
        ]


def whole_images(batch: Batch) -> Tiles:
    """The images of a batch as one tile each."""
    places = []
    for image, boxes in enumerate(batch.boxes):
        places.append(Tile(image, (0, 0), torch.arange(len(boxes), device=boxes.device)))
    return Tiles(batch, places, are_whole=True)


def cut_tiles(batch: Batch, *, side: int | None, at_once: int) -> Iterator[Tiles]:
    """The parts of a batch that a network looks at, at most `at_once` at a time.

    Args:
        batch: Images of any size.
        side: Side of square tiles, a multiple of 32 [px]; None: whole images, as also if no image is larger.
        at_once: Tiles or images.
    """
    if side is None or all(max(size) <= side for size in batch.sizes):
        yield from whole_images(batch).split(-(-len(batch) // at_once))
        return
    places: list[Tile] = []
    for image in range(len(batch)):
        places += _place_tiles(batch, image, side)
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


def _place_tiles(batch: Batch, image: int, side: int) -> list[Tile]:
    """The tiles of an image."""
    boxes, size = batch.boxes[image], batch.sizes[image]
    height, width = size
    corners = list(product(tile_starts(height, side), tile_starts(width, side)))
    areas = [box_area(_in_tile(boxes, corner, size, side)) for corner in corners]
    best = torch.stack(areas).argmax(dim=0)  # of each box its tile; (tiles, N) -> (N,)
    return [
        Tile(image, corner, (best == number).nonzero()[:, 0])
        for number, corner in enumerate(corners)
    ]


def _in_tile(boxes: Tensor, corner: Corner, size: Size, side: int) -> Tensor:
    """Boxes (N, 4) of an image, cut to a tile and in its pixels."""
    shifted = boxes - boxes.new_tensor([corner[1], corner[0]] * 2)
    return clip_boxes_to_image(shifted, _tile_size(corner, size, side))


def _tile_size(corner: Corner, size: Size, side: int) -> Size:
    top, left = corner
    height, width = size
    return min(side, height - top), min(side, width - left)


def _cut(batch: Batch, places: list[Tile], side: int) -> Tiles:
    """The tiles of a batch at these places."""
    height, width = (min(side, padded) for padded in batch.weak.shape[-2:])
    weak, valid, boxes, labels, sizes, original_sizes = [], [], [], [], [], []
    for tile in places:
        image, rows, (top, left) = tile.image, tile.rows, tile.corner
        down, across = slice(top, top + height), slice(left, left + width)
        size = batch.sizes[image]
        weak.append(batch.weak[image, :, down, across])
        valid.append(batch.valid[image, down, across])
        boxes.append(_in_tile(batch.boxes[image][rows], tile.corner, size, side))
        labels.append(batch.labels[image][rows])
        sizes.append(_tile_size(tile.corner, size, side))
        original_sizes.append(_in_file(sizes[-1], batch.original_sizes[image], size))
    stacked = torch.stack(weak)
    tiles = Batch(
        weak=stacked,
        strong=stacked,  # nothing is trained on tiles
        valid=torch.stack(valid),
        boxes=boxes,
        labels=labels,
        sizes=sizes,
        original_sizes=original_sizes,
        image_ids=[batch.image_ids[tile.image] for tile in places],
    )
    return Tiles(tiles, places, are_whole=False)


def _in_file(tile: Size, original: Size, size: Size) -> Size:
    """About how many rows and columns of the image file a tile shows."""
    height = round(tile[0] * original[0] / size[0])
    width = round(tile[1] * original[1] / size[1])
    return max(height, 1), max(width, 1)
