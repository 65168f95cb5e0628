"""Pixels of opened pictures as RGB of 8 bits, and as CIELAB; needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.files.reading import UnreadableError

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners give a pixel. They store more than 8 in files of 16, which do not say how many."""
LARGEST_VALUE = 0xFFFF
"""Of 16 bits; larger values are cut off."""
DEEP_COLOURS = frozenset({"RGB", "RGBA", "LA"})
"""PIL modes of pictures whose colours of 16 bits OpenCV can read, unlike those of CMYK."""
NO_COLOURS = {
    "F": "has floats as pixels, and no rule says which are dark and which are bright",
    "La": "has grey with premultiplied transparency as pixels",
}
"""PIL mode -> why such pixels are not converted to RGB."""
DEEP_PLANES = "has colours of 16 bits in one plane after the other"
"""PIL and OpenCV read a TIFF of this kind without an error, and wrongly."""
COLOURS_RULE = "pixels are whole numbers of 8 or 16 bits, the colours of each side by side"
BITS, PHOTOMETRIC, CHANNELS, PLANES = 258, 262, 277, 284
"""Tags of a TIFF."""


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture that was just opened stores more than 8 bits a pixel and colour."""
    # PIL names the layout of the stored pixels in `tile`, which is empty once they are decoded.
    return picture.mode.startswith("I") or ";16" in str(getattr(picture, "tile", ""))


def require_colours(picture: Image.Image) -> None:
    """Refuse a picture that was just opened if its pixels cannot become RGB.

    Raises:
        UnreadableError: it cannot be read; names the file and the reason.
    """
    tags = getattr(picture, "tag_v2", {})
    has_planes = tags.get(PLANES) == 2 and tags.get(CHANNELS, 1) > 1
    has_deep_planes = has_planes and max(tags.get(BITS, (1,))) > 8
    value = DEEP_PLANES if has_deep_planes else NO_COLOURS.get(picture.mode)
    if value is not None:
        path = Path(str(getattr(picture, "filename", "")))
        raise UnreadableError(path, value, COLOURS_RULE, "store it as PNG or JPEG")


def rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """All pixels of a picture that was just opened, uint8 (h, w, 3), writable.

    Of pictures of 16 bits, the upper 8 of the bits in use; what needs more than 16 bits is cut off.

    Raises:
        UnreadableError: as `require_colours`.
    """
    require_colours(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # PIL would cut them off at 255 instead.
        grey = _upper_bits(np.asarray(picture))
        is_white_zero = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0
        if is_white_zero:  # PIL turns only those of 8 bits around
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    picture.info.pop("transparency", None)  # ignored here, and PIL would warn of some
    has_deep_colours = picture.mode in DEEP_COLOURS and is_deep(picture)
    pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    deep = _deep_colours(picture) if has_deep_colours else None
    return pixels if deep is None else _upper_bits(deep)


def cielab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELAB (D65), float32 (h, w, 3), of sRGB pixels, uint8 (h, w, 3)."""
    import cv2  # takes a while to load

    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab, dtype=np.float32)


def _deep_colours(picture: Image.Image) -> NDArray[np.uint16] | None:
    """Colours (h, w, 3) of 16 bits, which PIL cannot hold; None if OpenCV cannot read them either."""
    import cv2  # takes a while to load

    logging = cv2.utils.logging
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # it prints what it cannot read, which PIL can
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imread(str(getattr(picture, "filename", "")), flags)
    if values is None or values.dtype != np.uint16:
        return None
    if values.shape != (picture.height, picture.width, 3):
        return None
    return values[..., ::-1].astype(np.uint16, copy=False)  # stored as blue, green, red


def _upper_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Of whole numbers, the upper 8 of as many bits as the largest one needs."""
    values = values.astype(np.int64).clip(0, LARGEST_VALUE)
    largest = int(values.max(initial=0))
    depth = next(depth for depth in DEPTHS if largest < 1 << depth)
    return (values >> (depth - 8)).astype(np.uint8)
