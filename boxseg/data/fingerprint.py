"""What a data set is like, in the few numbers that settings depend on; needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.checks import read_well_formed
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.files.reading import UnreadableError, read_picture

LOOKED_AT = 64
"""Images that are opened, spread evenly over the file."""
PIXELS_LOOKED_AT = 2 * 10**8
"""Pixels that are decoded at most: some seconds."""
BOXES_LOOKED_AT = 8
"""Boxes of an opened image whose colours are compared with those around them."""
GREY_LEVELS = 6
"""How far red, green and blue of a grey image may differ (0 … 255): compression adds some colour."""
NOTICED = 75
"""Percentile of the colour distances within a box that counts as its object's: most objects fill a quarter or more."""
FEWEST_PIXELS = 8
"""A box, or what is around it, with fewer says nothing about colours."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How something is spread: a tenth lies below `low`, a tenth above `high`."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Spread:
        """The spread of one value or more."""
        return cls(*(round(float(each), 2) for each in np.percentile(values, (10, 50, 90))))

    def __str__(self) -> str:
        return f"{self.median:.0f} ({self.low:.0f} to {self.high:.0f})"


@dataclass(frozen=True)
class Colours:
    """What the opened images look like."""

    images: int
    """How many were opened."""
    grey: float
    """Share of them without colour."""
    brightness: float
    """Mean CIELAB lightness, 0 (black) to 100."""
    contrast: float
    """Median over boxes: CIELAB distance of the object from the surroundings of its box; NaN where none has any."""
    noise: float
    """The same of the surroundings themselves from their own mean."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Sizes of all boxes, each with those of its image; arrays of the same length."""

    longer_px: Floats
    """Longer side of each box."""
    short_px: Floats
    """Short side of its image."""
    long_px: Floats
    """Long side of its image."""

    def sizes_at(self, short_side: float, max_size: float = math.inf) -> Floats:
        """Longer sides of the boxes [px] where images are resized to a short side, and no further than a long side."""
        return self.longer_px * np.minimum(short_side / self.short_px, max_size / self.long_px)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A data set in a few numbers."""

    images: int
    """Images with a box."""
    boxes: int
    """Boxes that are not crowd regions."""
    classes: int
    """Classes that have a box."""
    boxes_per_image: Spread
    image_px: Spread
    """Short side of the images with a box."""
    object_px: Spread
    """Longer side of the boxes."""
    colours: Colours | None
    """None where no image could be opened, or none was to be."""
    sides: Boxes

    def told(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        colours = self.colours
        lines = [
            ("images", f"{self.images}, short side {self.image_px} px"),
            (
                "boxes",
                f"{self.boxes} of {self.classes} classes, {self.boxes_per_image} in an image",
            ),
            ("longer side of boxes", f"{self.object_px} px"),
        ]
        if colours is not None:
            kind = "grey" if colours.grey > 0.5 else "in colour"
            seen = f"{kind}, lightness {colours.brightness:.0f} of 100"
            if math.isfinite(colours.contrast):
                seen += f"; objects differ from what is around them by {colours.contrast:.0f}, "
                seen += f"that from itself by {colours.noise:.0f} (CIELAB)"
            lines.append(("colours", seen))
        return lines


def take_fingerprint(source: CocoSource, *, look: bool = True) -> Fingerprint:
    """Measure a data set: sizes from its annotation file, colours from a sample of its images.

    Args:
        source: Images and annotation file.
        look: Open images.

    Raises:
        DataError: the file cannot be used, or has no box of positive size.
    """
    content = read_well_formed(source.annotations, whole=False)
    images = {each["id"]: each for each in content["images"]}
    boxes = [
        each for each in content["annotations"] if _is_usable(each) and each["image_id"] in images
    ]
    if not boxes:
        raise DataError(
            f"{source.annotations}: has no box that is not a crowd; name a file with boxes"
        )
    per_image = Counter(each["image_id"] for each in boxes)
    sizes = np.array(
        [[images[each]["width"], images[each]["height"]] for each in per_image], dtype=np.float64
    )
    of_boxes = np.array(
        [[images[each["image_id"]][side] for side in ("width", "height")] for each in boxes], float
    )
    longer = np.array([max(each["bbox"][2:]) for each in boxes], dtype=np.float64)
    return Fingerprint(
        images=len(per_image),
        boxes=len(boxes),
        classes=len({each["category_id"] for each in boxes}),
        boxes_per_image=Spread.of(list(per_image.values())),
        image_px=Spread.of(sizes.min(axis=1)),
        object_px=Spread.of(longer),
        colours=_look_at(source, [images[each] for each in per_image], boxes) if look else None,
        sides=Boxes(longer, of_boxes.min(axis=1), of_boxes.max(axis=1)),
    )


def _is_usable(annotation: dict[str, Any]) -> bool:
    sides = annotation["bbox"][2:]
    return (
        not annotation.get("iscrowd")
        and all(map(math.isfinite, annotation["bbox"]))
        and min(sides) > 0
    )


def _look_at(
    source: CocoSource, images: Sequence[dict[str, Any]], boxes: Sequence[dict[str, Any]]
) -> Colours | None:
    of_image: dict[int, list[list[float]]] = {}
    for each in boxes:
        of_image.setdefault(each["image_id"], []).append(each["bbox"])
    greys: list[bool] = []
    lights: list[float] = []
    differences: list[tuple[float, float]] = []
    for image in _sample(images):
        if not is_inside(image["file_name"]):
            continue
        try:
            pixels = read_picture(source.images / image["file_name"], _pixels)
        except UnreadableError:  # `boxseg data check` tells
            continue
        spread = np.ptp(pixels[::4, ::4].astype(np.int64), axis=2)
        greys.append(float(np.percentile(spread, 99)) <= GREY_LEVELS)
        lights.append(float(cielab(pixels[::4, ::4])[..., 0].mean()))
        step = -(-len(of_image[image["id"]]) // BOXES_LOOKED_AT)
        for bbox in of_image[image["id"]][::step]:
            differences.extend(_difference(pixels, bbox))
    if not greys:
        return None
    contrast, noise = np.median(differences, axis=0) if differences else (math.nan, math.nan)
    return Colours(
        len(greys), float(np.mean(greys)), float(np.mean(lights)), float(contrast), float(noise)
    )


def _sample(images: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Some of the images, evenly spread, until enough pixels are seen."""
    places = np.unique(
        np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).round().astype(int)
    ).tolist()
    seen = 0
    for place in places[::2] + places[1::2]:
        seen += images[place]["width"] * images[place]["height"]
        if seen > PIXELS_LOOKED_AT and place != places[0]:
            return
        yield images[place]


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


