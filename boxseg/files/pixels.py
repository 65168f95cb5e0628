"""Pixels of opened pictures as RGB of 8 bits; needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners give a pixel. They store more than 8 in files of 16, which do not say how many."""


def rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """All pixels of a picture, uint8 (h, w, 3), writable. Of grey pictures of 16 bits, the upper 8 bits in use."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # PIL would cut them off at 255 instead.
        grey = _upper_bits(np.asarray(picture))
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _upper_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Of whole numbers (h, w), the upper 8 of as many bits as the largest one needs."""
    values = values.astype(np.int64).clip(0, 0xFFFF)
    largest = int(values.max(initial=0))
    depth = next(depth for depth in DEPTHS if largest < 1 << depth)
    return (values >> (depth - 8)).astype(np.uint8)
