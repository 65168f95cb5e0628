"""The frozen dataclasses that travel along the path of a training step, and the network protocol.

`B` images, `N` boxes of one image, `C` candidates of one image, `n` proposals of a batch, `L` locations of all
pyramid levels, `K` classes. One image is `(h, w)`, the padded batch `(H, W)` with both sides multiples of 32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from boxseg.errors import ShapeError
from boxseg.mask_parts import MaskPart, place_masks

MASK_STRIDE = 4
"""Pixels of the padded image per cell of a mask map: the resolution of all mask losses."""

MeanOverRanks = Callable[[Tensor], Tensor]
"""Mean of a tensor over all training processes."""


@dataclass(frozen=True)
class DrawnMasks:
    """Masks that a person drew for some of the boxes of one image; read only where `data.use_masks` allows it."""

    mask: Tensor
    """Bool (N, h, w), or (N, H/4, W/4) in a batch; all False where none was drawn."""
    present: Tensor
    """Bool (N,): whether the box has a drawn mask."""


@dataclass(frozen=True)
class Sample:
    """One image with its boxes, as read from disk or after geometry was applied."""

    image: Tensor
    """uint8 (3, h, w), RGB."""
    boxes: Tensor
    """Float (N, 4), x1 y1 x2 y2 in pixels of `image`."""
    labels: Tensor
    """int64 (N,), class index 0 … K-1."""
    image_id: int
    """Id of the image in the COCO file."""
    original_size: tuple[int, int]
    """(height, width) of the image file, in pixels."""
    drawn: DrawnMasks | None = None
    """Drawn masks at the size of `image`; None where they are not to be used."""


@dataclass(frozen=True)
class Batch:
    """Padded images of one step, with their boxes."""

    weak: Tensor
    """uint8 (B, 3, H, W), RGB; 0 on padding."""
    strong: Tensor
    """uint8 (B, 3, H, W); same geometry as `weak`, other colours."""
    valid: Tensor
    """Bool (B, H, W); False on padding."""
    boxes: list[Tensor]
    """B times float (N, 4), pixels."""
    labels: list[Tensor]
    """B times int64 (N,)."""
    sizes: list[tuple[int, int]]
    """B times (h, w) before padding, pixels."""
    original_sizes: list[tuple[int, int]]
    """B times (height, width) of the image file, pixels."""
    image_ids: list[int]
    drawn: list[DrawnMasks] | None = None
    """B times the drawn masks at the cells [2::4, 2::4] of the padded image; None where they are not to be used."""

    def __len__(self) -> int:
        return len(self.boxes)

    def split(self, parts: int) -> list[Batch]:
        """`parts` batches of consecutive images, sizes differing by one at most; fewer where there are fewer images."""
        parts = min(parts, len(self))
        # Even steps, rounded down: 10 images in 4 parts end at 2, 5, 7 and 10.
        bounds = [len(self) * number // parts for number in range(parts + 1)]
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            replace(
                self,
                # `drawn` may be None, which has no parts.
                **{name: value[start:end] for name, value in values.items() if value is not None},
            )
            for start, end in pairwise(bounds)
        ]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`, images channel by channel; views that are one tensor stay one."""

        def send(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        weak = send(self.weak).contiguous()
        drawn = None
        if self.drawn is not None:
            drawn = [DrawnMasks(send(masks.mask), send(masks.present)) for masks in self.drawn]
        return replace(
            self,
            weak=weak,
            strong=weak if self.strong is self.weak else send(self.strong).contiguous(),
            valid=send(self.valid),
            boxes=[send(boxes) for boxes in self.boxes],
            labels=[send(labels) for labels in self.labels],
            drawn=drawn,
        )


@dataclass(frozen=True)
class Predictions:
    """Raw output of CondInst for a batch; levels are concatenated, finest first."""

    class_logits: Tensor
    """Float (B, L, K)."""
    distances: Tensor
    """Float (B, L, 4) >= 0: left, top, right, bottom, in units of the level's stride."""
    centerness_logits: Tensor
    """Float (B, L)."""
    controller_maps: Tensor
    """Float (B, L', C): features from which `FcosHead.controller_at` computes parameters of the dynamic mask head."""
    patches: Tensor
    """int64 (L, 9): the 3x3 cells around each location, as indices into L'."""
    mask_features: Tensor
    """Float (B, F, H/8, W/8)."""
    locations: Tensor
    """Float (L, 2): x, y in pixels of the padded image."""
    strides: Tensor
    """Float (L,): pixels."""
    levels: Tensor
    """int64 (L,): 0 for the finest level."""


@dataclass(frozen=True)
class LocationTargets:
    """What the detection head should say at each location of a batch."""

    box_index: Tensor
    """int64 (B, L): the box of the image that the location answers for; -1 for background."""
    labels: Tensor
    """int64 (B, L): class index; -1 for background."""
    distances: Tensor
    """Float (B, L, 4): left, top, right, bottom, in units of the level's stride; 0 for background."""
    centerness: Tensor
    """Float (B, L) in [0, 1]: 1 at the centre of the box; 0 for background."""


@dataclass(frozen=True)
class Proposals:
    """Instances of the student that get mask losses; sorted by image, then box, then falling score."""

    image_index: Tensor
    """int64 (n,)."""
    handle: Tensor
    """(n, …): what the network needs to draw each mask, see `MaskNetwork`."""
    box_index: Tensor
    """int64 (n,): index among the boxes of the image."""


@dataclass(frozen=True)
class MaskFrame:
    """How masks on the grid of the teacher's view lie in the training image; all (height, width) in pixels."""

    view: tuple[int, int]
    """Of the teacher's view, before padding."""
    image: tuple[int, int]
    """Of the training image, before padding."""
    padded: tuple[int, int]
    """Of the padded training batch."""


@dataclass(frozen=True)
class Windows:
    """Equally large parts of maps; all numbers in cells."""

    corner: Tensor
    """int64 (n, 2): first row and first column."""
    size: tuple[int, int]
    """(height, width) of every window."""

    def lines(self) -> tuple[Tensor, Tensor]:
        """The windows' rows, int64 (n, h), and columns, int64 (n, w)."""
        rows, columns = (
            # (n, 1) + (side,) -> (n, side)
            self.corner[:, axis, None] + torch.arange(side, device=self.corner.device)
            for axis, side in enumerate(self.size)
        )
        return rows, columns

    def inside(self, start: Tensor, end: Tensor) -> Tensor:
        """Bool (n, h, w): cells from row and column `start` (n, 2) to before `end` (n, 2)."""
        rows, columns = (
            (line >= start[:, axis, None]) & (line < end[:, axis, None])
            for axis, line in enumerate(self.lines())
        )
        return rows[:, :, None] & columns[:, None]  # (n, h, 1) & (n, 1, w)

    def cells(self, width: int) -> Tensor:
        """int64 (n, h * w): the windows' cells in flat maps of rows of `width` cells."""
        rows, columns = self.lines()
        return (rows[:, :, None] * width + columns[:, None]).flatten(1)

    def coarser(self, factor: int) -> Windows:
        """The same windows in cells that are `factor` times as large; corner and size are multiples of it."""
        return Windows(self.corner // factor, (self.size[0] // factor, self.size[1] // factor))


@dataclass(frozen=True)
class RawDetections:
    """Detections of one image without NMS; M places, unused ones have box and score 0."""

    boxes: Tensor
    """Float (M, 4), pixels of the padded image."""
    labels: Tensor
    """int64 (M,)."""
    scores: Tensor
    """Float (M,) in [0, 1]: the square root of the detector's confidence in class and box."""
    handle: Tensor
    """(M, …): what the network needs to draw each mask, see `MaskNetwork`."""

    def take(self, index: Tensor) -> RawDetections:
        """The detections of an index int64 (K,) or of a mask bool (M,)."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]  # once: each lookup by a mask waits for the device
        return RawDetections(
            self.boxes[index], self.labels[index], self.scores[index], self.handle[index]
        )


@dataclass(frozen=True)
class WindowMasks:
    """Candidate masks of n boxes of an image in windows around the boxes."""

    mask_probs: Tensor
    """Float (c, h, w) in [0, 1]."""
    candidate_index: Tensor
    """int64 (c,), among the candidates of the image."""
    owner: Tensor
    """int64 (c,) in 0 … n-1: the box that each serves."""
    box_index: Tensor
    """int64 (n,), among the boxes of the image."""
    windows: Windows
    """Where each box's window is, (n,), in cells of stride 4."""
    near: Tensor
    """Bool (n, h, w): cells around the box and on the image; nothing else is to be used."""


@dataclass(frozen=True)
class Candidates:
    """Teacher detections that were kept for the ground-truth boxes of one image; sorted by box, then by rank."""

    mask_probs: Tensor
    """Float (C, H/4, W/4) in [0, 1], on the grid of the padded training image; with a frame, of the teacher's view;
    with `around`, (C, 0, 0)."""
    score: Tensor
    """Float (C,) in [0, 1]: detection score."""
    box_iou: Tensor
    """Float (C,) in [0, 1]: IoU of the candidate's box with its ground-truth box."""
    box_index: Tensor
    """int64 (C,): the ground-truth box that the candidate serves."""
    frame: MaskFrame | None = None
    """Set where masks shall be fused on every pixel of the training image (`qam.full_resolution`)."""
    around: list[WindowMasks] | None = None
    """The masks instead of `mask_probs` where only what is around the boxes was computed."""


@dataclass(frozen=True)
class PseudoMasks:
    """What teacher and QAM say about the boxes of one image."""

    mask: Tensor
    """Bool (N, H/4, W/4), inside the box; all False where no candidate was found."""
    soft: Tensor
    """Float (N, H/4, W/4) in [0, 1]: the fused map (share of votes, or weighted probability) that `mask` thresholds."""
    quality: Tensor
    """Float (N,) in [0, 1]; 0 where no candidate was found."""
    score: Tensor
    """Float (N,) in [0, 1]: mean detection score of the candidates; 0 where there is none."""
    num_candidates: Tensor
    """int64 (N,)."""
    full: Tensor | None = None
    """Bool (N, H, W): the mask on every pixel, which `mask` samples, where it was fused there; else None."""


@dataclass(frozen=True)
class Detections:
    """Final predictions for one image, best first, at the size of the original image file."""

    boxes: Tensor
    """Float (D, 4), pixels of the original image."""
    scores: Tensor
    """Float (D,) in [0, 1]."""
    labels: Tensor
    """int64 (D,), class index."""
    parts: Sequence[MaskPart]
    """D masks, each in a rectangle around it, on the host."""
    size: tuple[int, int]
    """(height, width) of the image file, pixels."""
    image_id: int = -1

    @property
    def masks(self) -> Tensor:
        """Bool (D, height, width), made from `parts` at each call: costly for many objects of a large image."""
        return torch.from_numpy(place_masks(self.parts, self.size)).to(self.boxes.device)

    def take(self, index: Tensor) -> Detections:
        """The detections of an index int64 (K,), in its order."""
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            # Parts are on the host, so this is a read from the device.
            parts=[self.parts[row] for row in index.tolist()],
        )

    def from_score(self, least: float) -> Detections:
        """Those of at least this score."""
        return self.take((self.scores >= least).nonzero()[:, 0])


class MaskNetwork(nn.Module, ABC):
    """Any instance segmentation network: teacher, QAM, copy-paste, losses, evaluation and prediction need only this.

    What `forward` returns is the network's own affair and goes back into its other methods. A handle is what the
    network needs, besides that output, to draw the mask of one instance: a row of a tensor of any shape and dtype
    (for example the index of a location, or a box). Handles of the same network can be indexed and split by row.
    """

    @abstractmethod
    def forward(self, images: Tensor, valid: Tensor) -> Any:
        """Look at a batch: uint8 or float images (B, 3, H, W), RGB in 0 … 255, and bool valid (B, H, W)."""

    @abstractmethod
    def detect(self, predictions: Any, *, score_thr: float, pre_topk: int) -> list[RawDetections]:
        """B detections without NMS and without gradient.

        Args:
            predictions: Output of `forward`.
            score_thr: Floor of the detector's confidence in class and box, of which the score is the square root;
                weaker detections are left out or have score 0.
            pre_topk: Detections at most: of the image, or of each pyramid level.
        """

    @abstractmethod
    def mask_logits(self, predictions: Any, image_index: Tensor, handle: Tensor) -> Tensor:
        """Mask logits, float32 (n, H/4, W/4) on the grid of the padded images, of image_index (n,), handle (n, …)."""

    class_layers: ClassVar[tuple[str, ...]] = ()
    """Layers with one output for each class, in the order of labels. Where a run starts from weights with other
    classes, the outputs of common classes are copied; the others keep their random start."""

    draws_windows: ClassVar[bool] = False
    """Whether there is `window_logits`."""

    def window_logits(
        self,
        predictions: Any,
        image_index: Tensor,
        handle: Tensor,
        parts: Sequence[tuple[Tensor, Windows]],
    ) -> Iterator[Tensor]:
        """`mask_logits` around boxes only, which costs a fraction of whole maps; where the network can.

        Args:
            predictions: Output of `forward`.
            image_index: int64 (n,).
            handle: (n, …).
            parts: Indices int64 (k,) into these instances, and what is wanted of their maps: k windows in cells of
                stride 4, corners and sizes are even.

        Yields:
            Float32 (k, h, w) for each part, without gradient. The first row and the first column of a window need not
            be right unless they are those of the map.
        """
        raise NotImplementedError

    @abstractmethod
    def detection_losses(
        self,
        predictions: Any,
        boxes: list[Tensor],
        labels: list[Tensor],
        *,
        mean_over_ranks: MeanOverRanks,
    ) -> tuple[dict[str, Tensor], Proposals]:
        """The network's own losses for boxes and classes, and the instances whose masks are to be trained.

        Args:
            predictions: Output of `forward` in training mode.
            boxes: B times float (N, 4), pixels; N may be 0.
            labels: B times int64 (N,).
            mean_over_ranks: For normalisers that count over all processes.

        Returns:
            Named float scalars, the same names for every batch, connected to every learning parameter that the mask
            losses may leave out (data-parallel training waits for all of them); and the proposals.
        """


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ShapeError unless all named tensors have one shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"shapes differ: {listing}; these arguments need one common shape")
