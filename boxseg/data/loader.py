"""Batches for training, a pure function of seed and step, and batches in order for evaluation.

What is read may come from loader processes: decoded, and made smaller where the view is. What makes images larger or
more (enlarging, padding, colours of the strong view) is done where the batch is used, on the device: so loader
processes do little more than decode, and little travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from boxseg.config.method import DataConfig, TrainConfig
from boxseg.data.colors import add_strong_view
from boxseg.data.dataset import CocoBoxes
from boxseg.data.transforms import Shape, View, make_view, random_size, resize_only
from boxseg.data.windows import random_window
from boxseg.errors import DataError
from boxseg.ops.images import pad_images
from boxseg.ops.neighbours import sample_cells
from boxseg.structures import MASK_STRIDE, Batch, DrawnMasks, Sample

ORDER_STREAM, VIEW_STREAM = 0, 1
"""Keep the numbers that shuffle apart from those that augment."""

Read = TypeVar("Read")
"""What is read for one batch."""


class TrainLoader:
    """An endless, shuffled stream of training batches that can start at any step.

    Image and view at every position of the global batch depend on seed, step and position alone. So nothing has to
    be saved to resume, and one worker with batches of 8 sees what two workers with batches of 4 see. Every image
    comes once per epoch; a batch may reach into the next epoch. Where a data set has both, landscape and portrait
    images are put into separate global batches, which saves padding; at most two batches at each epoch border mix them.

    Args:
        dataset: Images and boxes.
        train: What the views are, whole images or windows, and how they change towards the end; images of the global
            batch, and seed of order and views.
        data: Flips and colours of the views, and the processes that read images; 0 reads in the calling one.
        rank: Which share of the global batch is this process's.
        world_size: Number of processes that share it.
        device: Where batches are wanted, and strong views are made.

    Raises:
        DataError: the data set is empty.
    """

    def __init__(
        self,
        dataset: CocoBoxes,
        train: TrainConfig,
        data: DataConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(dataset) == 0:
            raise DataError(
                f"{dataset.source.annotations}: no image has a box; training needs at least one"
            )
        self._workers = data.loader_workers
        self._dataset = dataset
        self._make_view = partial(make_view, flip=data.flip, strong=data.strong)
        self._shape = view_shape(train)
        self._late_shape = view_shape(train.closest)
        self._late_from = round(train.closer_from * train.steps)
        self._batch_size = train.batch_size // world_size
        self._order = ImageOrder(
            dataset.sizes, seed=train.seed, global_batch_size=self._batch_size * world_size
        )
        self._seed = train.seed
        self._rank = rank
        self._device = torch.device(device)

    def batches(self, start_step: int, steps: int) -> Iterator[Batch]:
        """Batches of the steps `start_step` … `start_step + steps - 1`, read lazily and, with workers, ahead.

        Raises:
            DataError: an image cannot be read; names file and id.
        """
        wanted = range(start_step, start_step + steps)
        yield from map(self.finish, _load(self.read, wanted, self._workers))

    def read(self, step: int) -> list[View]:
        """What loader processes do for one step."""
        first = step * self._order.global_batch_size + self._rank * self._batch_size
        positions = range(first, first + self._batch_size)
        shape = self._late_shape if step >= self._late_from else self._shape
        return [self._read_view(position, shape) for position in positions]

    def finish(self, views: list[View]) -> Batch:
        """What is left to do for one step, on the device."""
        recolorings = [view.recoloring for view in views]
        return add_strong_view(collate(views, device=self._device), recolorings)

    def _read_view(self, position: int, shape: Shape) -> View:
        """The view at a position of the endless stream of images."""
        sequence = np.random.SeedSequence([self._seed, VIEW_STREAM, position])
        (state,) = sequence.generate_state(1, np.uint64).tolist()
        seed = state >> 1  # torch takes 64 bits with a sign
        generator = torch.Generator().manual_seed(seed)
        sample = self._dataset[self._order(position)]
        return self._make_view(sample, shape=shape, generator=generator)


def view_shape(train: TrainConfig) -> Shape:
    """Makes the training view of an image: a window around an object if `train.window` asks for it."""
    if train.window is None:
        return partial(random_size, short_sides=train.short_sides, max_size=train.max_size)
    return partial(random_window, side=train.window, object_size=train.object_size)


class ImageOrder:
    """Which image stands at a position of the endless stream of images.

    Args:
        sizes: (M, 2), height and width of each image.
        seed: Another one gives another order.
        global_batch_size: Images of one step, of all processes.
    """

    def __init__(self, sizes: NDArray[np.int64], *, seed: int, global_batch_size: int) -> None:
        self._is_portrait = sizes[:, 0] > sizes[:, 1]
        self._seed = seed
        self.global_batch_size = global_batch_size
        self._orders: dict[int, NDArray[np.int64]] = {}  # of the two epochs last asked for

    def __call__(self, position: int) -> int:
        """Index of the image at a position 0, 1, 2, …"""
        epoch, offset = divmod(position, len(self._is_portrait))
        if epoch not in self._orders:
            # A batch may reach from one epoch into the next, so the one before stays.
            self._orders = {old: self._orders[old] for old in self._orders if old == epoch - 1}
            self._orders[epoch] = self._shuffle(epoch)
        return int(self._orders[epoch][offset])

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, ORDER_STREAM, epoch])
        order = rng.permutation(len(self._is_portrait))
        has_both = 0 < self._is_portrait.sum() < len(order)
        return self._group(order, epoch, rng) if has_both else order

    def _group(
        self, order: NDArray[np.int64], epoch: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Reorder so that most global batches hold one orientation only."""
        size = self.global_batch_size
        is_portrait = self._is_portrait[order]
        full_batches, left_over = [], []
        for group in (order[is_portrait], order[~is_portrait]):
            end = len(group) // size * size
            full_batches.append(group[:end].reshape(-1, size))
            left_over.append(group[end:])
        batches = rng.permutation(np.concatenate(full_batches))
        others = rng.permutation(np.concatenate(left_over))
        # Batches go on from one epoch to the next, so the first positions of this one may complete a batch of the last.
        # Behind them a batch begins, and there our full batches have to begin as well.
        first_boundary = -epoch * len(order) % size
        return np.roll(np.concatenate([batches.ravel(), others]), first_boundary)


