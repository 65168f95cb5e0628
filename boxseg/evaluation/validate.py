"""What a run measures at an evaluation: AP of teacher and student, pseudo masks against drawn ones, panels."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxseg.coco.masks import decode_part
from boxseg.coco.segmentations import Size
from boxseg.config.criterion import MASK_AP, Criterion
from boxseg.data.ground_truth import coco_ground_truth
from boxseg.data.loader import eval_batches
from boxseg.drawing import drawing
from boxseg.engine.distributed import gather_objects, rank, world_size
from boxseg.engine.state import Trainer
from boxseg.evaluation.ap import Evaluation, ImageResult, encode_detections, measure_detections
from boxseg.evaluation.finder import Finder
from boxseg.evaluation.panels import PanelRow, draw_panels
from boxseg.evaluation.pictures import draw_evaluation
from boxseg.evaluation.pseudo_quality import mask_iou, quality_metrics
from boxseg.evaluation.tiles import Tile, Tiles, cut_tiles
from boxseg.ops.boxes import box_iou, scale_boxes
from boxseg.ops.masks import aligned_bilinear, box_masks
from boxseg.structures import MASK_STRIDE, Batch, Detections, MaskNetwork, PseudoMasks
from boxseg.teacher.candidates import pick_candidates
from boxseg.teacher.qam import fuse_candidates

LabelledTile = tuple[Tile, Tensor, Tensor]
"""A tile with the pseudo masks (n, h, w) of its boxes and their qualities (n,)."""


def validate(
    trainer: Trainer, *, folder: Path, step: int, criterion: Criterion = MASK_AP
) -> tuple[str, dict[str, float]]:
    """Evaluate the networks that `train.evaluate` names; all ranks share the images.

    Args:
        trainer: What to evaluate.
        folder: The run's folder: a panel of the same images goes to `samples/`, at the last step more pictures and a
            table go to `evaluation/`. With `train.panels` 0 nothing is drawn.
        step: Updates done.
        criterion: Decides which network is the better one, see `choose_network`.

    Returns:
        The name of the better network, and metrics: `val/mask_ap` … of this network, `val/teacher_mask_ap` and
        `val/student_mask_ap`, `qam/pseudo_iou` where there is a teacher, `health/mask_fill`, `health/box_likeness`.
    """
    networks = trainer.evaluated_networks()
    panels, pictures = folder / "samples" / f"step-{step:08d}.png", folder / "evaluation"
    watcher = PseudoMaskWatcher(trainer)
    evaluations: dict[str, Evaluation] = {}
    for name, network in networks.items():
        evaluations[name] = _evaluate_network(trainer, network, watcher)
    labelled = [pair for of_rank in gather_objects(watcher.labelled) for pair in of_rank]
    best, metrics = _join_metrics(evaluations, criterion)
    metrics |= {f"qam/{name}": value for name, value in quality_metrics(labelled).items()}
    if rank() == 0 and trainer.config.train.panels > 0:
        with drawing(panels):
            draw_panels(watcher.rows(), panels)
        if step >= trainer.steps:
            with drawing(pictures):
                of_best = evaluations[best]
                draw_evaluation(trainer.val_data, of_best.results, of_best.scores, pictures)
    return best, metrics


def _join_metrics(
    evaluations: Mapping[str, Evaluation], criterion: Criterion
) -> tuple[str, dict[str, float]]:
    """The better network, and its metrics with the mask AP of each."""
    of_networks = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    best = choose_network(of_networks, criterion)
    metrics = dict(of_networks[best])
    for name, own in of_networks.items():
        if "val/mask_ap" in own:
            metrics[f"val/{name}_mask_ap"] = own["val/mask_ap"]
    return best, metrics


def choose_network(metrics_of: Mapping[str, Mapping[str, float]], criterion: Criterion) -> str:
    """The network whose metrics stand for the run; of equal ones the first.

    Args:
        metrics_of: Name of each network -> its metrics.
        criterion: Decides, if its metric is an AP that every network has of its own; otherwise mask AP does.
    """
    own = criterion.metric.startswith("val/") and any(
        criterion.metric in metrics for metrics in metrics_of.values()
    )
    decides = criterion if own else MASK_AP
    return max(metrics_of, key=lambda name: decides.score(decides.value(metrics_of[name])))


def evaluated_images(trainer: Trainer) -> int:
    """Validation images that count, over all ranks."""
    return min(len(trainer.val_data), trainer.config.data.max_val_images or len(trainer.val_data))


@torch.no_grad()
def _evaluate_network(
    trainer: Trainer, network: MaskNetwork, watcher: PseudoMaskWatcher
) -> Evaluation:
    """What one network finds, and how good it is; it is back in its former mode afterwards."""
    config, data = trainer.config, trainer.val_data
    count = evaluated_images(trainer)
    batch_size = max(config.train.batch_size // world_size(), 1)
    batches = eval_batches(
        data,
        list(range(rank(), count, world_size())),
        config.train,
        batch_size=batch_size,
        workers=config.data.loader_workers,
        device=trainer.device,
    )
    encoded: list[Future[list[ImageResult]]] = []
    was_training = network.training
    network.eval()
    try:
        # Encodes one batch while the network looks at the next.
        with ThreadPoolExecutor(max_workers=1) as encoder:
            for batch in batches:
                detections = watcher.look(network, batch, at_once=batch_size)
                if encoded:
                    encoded[-1].result()  # masks take memory, so no more than one batch waits
                encoded.append(encoder.submit(list, map(encode_detections, detections)))
                watcher.watch(network, batch, detections)
    finally:
        network.train(was_training)
    return measure_detections(
        [result for of_batch in encoded for result in of_batch.result()],
        ground_truth=coco_ground_truth(data.source),
        image_ids=[data.image_id(index) for index in range(count)],
        category_ids=data.category_ids,
    )


class PseudoMaskWatcher:
    """Watches an evaluation: measures the teacher's pseudo masks and collects rows of the panels from its outputs."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.labelled: list[tuple[float, float]] = []
        """Quality and IoU of every box with a drawn mask."""
        # rank 0 draws, so these are images of its share
        own = range(rank(), evaluated_images(trainer), world_size())
        self._wanted = {
            trainer.val_data.image_id(index) for index in own[: trainer.config.train.panels]
        }
        self._parts: dict[int, list[LabelledTile]] = {}
        """What was labelled of the images of the present batch."""
        self._labels: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: dict[int, tuple[Batch, int, Detections]] = {}

    def look(self, network: MaskNetwork, batch: Batch, *, at_once: int) -> list[Detections]:
        """What a network finds in a batch; the teacher's output gives the pseudo masks too, without another look."""
        trainer = self._trainer
        finder = Finder(network, batch, trainer.config.fcos)
        for tiles in cut_tiles(batch, side=trainer.config.train.eval_tile, at_once=at_once):
            with trainer.autocast():
                predictions = network(tiles.batch.weak, tiles.batch.valid)
                finder.add(tiles, predictions)
            if network is trainer.teacher:
                self._label(tiles, predictions)
        return finder.detections()

    def _label(self, tiles: Tiles, predictions: Any) -> None:
        """Pseudo masks that the teacher would give the true boxes in some tiles of a batch."""
        trainer, part = self._trainer, tiles.batch
        assert trainer.teacher is not None
        config = trainer.config
        candidates = pick_candidates(trainer.teacher, predictions, part, part, config)
        for position, pseudo in enumerate(fuse_candidates(config, candidates, part)):
            masks = full_size_masks(
                pseudo, part.boxes[position], part.sizes[position], trainer.soft_thr
            )
            tile = tiles.places[position]
            self._parts.setdefault(tile.image, []).append((tile, masks, pseudo.quality))

    def watch(self, network: MaskNetwork, batch: Batch, detections: list[Detections]) -> None:
        """What was found in a batch: pseudo masks against the drawn ones, and detections of images that are drawn."""
        for position, parts in self._parts.items():
            masks, quality = _join_labels(parts, len(batch.boxes[position]), batch.sizes[position])
            self._measure(masks, quality, batch, position)
            if batch.image_ids[position] in self._wanted:
                self._labels[batch.image_ids[position]] = (masks.cpu(), quality.cpu())
        self._parts = {}  # of the next batch
        # the student's, where there are two
        if network is not next(iter(self._trainer.evaluated_networks().values())):
            return
        for position, image_id in enumerate(batch.image_ids):
            if image_id in self._wanted:
                self._seen[image_id] = (batch, position, detections[position])

    def rows(self) -> list[PanelRow]:
        """One row for each wanted image of this rank, once all networks have been watched."""
        return [
            self._row(*row, *self._labels.get(image_id, (None, None)))
            for image_id, row in self._seen.items()
        ]

    def _measure(self, masks: Tensor, quality: Tensor, batch: Batch, position: int) -> None:
        """Compare the pseudo masks of an image with its drawn ones, if all are drawn."""
        data = self._trainer.val_data
        index, size = data.index_of(batch.image_ids[position]), batch.sizes[position]
        drawn = data.drawn_rles(index)
        if None in drawn or not drawn:
            return
        original = data.size(index)
        true = np.stack([decode_part(rle, original).resized(original, size) for rle in drawn])
        iou = mask_iou(masks, torch.from_numpy(true).to(masks.device))
        self.labelled.extend(zip(quality.tolist(), iou.tolist(), strict=True))

    def _row(
        self,
        batch: Batch,
        position: int,
        detections: Detections,
        teacher_masks: Tensor | None,
        quality: Tensor | None,
    ) -> PanelRow:
        height, width = batch.sizes[position]
        boxes = batch.boxes[position].cpu()
        chosen = best_per_box(
            detections, scale_boxes(boxes, (height, width), batch.original_sizes[position])
        )
        masks = torch.zeros(len(chosen), height, width, dtype=torch.bool)
        for mask, row in zip(masks, chosen.tolist(), strict=True):
            small = detections.parts[row].resized(detections.size, (height, width))
            mask.copy_(torch.from_numpy(small))  # a view of `masks`
        return PanelRow(
            image=batch.weak[position, :, :height, :width].cpu(),
            boxes=boxes,
            teacher_masks=teacher_masks,
            quality=quality,
            student_masks=masks,
            scores=detections.scores[chosen].cpu(),
        )


