"""Where settings do not fit a data set: warnings with the setting to change; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from boxseg.coco.checks import read_well_formed
from boxseg.coco.entries import objects_of
from boxseg.coco.odd_boxes import SHIFTS
from boxseg.config.method import BoxSegConfig, CocoSource
from boxseg.data.fingerprint import Fingerprint
from boxseg.files.same import find_same, listed_files

CELL_PX = 4
"""Side of a mask cell in the network."""
FEWEST_CELLS = 4
"""Cells along an object below which its mask has no shape."""
GOOD_PX = 32
"""What the median object should have at least, for a shape of eight cells."""
WINDOW_PX = 256
"""Side of the windows that a recipe has."""
LARGEST_SIDE = 2000
"""Largest short side that is advised: beyond it windows are better."""
SIDE_STEP = 32
"""Advised sides are multiples of this: batches are padded to such sides anyway."""
LEAST_CONTRAST = 1.0
"""CIELAB distance of an object from its surroundings below which there is nothing to see."""
PLAIN_CONTRAST = 10.0
"""CIELAB distance of an object from its surroundings from which on the usual colour threshold tells them apart."""
USUAL_COLOR_THR = 0.3
FEWEST_MOVED = 10
"""Fewer boxes may all look better elsewhere by chance. Of ten all have to, of each three more two."""
MANY_MOVED = 32
"""Of this many boxes or more, a share is enough."""
MOST_MOVED = 0.6
"""Share of the boxes that differ more from their surroundings once they are moved by half: a third or less of boxes
around their objects, two thirds or more of those that are half a box away."""
FEWEST_IN_BARS = 3
MOST_IN_BARS = 0.05
"""Share of the boxes that lie in bars along the edges of their images, where nothing is."""


def find_misfits(config: BoxSegConfig, fingerprint: Fingerprint) -> Iterator[str]:
    """What of the settings does not fit the data that they train on, a sentence each with the setting to change."""
    yield from find_misplaced(fingerprint)
    train = config.train
    largest_side = max(train.short_sides)
    # Windows are scaled to their object, and hold few others.
    if train.window is None:
        name = "train.image_size"
        yield from _too_small(fingerprint, name, largest_side, train.max_size, or_windows=True)
        limit = config.cond.max_per_image
        yield from _too_many(fingerprint, "cond.max_per_image", limit, "mask losses learn from")
    if train.eval_short_side != largest_side or train.window is not None:
        name = "train.eval_size"
        yield from _too_small(fingerprint, name, train.eval_short_side, train.max_size)
    yield from _too_many(fingerprint, "fcos.topk", config.fcos.topk, "evaluation keeps")
    yield from _too_alike(fingerprint, config.boxinst.color_thr)


def find_misplaced(fingerprint: Fingerprint) -> Iterator[str]:
    """A sentence if boxes have nothing to see in them, or look like corners, half a box away from their objects, or
    made for images without bars."""
    colours = fingerprint.colours
    if colours is None:
        return
    if colours.contrast < LEAST_CONTRAST:
        yield (
            f"half of the objects differ by {colours.contrast:.1f} or less from what is around them (CIELAB), so there "
            "is nothing to see: are the images nearly black, or their objects drawn by transparency, which is ignored? "
            "look at a few, and store them with what viewers show in the pixels if so"
        )
    others = [
        (colours.moved.get(shift, ()), "moved by half their size", looks, way_out)
        for shift, (looks, way_out) in SHIFTS.items()
    ]
    looks, way_out = "width and height are x2 and y2", "subtract x and y from them"
    others.append((colours.as_corners, "read as x1, y1, x2, y2", looks, way_out))
    for is_better, change, looks, way_out in others:
        if _are_most(is_better):
            yield (
                f"{sum(is_better)} of {len(is_better)} boxes would differ more from what is around them if they were "
                f"{change}: {looks}? look at a few, and {way_out} if so"
            )
    in_bars, count = sum(colours.in_bars), len(colours.in_bars)
    if in_bars >= max(FEWEST_IN_BARS, MOST_IN_BARS * count):
        yield (
            f"{in_bars} of {count} boxes lie in bars of one colour along the edges of their images: are they of the "
            "images before these were letterboxed? look at a few, and scale and move them like the images if so"
        )


def _are_most(is_better: Sequence[bool]) -> bool:
    """Whether more boxes look better elsewhere than would by chance."""
    count, number = len(is_better), sum(is_better)
    if count < MANY_MOVED:
        return 3 * number >= 2 * count + FEWEST_MOVED
    return number > MOST_MOVED * count


def find_shared(train: CocoSource, val: CocoSource) -> Iterator[str]:
    """A sentence if pictures are both learnt from and validated on, under one name or two.

    One file for both is meant, as where all boxes are to be labelled.

    Raises:
        DataError: an annotation file cannot be used.
    """
    if train == val:
        return
    learnt, validated = (
        listed_files(source.images, read_well_formed(source.annotations, whole=False)["images"])
        for source in (train, val)
    )
    shared = {path: path for path in validated if path in learnt}
    for same in find_same(list({**learnt, **validated})):
        twin = next((path for path in same if path in learnt), None)
        if twin is not None:
            shared |= {path: twin for path in same if path in validated and path not in learnt}
    if not shared:
        return
    example, twin = next(iter(shared.items()))
    named = repr(validated[example])
    if twin != example:
        named += f", there {learnt[twin]!r}"
    yield (
        f"{len(shared)} of the {len(validated)} pictures of data.val are in data.train as well, "
        f"such as {named}; what is measured on them says nothing of new pictures "
        "(`boxseg data split` parts a file)"
    )


def find_unlearnt(train: CocoSource, val: CocoSource) -> Iterator[str]:
    """A sentence if classes are validated of which there is no box to learn from.

    Raises:
        DataError: an annotation file cannot be used.
    """
    learnt, validated = _classes_of_boxes(train), _classes_of_boxes(val)
    unlearnt = sorted(set(validated) - set(learnt))
    if unlearnt:
        names = ", ".join(repr(name) for name in unlearnt[:3])
        more = f" and {len(unlearnt) - 3} more" if len(unlearnt) > 3 else ""
        yield (
            f"data.train has no box of {names}{more}, but data.val has {sum(map(validated.count, unlearnt))}: their AP "
            "is 0 however long a run trains, and lowers the mean (add boxes of theirs to data.train, or leave them out "
            "of both files)"
        )


def _classes_of_boxes(source: CocoSource) -> list[str]:
    """The class of each box, without crowd regions."""
    content = read_well_formed(source.annotations, whole=False)
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [
        names[each["category_id"]] for each in objects_of(content) if each["category_id"] in names
    ]


def _too_alike(fingerprint: Fingerprint, threshold: float) -> Iterator[str]:
    """A sentence if a threshold takes the colours of objects for those around them."""
    if fingerprint.colours is None:
        return
    contrast = fingerprint.colours.contrast
    if contrast < PLAIN_CONTRAST and threshold < color_threshold(contrast):
        yield (
            f"half of the objects differ by {contrast:.1f} or less from what is around them "
            f"(CIELAB), which boxinst.color_thr {threshold:g} takes for alike; "
            f"{color_threshold(contrast):g} would not"
        )


def _too_small(
    fingerprint: Fingerprint,
    name: str,
    short_side: int,
    max_size: int,
    *,
    or_windows: bool = False,
) -> Iterator[str]:
    """A sentence if boxes are too small for a shape.

    Args:
        fingerprint: The data.
        name: The setting that says the short side.
        short_side: Its value [px].
        max_size: Limit of the long side [px].
        or_windows: Whether to advise windows as well.
    """
    median = _median_size(fingerprint, short_side, max_size)
    if median >= FEWEST_CELLS * CELL_PX:
        return
    wanted = SIDE_STEP * math.ceil(short_side * GOOD_PX / median / SIDE_STEP)
    larger = _median_size(fingerprint, wanted)
    ways_out = []
    if wanted <= LARGEST_SIDE:
        setting = f"{wanted}"
        # Where `max_size` keeps the images smaller, it has to be raised as well.
        if _median_size(fingerprint, wanted, max_size) < 0.99 * larger:
            setting += f" with train.max_size {_long_side(fingerprint, wanted)}"
        ways_out.append(f"{setting} would give {larger:.0f}")
    if or_windows:
        ways_out.append(f"train.window {WINDOW_PX} trains on enlarged pieces")
    advice = f": {'; '.join(ways_out)}" if ways_out else "; cut the images into pieces"
    yield (
        f"half of the boxes are under {median:.0f} px at {name} {short_side}, "
        f"where a mask cell is {CELL_PX} px{advice}"
    )


def _median_size(fingerprint: Fingerprint, short_side: int, max_size: float = math.inf) -> float:
    """Longer side of the median box where images have a short side, and a long side of at most `max_size` [px]."""
    return float(np.median(fingerprint.sides.sizes_at(short_side, max_size)))


def _long_side(fingerprint: Fingerprint, short_side: int) -> int:
    """Long side of the most stretched image at a short side [px]."""
    sides = fingerprint.sides
    stretch = sides.long_px / sides.short_px
    return math.ceil(short_side * float(stretch.max()))


def _too_many(fingerprint: Fingerprint, name: str, limit: int, what_for: str) -> Iterator[str]:
    """A sentence if many images have more boxes than a setting allows."""
    many = fingerprint.boxes_per_image.high
    if many > limit:
        yield (
            f"a tenth of the images have {many:.0f} boxes or more, and {what_for} {limit} at most: "
            f"raise {name}"
        )


def color_threshold(contrast: float) -> float:
    """Similarity above which neighbours count as alike where objects differ by `contrast` (CIELAB) from what is around.

    The usual threshold allows a quarter of `PLAIN_CONTRAST`; less contrast allows the same share of it.

    >>> color_threshold(10.0), color_threshold(5.0)
    (0.3, 0.55)
    """
    # Similarity is exp(-distance / 2), so this is the distance that the usual threshold allows.
    usual_distance = -2 * math.log(USUAL_COLOR_THR)
    # A tenth at least: similarities, and so thresholds, are below 1.
    share = max(min(contrast / PLAIN_CONTRAST, 1.0), 0.1)
    return round(math.exp(-usual_distance * share / 2), 2)
