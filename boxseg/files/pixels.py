"""Pixels of opened pictures as RGB of 8 bits; needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners give a pixel. They store more than 8 in files of 16, which do not say how many."""
DEEP_COLOURS = frozenset({"RGB", "RGBA", "LA"})
"""PIL modes of pictures whose colours of 16 bits OpenCV can read; it complains on stderr of others, such as CMYK."""


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture that was just opened stores more than 8 bits a pixel and colour."""
    # PIL names the layout of the stored pixels in `tile`, which is empty once they are decoded.
    return picture.mode.startswith("I") or ";16" in str(getattr(picture, "tile", ""))


def rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """All pixels of a picture that was just opened, uint8 (h, w, 3), writable.

    Of pictures of 16 bits, the upper 8 of the bits in use; what needs more than 16 bits is cut off.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # PIL would cut them off at 255 instead.
        grey = _upper_bits(np.asarray(picture))
        return np.repeat(grey[..., None], 3, axis=2)
    has_deep_colours = picture.mode in DEEP_COLOURS and is_deep(picture)
    pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    deep = _deep_colours(picture) if has_deep_colours else None
    return pixels if deep is None else _upper_bits(deep)


def _deep_colours(picture: Image.Image) -> NDArray[np.uint16] | None:
    """Colours (h, w, 3) of 16 bits, which PIL cannot hold; None if OpenCV cannot read them either."""
    import cv2  # takes a while to load

    values = cv2.imread(str(getattr(picture, "filename", "")), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        return None
    if values.shape not in [(picture.height, picture.width, channels) for channels in (3, 4)]:
        return None
    # stored as blue, green, red and perhaps transparency
    return values[..., 2::-1].astype(np.uint16, copy=False)


def _upper_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Of whole numbers, the upper 8 of as many bits as the largest one needs."""
    values = values.astype(np.int64).clip(0, 0xFFFF)
    largest = int(values.max(initial=0))
    depth = next(depth for depth in DEPTHS if largest < 1 << depth)
    return (values >> (depth - 8)).astype(np.uint8)