def _join_labels(parts: list[LabelledTile], count: int, size: Size) -> tuple[Tensor, Tensor]:
    """Masks (count, h, w) and qualities (count,) of all boxes of an image; each is in one of its tiles."""
    if len(parts) == 1:
        return parts[0][1:]
    _, first_masks, first_quality = parts[0]
    masks, quality = first_masks.new_zeros((count, *size)), first_quality.new_zeros(count)
    for tile, of_tile, quality_of_tile in parts:
        (top, left), (height, width) = tile.corner, of_tile.shape[-2:]
        masks[tile.rows, top : top + height, left : left + width] = of_tile
        quality[tile.rows] = quality_of_tile
    return masks, quality


def best_per_box(detections: Detections, boxes: Tensor) -> Tensor:
    """Indices (≤ N,) of the highest-scored detection at each of the boxes (N, 4), IoU 0.5 or more; for pictures."""
    overlaps = box_iou(boxes, detections.boxes.cpu()) >= 0.5  # (N, D), detections best first
    if not overlaps.any():
        return torch.zeros(0, dtype=torch.int64)
    is_found = overlaps.any(dim=1)
    return overlaps[is_found].float().argmax(dim=1)  # of equal values the first


def full_size_masks(pseudo: PseudoMasks, boxes: Tensor, size: Size, soft_thr: float) -> Tensor:
    """Pseudo masks at image resolution, bool (N, h, w), cut to their boxes."""
    masks = pseudo.full
    if masks is None:
        height, width = (MASK_STRIDE * side for side in pseudo.soft.shape[-2:])
        masks = (aligned_bilinear(pseudo.soft, MASK_STRIDE) > soft_thr) & box_masks(
            boxes, height, width
        )
    return masks[:, : size[0], : size[1]]
