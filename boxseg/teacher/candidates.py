"""The teacher looks at the weak images and offers candidates for every ground-truth box."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config.method import BoxSegConfig, FcosConfig, QamConfig, TeacherConfig
from boxseg.ops.boxes import box_area, box_iou, scale_boxes
from boxseg.ops.detections import choose_detections
from boxseg.ops.images import pad_images, resized_shape
from boxseg.ops.neighbours import sample_cells
from boxseg.ops.per_box import count_per_box
from boxseg.ops.transfer import tensor_on
from boxseg.ops.windows import box_windows, like_sized
from boxseg.structures import (
    MASK_STRIDE,
    Batch,
    Candidates,
    MaskFrame,
    MaskNetwork,
    RawDetections,
    WindowMasks,
    Windows,
)
from boxseg.teacher.enlarge import enlarge, masks_at_once
from boxseg.teacher.quality import mask_confidence
from boxseg.teacher.ranking import Ranking, adaptive_k, kept_candidates, order_candidates

CELLS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}
"""Stride-4 cells of candidate masks that the mask head computes in one go, by kind of device; on a CPU for each
thread. On a GPU this bounds memory to a few hundred MB. On a CPU it keeps hidden layers in the caches, which halves the
time."""

AROUND_PX = 6
"""Margin around a box, in pixels, that the windows of its candidates' masks include. Bilinear values at the border of
the box need a cell beyond it; this is a cell more."""
WINDOW_MULTIPLE = 2
"""Corners and sizes of windows are multiples of this many cells of stride 4, as networks may draw on stride 8."""


@torch.no_grad()
def find_candidates(
    network: MaskNetwork, batch: Batch, config: BoxSegConfig, *, around_boxes: bool = False
) -> list[Candidates]:
    """Teacher detections with masks for the ground-truth boxes of every image.

    Args:
        network: The teacher, in the mode that it labels in.
        batch: Its weak view is labelled.
        config: Of `teacher` the size of its view, the floor of its detections and the kind of labelling; of `qam` the
            limits of the ranking; of `fcos`, for labelling with NMS, `nms_thr` and `topk`.
        around_boxes: Compute masks around their boxes only, where the settings look at nothing else.

    Returns:
        B candidates, sorted by box, then rank; masks on the (H/4, W/4) grid of the batch and 0 on padding, with
        `qam.full_resolution` as the network gave them. With `teacher.with_nms` at most one candidate per box.

    Source: BoxSeg (arXiv 2504.05137), BoxTeacher (arXiv 2210.05174); `docs/method.md#candidates`.
    """
    view = teacher_view(batch, short=config.teacher.resize_short, long=config.teacher.resize_long)
    predictions = network(view.weak, view.valid)
    return pick_candidates(network, predictions, batch, view, config, around_boxes=around_boxes)


@torch.no_grad()
def pick_candidates(
    network: MaskNetwork,
    predictions: Any,
    batch: Batch,
    view: Batch,
    config: BoxSegConfig,
    *,
    around_boxes: bool = False,
) -> list[Candidates]:
    """`find_candidates` for predictions that are already there; `view` is what the network saw."""
    teacher, qam = config.teacher, config.qam
    of_images = network.detect(
        predictions, score_thr=teacher.cand_score_thr, pre_topk=teacher.pre_topk
    )
    ranked = []
    if not teacher.with_nms:
        rankings = [
            _rank(detections, batch, view, image, qam)
            for image, detections in enumerate(of_images)
        ]
        ranked = kept_candidates(rankings)
    if (
        around_boxes
        and network.draws_windows
        # Only then are the cells of the network's maps those of the batch.
        and view is batch
        and needs_windows_only(qam, teacher)
    ):
        return _around_boxes(network, predictions, of_images, ranked, batch)
    candidates = []
    for image, detections in enumerate(of_images):
        frame = (
            MaskFrame(
                view.sizes[image],
                batch.sizes[image],
                (batch.valid.shape[-2], batch.valid.shape[-1]),
            )
            if qam.full_resolution
            else None
        )
        if teacher.with_nms:
            detections = _suppress(detections, view.sizes[image], config.fcos)
            probs = mask_probs(network, predictions, detections.handle, batch, view, image, frame)
            confidence = _confidence(probs, frame, qam.mask_thr)
            index, box_index, iou = _match(detections, confidence, view.boxes[image], qam, teacher)
            probs = probs[index]
        else:
            index, box_index, iou = ranked[image]
            probs = mask_probs(
                network, predictions, detections.handle[index], batch, view, image, frame
            )
        candidates.append(Candidates(probs, detections.scores[index], iou, box_index, frame))
    return candidates


def needs_windows_only(qam: QamConfig, teacher: TeacherConfig) -> bool:
    """Whether nothing depends on what a candidate's mask does far from its box: quality is that of refined masks."""
    return (
        qam.color_weight > 0 and qam.need_inside and not (teacher.with_nms or qam.full_resolution)
    )


