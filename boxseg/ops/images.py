"""Pure functions on the sizes of images, (height, width) in pixels, and on their padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def resized_shape(size: tuple[int, int], *, short_side: int, max_size: int) -> tuple[int, int]:
    """(height, width) after scaling the short side to `short_side`, less if the long side would exceed `max_size`.

    Halves are rounded up; `docs/method.md#views`.

    >>> resized_shape((480, 640), short_side=800, max_size=1333)
    (800, 1067)
    >>> resized_shape((200, 1000), short_side=800, max_size=1333)
    (267, 1333)
    """
    scale = min(short_side / min(size), max_size / max(size))
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def pad_images(images: Sequence[Tensor], *, divisor: int = 32) -> tuple[Tensor, Tensor]:
    """Images (c, h, w) of different sizes as one tensor, with 0 at the right and at the bottom.

    Returns:
        (B, c, H, W), H and W the smallest multiples of `divisor` that hold all images, and valid, bool (B, H, W).
    """
    # -(-a // b) rounds up.
    height = -(-max(image.shape[1] for image in images) // divisor) * divisor
    width = -(-max(image.shape[2] for image in images) // divisor) * divisor
    padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    valid = padded.new_zeros(len(images), height, width, dtype=torch.bool)
    for index, image in enumerate(images):
        padded[index, :, : image.shape[1], : image.shape[2]] = image
        valid[index, : image.shape[1], : image.shape[2]] = True
    return padded, valid