def eval_batches(
    dataset: CocoBoxes,
    indices: Sequence[int],
    train: TrainConfig,
    *,
    batch_size: int,
    workers: int,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches of the given images in order, resized only; `weak` and `strong` are one tensor.

    Boxes have the order of the data set, as `CocoBoxes.drawn_masks` has. Images without boxes are fine. The last
    batch may be smaller.

    Args:
        dataset: Images and boxes.
        indices: The images, by their position in the data set.
        train: `eval_short_side` and `max_size` count.
        batch_size: Images of a batch.
        workers: Processes that read images; 0 reads in the calling one.
        device: Where batches are wanted.

    Raises:
        DataError: an image cannot be read; names file and id.
    """
    starts = range(0, len(indices), batch_size)
    parts = [indices[start : start + batch_size] for start in starts]
    resize = partial(resize_only, short_side=train.eval_short_side, max_size=train.max_size)
    read = partial(_read_eval_views, dataset, parts, resize)
    views = _load(read, range(len(parts)), workers)
    return map(partial(collate, device=device), views)


def _read_eval_views(
    dataset: CocoBoxes, parts: list[Sequence[int]], resize: Callable[[Sample], View], number: int
) -> list[View]:
    return [resize(dataset[index]) for index in parts[number]]


def collate(
    views: Sequence[View], *, divisor: int = 32, device: torch.device | str = "cpu"
) -> Batch:
    """Views as one batch, padded at the right and at the bottom with 0; `weak` and `strong` are one tensor.

    Args:
        views: At least one.
        divisor: Both sides of the batch are the smallest multiple of this that holds every view.
        device: Where the batch is made.

    Returns:
        A Batch; drawn masks are sampled at the cells.
    """
    images = [view.weak(device) for view in views]
    weak, valid = pad_images(images, divisor=divisor)
    size = weak.shape[-2:]
    drawn = [_at_cells(view.drawn, size) for view in views if view.drawn is not None]
    return Batch(
        weak=weak,
        strong=weak,
        valid=valid,
        boxes=[view.boxes for view in views],
        labels=[view.labels for view in views],
        sizes=[view.size for view in views],
        original_sizes=[view.original_size for view in views],
        image_ids=[view.image_id for view in views],
        drawn=drawn or None,
    ).to(device)


def _at_cells(drawn: DrawnMasks, padded_size: Sequence[int]) -> DrawnMasks:
    """Masks (N, h, w) at the cell centres of the padded (height, width); False on padding."""
    height, width = (side // MASK_STRIDE for side in padded_size)
    cells = sample_cells(drawn.mask)
    below, beside = height - cells.shape[1], width - cells.shape[2]
    return replace(drawn, mask=functional.pad(cells, (0, beside, 0, below)))


def _load(read: Callable[[int], Read], wanted: range, workers: int) -> Iterator[Read]:
    """What `read` gives for each wanted number, in order; read by `workers` processes, ahead."""
    loader: DataLoader[Read | DataError] = DataLoader(
        _Steps(read),
        sampler=wanted,
        batch_size=None,
        num_workers=workers,
        # Of its own: drawing the workers' base seed must not move the global generator.
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, DataError):
            raise result
        yield result


class _Steps(Dataset["Read | DataError"], Generic[Read]):
    """What is read by step. A DataError is returned: raised in a loader process it would arrive as a traceback."""

    def __init__(self, read: Callable[[int], Read]) -> None:
        self._read = read

    def __getitem__(self, step: int) -> Read | DataError:
        try:
            return self._read(step)
        except DataError as error:
            return error
