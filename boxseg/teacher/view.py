"""What the teacher sees of a batch, and the masks that it draws on the batch's own grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from boxseg.config.method import QamConfig
from boxseg.ops.boxes import scale_boxes
from boxseg.ops.images import pad_images, resized_shape
from boxseg.ops.neighbours import sample_cells
from boxseg.structures import MASK_STRIDE, Batch, MaskFrame, MaskNetwork

CELLS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}
"""Stride-4 cells of candidate masks that the mask head computes in one go, by kind of device; on a CPU for each
thread. On a GPU this bounds memory to a few hundred MB. On a CPU it keeps hidden layers in the caches, which halves the
time."""


def cells_at_once(device: torch.device) -> int:
    """`CELLS_AT_ONCE` on this machine."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return threads * CELLS_AT_ONCE.get(device.type, max(CELLS_AT_ONCE.values()))


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


def mask_frame(batch: Batch, view: Batch, image: int, qam: QamConfig) -> MaskFrame | None:
    """How masks of the view lie in an image of the batch, where they are fused on every pixel of it."""
    if not qam.full_resolution:
        return None
    height, width = batch.valid.shape[-2:]
    return MaskFrame(view.sizes[image], batch.sizes[image], (height, width))


def whole_masks(
    network: MaskNetwork,
    predictions: Any,
    handle: Tensor,
    batch: Batch,
    view: Batch,
    image: int,
    frame: MaskFrame | None,
) -> Tensor:
    """Mask probabilities (C, H/4, W/4) of handles (C, …) of one image, on the grid of `batch` and 0 on its padding.

    With a frame they stay on the grid of the view.
    """
    height, width = view.valid.shape[-2:]
    at_once = max(cells_at_once(handle.device) // (height * width // MASK_STRIDE**2), 1)
    chunks = []
    for part in handle.split(at_once):
        image_index = torch.full((len(part),), image, device=handle.device)
        probs = network.mask_logits(predictions, image_index, part).float().sigmoid()
        chunks.append(
            probs if frame or view is batch else to_training_grid(probs, batch, view, image)
        )
    probs = torch.cat(chunks)
    return probs if frame else probs * sample_cells(batch.valid[image])


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
