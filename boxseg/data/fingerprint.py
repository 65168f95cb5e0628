"""Measures a data set in the few numbers that settings depend on; needs no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.checks import read_well_formed
from boxseg.coco.entries import Entry, has_area, image_sizes, objects_of
from boxseg.coco.odd_boxes import SHIFTS
from boxseg.coco.odd_entries import corners, overlap
from boxseg.coco.segmentations import Extent, Size
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.files.pixels import cielab, rgb_pixels
from boxseg.files.reading import UnreadableError, read_picture

LOOKED_AT = 64
"""Images that are opened, spread evenly over the file."""
PIXELS_LOOKED_AT = 2 * 10**8
"""Most pixels that are decoded, which takes some seconds."""
BOXES_LOOKED_AT = 8
"""Boxes of an opened image whose colours are compared with those around them."""
PIXEL_STEP = 4
"""Whether an image is grey is judged by every fourth row and column."""
GREY_LEVELS = 6
"""How far red, green and blue of a grey image may differ (0 … 255): compression adds some colour."""
GREY_PERCENTILE = 99
"""Percentile of the pixels that must be grey: a coloured mark or two does not make a scan colourful."""
NOTICED = 75
"""Percentile of the colour distances within a box that counts as its object's: most objects fill a quarter or more."""
FEWEST_PIXELS = 8
"""A box, or what is around it, with fewer pixels says nothing about colours."""
MARGIN = 0.25
"""What counts as around a box reaches this far from it, as a share of its longer side; two pixels at least."""
CONTRAST_PX = 256
"""Longest side of a box [px] of which every pixel is read; of longer ones every second, third, … is enough."""
BAR_LEVELS = 12
"""How far the pixels of a bar differ (0 … 255), such as the grey one above and below a letterboxed picture."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How numbers are spread: a tenth lies below `low`, a tenth above `high`."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Spread:
        """The spread of one value or more.

        >>> str(Spread.of(range(101)))
        '50 (10 to 90)'
        """
        percentiles: list[float] = np.percentile(values, (10, 50, 90)).tolist()
        return cls(*(round(percentile, 2) for percentile in percentiles))

    def __str__(self) -> str:
        return f"{self.median:.0f} ({self.low:.0f} to {self.high:.0f})"


@dataclass
class Colours:
    """What the images look like that were opened so far."""

    may_be_corners: bool = False
    """Whether all boxes fit as x1, y1, x2, y2."""
    is_grey: list[bool] = field(default_factory=list)
    """Of each image."""
    contrasts: list[float] = field(default_factory=list)
    """CIELAB distance of the object of each looked-at box from the surroundings of the box."""
    moved: dict[float, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """Share of their size that boxes are moved by -> of each box that stays in its image whether it differs more then
    from its surroundings."""
    as_corners: list[bool] = field(default_factory=list)
    """The same of boxes read as x1, y1, x2, y2; of none where not all boxes fit so."""
    in_bars: list[bool] = field(default_factory=list)
    """Of each box whether most of it is in a bar of one colour along the edge of its image."""

    @property
    def grey(self) -> float:
        """Share of the images without colour."""
        return float(np.mean(self.is_grey))

    @property
    def contrast(self) -> float:
        """Median of the contrasts; NaN where there are none."""
        return float(np.median(self.contrasts)) if self.contrasts else math.nan

    def __str__(self) -> str:
        kind = "grey" if self.grey > 0.5 else "in colour"
        if not math.isfinite(self.contrast):
            return kind
        return f"{kind}; objects differ from what is around them by {self.contrast:.0f} (CIELAB)"

    def add(self, pixels: NDArray[np.uint8], bboxes: list[list[float]]) -> None:
        """Add an image, RGB (h, w, 3), with the boxes in it."""
        some = pixels[::PIXEL_STEP, ::PIXEL_STEP]
        spread = np.ptp(some.astype(np.int64), axis=2)  # between red, green and blue
        self.is_grey.append(float(np.percentile(spread, GREY_PERCENTILE)) <= GREY_LEVELS)
        step = math.ceil(len(bboxes) / BOXES_LOOKED_AT)
        shown = _shown_range(pixels)
        for bbox in bboxes[::step]:
            self.in_bars.append(_is_in_bars(bbox, shown, pixels.shape[:2]))
            contrast = _contrast(pixels, bbox)
            if contrast is None:
                continue
            self.contrasts.append(contrast)
            x, y, width, height = bbox
            others = [
                (self.moved[shift], [x + shift * width, y + shift * height, width, height])
                for shift in SHIFTS
            ]
            if self.may_be_corners:
                others.append((self.as_corners, [x, y, width - x, height - y]))
            for is_better, other in others:
                its_contrast = _contrast_inside(pixels, other)
                if its_contrast is not None:
                    is_better.append(its_contrast > contrast)


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
        """Longer sides of the boxes after their images are resized [px].

        Args:
            short_side: What the short sides of the images become [px].
            max_size: Limit of the long sides [px]; a longer image becomes smaller.
        """
        scale = np.minimum(short_side / self.short_px, max_size / self.long_px)
        return self.longer_px * scale


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

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        boxes = f"{self.boxes} of {self.classes} classes, {self.boxes_per_image} in an image"
        rows = [
            ("images", f"{self.images}, short side {self.image_px} px"),
            ("boxes", boxes),
            ("longer side of boxes", f"{self.object_px} px"),
        ]
        if self.colours is not None:
            rows.append(("colours", str(self.colours)))
        return rows


def take_fingerprint(source: CocoSource, *, look: bool = True) -> Fingerprint:
    """Measure a data set: sizes from its annotation file, colours from a sample of its images.

    Args:
        source: Images and annotation file.
        look: Whether to open images.

    Raises:
        DataError: the file cannot be used, or has no box of positive size.
    """
    content = read_well_formed(source.annotations, whole=False)
    size_of = image_sizes(content)
    boxes = [
        entry
        for entry in objects_of(content)
        if has_area(entry["bbox"]) and entry["image_id"] in size_of
    ]
    if not boxes:
        raise DataError(
            f"{source.annotations}: has no box with an area that is not a crowd; name a file with boxes"
        )
    per_image = Counter(box["image_id"] for box in boxes)
    # (A, 2) and (M, 2): height and width of the image of each box, and of each image with a box
    sizes_of_boxes = np.array([size_of[box["image_id"]] for box in boxes], dtype=np.float64)
    sizes = np.array([size_of[image_id] for image_id in per_image], dtype=np.float64)
    bboxes = [box["bbox"] for box in boxes]
    longer_px = np.array([max(bbox[2:]) for bbox in bboxes], dtype=np.float64)
    colours = None
    if look:
        may_be_corners = all(width > x and height > y for x, y, width, height in bboxes)
        image_of = {image["id"]: image for image in content["images"]}
        images = [image_of[image_id] for image_id in per_image]
        colours = _look_at(source, images, boxes, Colours(may_be_corners))
    return Fingerprint(
        images=len(per_image),
        boxes=len(boxes),
        classes=len({box["category_id"] for box in boxes}),
        boxes_per_image=Spread.of(list(per_image.values())),
        image_px=Spread.of(sizes.min(axis=1)),
        object_px=Spread.of(longer_px),
        colours=colours,
        sides=Boxes(longer_px, sizes_of_boxes.min(axis=1), sizes_of_boxes.max(axis=1)),
    )


def _look_at(
    source: CocoSource, images: Sequence[Entry], boxes: Sequence[Entry], colours: Colours
) -> Colours | None:
    """The colours, with a sample of the images added; None where none can be opened."""
    bboxes_of: dict[int, list[list[float]]] = defaultdict(list)
    for box in boxes:
        bboxes_of[box["image_id"]].append(box["bbox"])
    for image in _sample(images):
        if not is_inside(image["file_name"]):
            continue
        try:
            pixels = read_picture(source.images / image["file_name"], rgb_pixels)
        except UnreadableError:
            continue  # `boxseg data check` reports it
        colours.add(pixels, bboxes_of[image["id"]])
    return colours if colours.is_grey else None


def _sample(images: Sequence[Entry]) -> Iterator[Entry]:
    """Some of the images, evenly spread, until enough pixels are seen; the first one in any case."""
    count = min(LOOKED_AT, len(images))
    positions = np.linspace(0, len(images) - 1, count).round().astype(int)
    indices: list[int] = np.unique(positions).tolist()
    num_pixels = 0
    # Every other one first, so that those that are left out are spread as well.
    for index in indices[::2] + indices[1::2]:
        num_pixels += images[index]["width"] * images[index]["height"]
        if num_pixels > PIXELS_LOOKED_AT and index != indices[0]:
            return
        yield images[index]


def _shown_range(pixels: NDArray[np.uint8]) -> Extent:
    """left, top, right, bottom of what a picture (h, w, 3) shows without bars of one colour along its edges."""
    columns, rows = (
        np.flatnonzero(np.ptp(pixels, axis=axis).max(axis=1) > BAR_LEVELS) for axis in (0, 1)
    )
    if not rows.size or not columns.size:  # a picture of one colour has no bars
        return 0, 0, pixels.shape[1], pixels.shape[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _is_in_bars(bbox: list[float], shown: Extent, size: Size) -> bool:
    """Whether of a box's part in its image of (height, width) less than half is within left, top, right, bottom."""
    height, width = size
    in_image = overlap(corners(bbox), (0, 0, width, height))
    return 2 * overlap(corners(bbox), shown) < in_image