def _difference(pixels: NDArray[np.uint8], bbox: Sequence[float]) -> Iterator[tuple[float, float]]:
    """How far the object of a box, and what is around it, are from the mean colour there; none where nothing is."""
    x, y, width, height = bbox
    margin = max(2.0, 0.25 * max(width, height))
    outer = _cut(pixels, x - margin, y - margin, x + width + margin, y + height + margin)
    if 0 in outer.shape:
        return
    left, top = max(x - margin, 0.0), max(y - margin, 0.0)
    rows = np.arange(outer.shape[0])[:, None] + math.floor(top) + 0.5
    columns = np.arange(outer.shape[1])[None] + math.floor(left) + 0.5
    inside = (rows > y) & (rows < y + height) & (columns > x) & (columns < x + width)
    if min(inside.sum(), (~inside).sum()) < FEWEST_PIXELS:
        return
    lab = cielab(outer)
    distance = np.linalg.norm(lab - lab[~inside].mean(axis=0), axis=-1)
    yield (
        float(np.percentile(distance[inside], NOTICED)),
        float(np.percentile(distance[~inside], NOTICED)),
    )


def _cut(
    pixels: NDArray[np.uint8], x1: float, y1: float, x2: float, y2: float
) -> NDArray[np.uint8]:
    return pixels[max(math.floor(y1), 0) : math.ceil(y2), max(math.floor(x1), 0) : math.ceil(x2)]


def cielab(pixels: NDArray[np.uint8]) -> Floats:
    """CIELAB (D65) of sRGB pixels (…, 3), as `boxseg.ops.neighbours.rgb_to_lab` gives it for tensors."""
    share = pixels / 255.0
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = linear @ _RGB_TO_XYZ_SHARE.T
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_RGB_TO_XYZ_SHARE = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
) / np.array([[0.95047], [1.0], [1.08883]])
"""sRGB -> XYZ, each as a share of white's."""