def _around_boxes(
    network: MaskNetwork,
    predictions: Any,
    of_images: list[RawDetections],
    ranked: list[tuple[Tensor, Tensor, Tensor]],
    batch: Batch,
) -> list[Candidates]:
    """Candidates of all images with masks around their boxes only.

    `ranked` has (detection index, box index, IoU) of the candidates of each image.
    """
    image_index = torch.cat(
        [torch.full_like(index, image) for image, (index, _, _) in enumerate(ranked)]
    )
    handle = torch.cat(
        [
            detections.handle[index]
            for detections, (index, _, _) in zip(of_images, ranked, strict=True)
        ]
    )
    first = list(accumulate([0, *(len(index) for index, _, _ in ranked)]))
    plan = _plan_windows([box_index for _, box_index, _ in ranked], batch)
    # Each candidate is drawn in the window of its box; indices count the candidates of all images.
    parts = [
        (
            group.candidate_index + before,
            Windows(group.windows.corner[group.owner], group.windows.size),
        )
        for before, groups in zip(first, plan, strict=False)
        for group in groups
    ]
    drawn = network.window_logits(predictions, image_index, handle, parts)
    return [
        Candidates(
            detections.scores.new_zeros(len(index), 0, 0),
            detections.scores[index],
            iou,
            box_index,
            around=[replace(group, mask_probs=next(drawn).sigmoid()) for group in groups],
        )
        for detections, (index, box_index, iou), groups in zip(
            of_images, ranked, plan, strict=True
        )
    ]


