"""Joins what a network finds in the tiles of an image, so that every object is there once, and whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from boxseg.config.method import FcosConfig
from boxseg.evaluation.tiles import Tiles
from boxseg.mask_parts import MaskPart
from boxseg.model.postprocess import finish_masks, postprocess, with_mask_boxes
from boxseg.ops.boxes import box_area, box_intersection, box_iou, scale_boxes
from boxseg.ops.detections import choose_detections
from boxseg.ops.masks import REACH, tight_boxes
from boxseg.structures import MASK_STRIDE, Batch, Detections, MaskNetwork, RawDetections

CUT_PX = 8
"""A box this close to a side of its tile that is no border of the image may be cut by it [px]."""
SAME = 0.5
"""Detections of two tiles are one object if they overlap this much where the tiles do, and scores differ no more."""

Link = tuple[int, int]
"""Two detections of the same object."""


class Finder:
    """Collects what a network finds in the tiles of a batch and joins it to the detections of whole images."""

    def __init__(self, network: MaskNetwork, batch: Batch, settings: FcosConfig) -> None:
        self._network, self._batch, self._settings = network, batch, settings
        self._whole: dict[int, Detections] = {}
        self._parts: list[list[_Part]] = [[] for _ in range(len(batch))]

    @torch.no_grad()
    def add(self, tiles: Tiles, predictions: Any) -> None:
        """Take the network's output for some of the tiles."""
        settings = self._settings
        if tiles.are_whole:
            detections = postprocess(self._network, predictions, tiles.batch, settings)
            images = [tile.image for tile in tiles.places]
            self._whole |= dict(zip(images, detections, strict=True))
            return
        raw = self._network.detect(
            predictions, score_thr=settings.score_thr, pre_topk=settings.pre_topk
        )
        for position, of_tile in enumerate(raw):
            chosen = choose_detections(of_tile, settings)
            # Read at once, since the output of all tiles together would not fit in memory.
            part = self._read(tiles, position, predictions, chosen)
            self._parts[tiles.places[position].image].append(part)

    @torch.no_grad()
    def detections(self) -> list[Detections]:
        """Detections of all images as `postprocess` gives them, once all tiles were added."""
        found = [
            self._whole[image] if image in self._whole else self._join(image, parts)
            for image, parts in enumerate(self._parts)
        ]
        if self._settings.mask_boxes:
            found = [with_mask_boxes(of_image, self._settings.nms_thr) for of_image in found]
        return found

    def _read(self, tiles: Tiles, position: int, predictions: Any, raw: RawDetections) -> _Part:
        """Detections in the tile at a position, in pixels of its image."""
        tile = tiles.places[position]
        top, left = tile.corner
        height, width = tiles.batch.sizes[position]
        boxes = clip_boxes_to_image(raw.boxes, (height, width))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # others were outside
        detections, boxes = raw.take(has_area), boxes[has_area].cpu()
        image_index = torch.full_like(detections.labels, position)
        logits = self._network.mask_logits(predictions, image_index, detections.handle)

        image_height, image_width = self._batch.sizes[tile.image]
        # Left, top, right, bottom; a border of the image cuts nothing.
        goes_on = torch.tensor(
            [left > 0, top > 0, left + width < image_width, top + height < image_height]
        )
        near = (boxes - torch.tensor([0, 0, width, height])).abs() < CUT_PX
        return _Part(
            tile=torch.tensor([left, top, left + width, top + height]),
            boxes=boxes + torch.tensor([left, top] * 2),
            labels=detections.labels.cpu(),
            scores=detections.scores.cpu(),
            is_cut=(near & goes_on).any(dim=1),
            maps=_cut_maps(logits.sigmoid(), top // MASK_STRIDE, left // MASK_STRIDE),
        )

    def _join(self, image: int, tiles: list[_Part]) -> Detections:
        size, original_size = self._batch.sizes[image], self._batch.original_sizes[image]
        objects = _join_cut(tiles)
        kept = torch.arange(len(objects.rows))
        if len(tiles) > 1:  # a single tile has been through this
            threshold = self._settings.nms_thr
            kept = batched_nms(objects.boxes, objects.scores, objects.labels, threshold)
            kept = kept[: self._settings.topk]
        maps = [part_of_map for tile in tiles for part_of_map in tile.maps]
        cells = [side // MASK_STRIDE for side in self._batch.weak.shape[-2:]]
        canvas = torch.zeros(cells, device=self._batch.weak.device)  # one for all objects in turn
        parts: list[MaskPart] = []
        certainty = torch.zeros(len(kept))
        for place, number in enumerate(kept.tolist()):
            _draw(canvas, [maps[row] for row in objects.rows[number]])
            (part,), sure = finish_masks(canvas[None], size, original_size)
            parts.append(part)
            certainty[place] = sure[0]
            canvas.zero_()
        scores = (objects.scores[kept] * certainty).sqrt()
        boxes = scale_boxes(objects.boxes[kept], size, original_size)
        boxes = clip_boxes_to_image(boxes, original_size)
        detections = Detections(
            boxes=boxes.to(canvas.device),
            scores=scores.to(canvas.device),
            labels=objects.labels[kept].to(canvas.device),
            parts=parts,
            size=original_size,
            image_id=self._batch.image_ids[image],
        )
        best_first = scores.argsort(descending=True, stable=True)
        return detections.take(best_first.to(canvas.device))


@dataclass(frozen=True)
class _Map:
    """A part of a mask map."""

    row: int
    """First cell, of the image."""
    column: int
    probs: Tensor
    """Float (h, w): all cells above one half, and those beside them that matter."""


@dataclass(frozen=True)
class _Part:
    """What one tile shows, on the CPU but for the maps; boxes in pixels of the whole image in the network."""

    tile: Tensor
    """(4,): where the tile is, x1 y1 x2 y2."""
    boxes: Tensor
    """Float (D, 4), inside the tile."""
    labels: Tensor
    """int64 (D,)."""
    scores: Tensor
    """Float (D,)."""
    is_cut: Tensor
    """Bool (D,): whether the object may go on outside of the tile."""
    maps: list[_Map]
    """D of them."""


@dataclass(frozen=True)
class _Objects:
    """What all tiles of an image show."""

    rows: list[list[int]]
    """G times the detections, of all tiles one after the other, that are of this object."""
    boxes: Tensor
    """Float (G, 4)."""
    labels: Tensor
    """int64 (G,)."""
    scores: Tensor
    """Float (G,)."""


def _cut_maps(probs: Tensor, row: int, column: int) -> list[_Map]:
    """Maps (D, h, w) of a tile that begins at this cell of the image, each cut to what decides its mask."""
    maps = []
    for index, corners in enumerate(tight_boxes(probs > 0.5).int().tolist()):
        left, top, right, bottom = corners
        if right == left:  # an empty mask
            maps.append(_Map(row, column, probs.new_zeros(0, 0)))
            continue
        top, left = max(top - REACH, 0), max(left - REACH, 0)
        piece = probs[index, top : bottom + REACH, left : right + REACH]
        # A view would hold on to the maps of the whole tile.
        maps.append(_Map(row + top, column + left, piece.clone()))
    return maps


def _draw(canvas: Tensor, maps: Iterable[_Map]) -> None:
    """Put maps in their places; where two overlap, the larger probability counts."""
    for part in maps:
        height, width = part.probs.shape
        rows = slice(part.row, part.row + height)
        columns = slice(part.column, part.column + width)
        window = canvas[rows, columns]  # a view of the canvas
        torch.maximum(window, part.probs.to(canvas.dtype), out=window)


def _join_cut(parts: Sequence[_Part]) -> _Objects:
    """Join what several tiles show of one object.

    What a tile has cut is dropped if another tile shows most of it as part of a whole object. If none does, cut ones
    that look alike where their tiles overlap are joined.
    """
    boxes, labels, scores, is_cut = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("boxes", "labels", "scores", "is_cut")
    )
    tiles = torch.stack([part.tile for part in parts]).to(boxes.dtype)
    tile_of = torch.repeat_interleave(torch.tensor([len(part.boxes) for part in parts]))
    dropped: set[int] = set()
    links: list[Link] = []
    for row in is_cut.nonzero()[:, 0].tolist():
        common = box_intersection(boxes[row : row + 1], boxes)[0]
        is_other_tile = tile_of != tile_of[row]
        is_likely = scores >= SAME * scores[row]
        others = (labels == labels[row]) & is_other_tile & (common > 0) & is_likely
        shows_most = common >= SAME * box_area(boxes[row])
        if (others & ~is_cut & shows_most).any():
            dropped.add(row)
            continue
        cut = (others & is_cut & (scores * SAME <= scores[row])).nonzero()[:, 0]
        # Each of the two cut to the other one's tile.
        here = _inside(boxes[cut], tiles[tile_of[row]].expand(len(cut), 4))
        there = _inside(boxes[row].expand(len(cut), 4), tiles[tile_of[cut]])
        is_same = box_iou(here, there).diagonal() >= SAME
        links += [(row, other) for other in cut[is_same].tolist()]
    # What was dropped later than it was linked must not join two objects.
    links = [link for link in links if not dropped.intersection(link)]
    rows = [group for group in _groups(len(boxes), links) if group[0] not in dropped]
    corners = []  # of the box around all parts
    for group in rows:
        low, high = boxes[group, :2].amin(dim=0), boxes[group, 2:].amax(dim=0)
        corners.append(torch.cat([low, high]))
    return _Objects(
        rows=rows,
        boxes=torch.stack(corners) if rows else boxes[:0],  # `stack` takes one at least
        labels=labels[[group[0] for group in rows]],
        scores=torch.stack([scores[group].amax() for group in rows]) if rows else scores[:0],
    )


def _inside(boxes: Tensor, tiles: Tensor) -> Tensor:
    """Boxes (n, 4) cut to tiles (n, 4)."""
    low, high = tiles[:, :2], tiles[:, 2:]
    corners = boxes[:, :2].clamp(low, high)
    opposite = boxes[:, 2:].clamp(low, high)
    return torch.cat([corners, opposite], dim=1)


def _groups(count: int, links: Iterable[Link]) -> list[list[int]]:
    """The numbers below `count`, rising, in the groups that links hold together."""
    group_of = {number: [number] for number in range(count)}
    for one, other in links:
        if group_of[one] is not group_of[other]:
            joined = sorted(group_of[one] + group_of[other])
            group_of |= dict.fromkeys(joined, joined)
    return [group for number, group in group_of.items() if group[0] == number]