def _contrast_inside(pixels: NDArray[np.uint8], bbox: list[float]) -> float | None:
    """`_contrast` of a box; None as well if it leaves its image."""
    x, y, width, height = bbox
    if min(x, y) < 0 or x + width > pixels.shape[1] or y + height > pixels.shape[0]:
        return None
    return _contrast(pixels, bbox)


def _contrast(pixels: NDArray[np.uint8], bbox: list[float]) -> float | None:
    """How far the object of a box is from the mean colour of its surroundings (CIELAB).

    None if too few pixels are in the box or around it.
    """
    limits = pixels.shape[1::-1] * 2
    x1, y1, x2, y2 = np.clip(corners(bbox), 0, limits).tolist()
    longer = max(x2 - x1, y2 - y1)
    margin = max(2.0, MARGIN * longer)
    left, top = (max(math.floor(side - margin), 0) for side in (x1, y1))
    right, bottom = math.ceil(x2 + margin), math.ceil(y2 + margin)
    step = max(math.ceil(longer / CONTRAST_PX), 1)
    outer = pixels[top:bottom:step, left:right:step]
    if 0 in outer.shape:
        return None
    # Centres of the pixels.
    rows = step * np.arange(outer.shape[0])[:, None] + top + 0.5
    columns = step * np.arange(outer.shape[1])[None] + left + 0.5
    is_between_rows = (rows > y1) & (rows < y2)
    is_between_columns = (columns > x1) & (columns < x2)
    inside = is_between_rows & is_between_columns
    if min(inside.sum(), (~inside).sum()) < FEWEST_PIXELS:
        return None
    lab = cielab(outer).astype(np.float64)
    around = lab[~inside].mean(axis=0)
    distance = np.linalg.norm(lab - around, axis=-1)
    return float(np.percentile(distance[inside], NOTICED))