def _plan_windows(box_index: list[Tensor], batch: Batch) -> list[list[WindowMasks]]:
    """The windows of each image, in groups of like size and still without masks; `box_index` (C,) of an image rises."""
    height, width = (side // MASK_STRIDE for side in batch.valid.shape[-2:])
    boxes = torch.cat(batch.boxes)
    start, end = box_windows(boxes, AROUND_PX, (height, width), multiple=WINDOW_MULTIPLE)
    num_boxes = [len(of_image) for of_image in batch.boxes]
    count = torch.cat(
        [count_per_box(own, total) for own, total in zip(box_index, num_boxes, strict=True)]
    )
    # the only read, for all images
    table = torch.cat([end - start, count[:, None]], dim=1).tolist()
    of_images = zip(batch.sizes, start.split(num_boxes), end.split(num_boxes), strict=True)
    return [
        _plan_image(table[before : before + len(first)], first, last, (height, width), size)
        for before, (size, first, last) in zip(
            accumulate([0, *num_boxes]), of_images, strict=False
        )
    ]


def _plan_image(
    table: list[list[int]],
    start: Tensor,
    end: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> list[WindowMasks]:
    """The windows of one image.

    Args:
        table: Height and width in cells of each box's window, and the number of its candidates.
        start: int64 (N, 2), first cells (row, column).
        end: int64 (N, 2), cells after the last.
        grid: (height, width) of the maps, in cells.
        size: (height, width) of the image without padding, pixels.
    """
    device, counts = start.device, [count for _, _, count in table]
    first = list(accumulate(counts, initial=0))  # candidate of each box
    on_image = tensor_on(device, [(side + MASK_STRIDE // 2 - 1) // MASK_STRIDE for side in size])
    plan = []
    for group, window in like_sized(
        [sides for *sides, _ in table], counts, cells_at_once=_cells_at_once(device)
    ):
        owners = [place for place, box in enumerate(group) for _ in range(counts[box])]
        served = [row for box in group for row in range(first[box], first[box + 1])]
        # One tensor for both, as each costs a transfer.
        candidate_index, owner = tensor_on(device, [served, owners]).unbind()
        box_index = tensor_on(device, group)
        group_start = start[box_index]
        # A window has the size of the largest of its group; at the right and at the bottom it moves back until it lies
        # on the map. Only the part that the box itself needs is used, so that no result depends on the group; its first
        # row and column are left out, as networks need not get them right.
        last_corner = tensor_on(
            device, [side - extent for side, extent in zip(grid, window, strict=True)]
        )
        windows = Windows(torch.minimum(group_start, last_corner), window)
        near = windows.inside(
            group_start + (group_start > 0), torch.minimum(end[box_index], on_image)
        )
        no_probs = near.new_zeros(0, dtype=torch.float32)
        plan.append(WindowMasks(no_probs, candidate_index, owner, box_index, windows, near))
    return plan


def teacher_view(batch: Batch, *, short: int | None, long: int) -> Batch:
    """The batch with weak images of a short side of `short` pixels (long side at most `long`), and boxes to fit.

    None, or a size that changes nothing, gives the batch itself; `strong` is never resized.
    """
    if short is None:
        return batch
    sizes = [resized_shape(size, short_side=short, max_size=long) for size in batch.sizes]
    if sizes == batch.sizes:
        return batch
    images, boxes = [], []
    for weak, box, (height, width), size in zip(
        batch.weak, batch.boxes, batch.sizes, sizes, strict=True
    ):
        pixels = weak[None, :, :height, :width].float()
        images.append(F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0])
        boxes.append(clip_boxes_to_image(scale_boxes(box, (height, width), size), size))
    padded, valid = pad_images(images)
    return replace(batch, weak=padded, valid=valid, boxes=boxes, sizes=sizes)


def mask_probs(
    network: MaskNetwork,
    predictions: Any,
    handle: Tensor,
    batch: Batch,
    view: Batch,
    image: int,
    frame: MaskFrame | None = None,
) -> Tensor:
    """Mask probabilities (C, H/4, W/4) of handles (C, …) of one image, on the grid of `batch` and 0 on its padding.

    With a frame they stay on the grid of the view.
    """
    height, width = view.valid.shape[-2:]
    at_once = max(_cells_at_once(handle.device) // (height * width // MASK_STRIDE**2), 1)
    chunks = []
    for part in handle.split(at_once):
        image_index = torch.full((len(part),), image, device=handle.device)
        probs = network.mask_logits(predictions, image_index, part).float().sigmoid()
        chunks.append(
            probs if frame or view is batch else to_training_grid(probs, batch, view, image)
        )
    probs = torch.cat(chunks)
    return probs if frame else probs * sample_cells(batch.valid[image])


def _cells_at_once(device: torch.device) -> int:
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return threads * CELLS_AT_ONCE.get(device.type, max(CELLS_AT_ONCE.values()))


def to_training_grid(probs: Tensor, batch: Batch, view: Batch, image: int) -> Tensor:
    """Bilinear samples of maps of the view (C, Ht/4, Wt/4) at the centre pixels of the batch's cells (C, H/4, W/4)."""
    # coordinates of the samples as `grid_sample` wants them: from -1 to 1, the first and the last cell
    axes = []
    sides = zip(
        batch.valid.shape[-2:],
        probs.shape[-2:],
        batch.sizes[image],
        view.sizes[image],
        strict=True,
    )
    for padded, cells, side, new_side in sides:
        pixel = torch.arange(MASK_STRIDE // 2, padded, MASK_STRIDE, device=probs.device)
        # The centre of pixel k is at k + 0.5 in both images.
        new_pixel = ((pixel + 0.5) * (new_side / side) - 0.5).clamp(0, new_side - 1)
        cell = (new_pixel - MASK_STRIDE // 2) / MASK_STRIDE
        axes.append(2 * cell / max(cells - 1, 1) - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None]  # (1, H/4, W/4, 2)
    (sampled,) = F.grid_sample(
        probs[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled


def _rank(
    detections: RawDetections, batch: Batch, view: Batch, image: int, qam: QamConfig
) -> Ranking:
    """Box-Quality Ranking with the limits of the settings."""
    limits, k_per_box = qam, None
    if qam.adaptive_k:
        height, width = batch.sizes[image]
        original_height, original_width = batch.original_sizes[image]
        scale = original_height * original_width / (height * width)
        areas = box_area(batch.boxes[image]) * scale  # px² of the original image
        k_per_box = adaptive_k(
            areas, k_min=qam.k_min, k_max=qam.k_max, area_s=qam.area_s, area_l=qam.area_l
        ).round()
        limits = qam.model_copy(update={"k_top": qam.k_max})
    return order_candidates(
        view.boxes[image], batch.labels[image], detections, limits, k_per_box=k_per_box
    )


def _suppress(raw: RawDetections, size: tuple[int, int], fcos: FcosConfig) -> RawDetections:
    """The best detections after NMS, their boxes cut to the image as they are in predictions."""
    best = choose_detections(raw, fcos)
    best = replace(best, boxes=clip_boxes_to_image(best.boxes, size))
    return best.take(box_area(best.boxes) > 0)


def _confidence(probs: Tensor, frame: MaskFrame | None, mask_thr: float) -> Tensor:
    """Mean probability of each mask, (C,), on the pixels of the training image where there is a frame."""
    if frame is None:
        return mask_confidence(probs, mask_thr=mask_thr)
    parts = probs.split(masks_at_once(frame))
    return torch.cat([mask_confidence(enlarge(part, frame), mask_thr=mask_thr) for part in parts])


def _match(
    detections: RawDetections,
    confidence: Tensor,
    boxes: Tensor,
    qam: QamConfig,
    teacher: TeacherConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """BoxTeacher's labelling: detections ranked by score and mask take a free box each."""
    rank = (detections.scores * confidence).sqrt().argsort(descending=True, stable=True)
    iou = box_iou(detections.boxes, boxes)  # (P, N)
    index, box_index = match_greedily(
        iou, rank, iou_thr=qam.iou_thr, overwrite=teacher.nms_overwrite
    )
    return index, box_index, iou[index, box_index]


def match_greedily(
    iou: Tensor, rank: Tensor, *, iou_thr: float, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """Give each detection in turn the free box that it overlaps most, if by at least `iou_thr`.

    Args:
        iou: Float (P, N), detections as NMS left them, best score first.
        rank: int64 (P,), detections in the order in which they choose.
        iou_thr: Least IoU.
        overwrite: A box that detection 0 has taken stays free for later ones, as in the reference.

    Returns:
        `detection_index` and `box_index`, int64 (C,), sorted by box.

    Source: BoxTeacher (arXiv 2210.05174); `docs/method.md#one-detection-per-box`.
    """
    # Each choice depends on the ones before: done on the host, at most 100 small rows and one read from the device.
    table = iou.cpu().clone()
    detection_of_box: dict[int, int] = {}
    for detection in rank.tolist() if table.shape[1] else []:
        box = int(table[detection].argmax())
        if float(table[detection, box]) >= iou_thr:
            detection_of_box[box] = detection
            if detection > 0 or not overwrite:
                table[:, box] = -1  # the box is taken
    pairs = (
        torch.tensor(sorted(detection_of_box.items()), dtype=torch.int64)
        .view(-1, 2)
        .to(iou.device)
    )
    return pairs[:, 1], pairs[:, 0]
