"""Where settings do not fit a data set: warnings with the setting to change; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from boxseg.config.method import BoxSegConfig
from boxseg.data.fingerprint import Fingerprint

CELL_PX = 4
"""Side of a mask cell in the network."""
FEWEST_CELLS = 4
"""Cells along an object below which its mask has no shape."""
GOOD_PX = 32
"""What the median object should have at least, for a shape of eight cells."""
WINDOW_PX = 256
"""Side of the windows that a recipe has."""
LARGEST_SIDE = 2000
"""Short sides beyond this are no advice: windows are the way then."""
PLAIN_CONTRAST = 10.0
"""CIELAB distance of an object from its surroundings from which on the usual colour threshold tells them apart."""
USUAL_COLOR_THR = 0.3


def find_misfits(config: BoxSegConfig, fingerprint: Fingerprint) -> Iterator[str]:
    """What of the settings does not fit the data that they train on, a sentence each with the setting to change."""
    train = config.train
    if train.window is None:
        yield from _too_small(
            fingerprint,
            "train.image_size",
            max(train.short_sides),
            train.max_size,
            or_windows=True,
        )
        yield from _too_many(
            fingerprint, "cond.max_per_image", config.cond.max_per_image, "mask losses learn from"
        )
    if train.eval_short_side != max(train.short_sides) or train.window is not None:
        yield from _too_small(
            fingerprint, "train.eval_size", train.eval_short_side, train.max_size
        )
    if config.model.kind == "condinst":
        yield from _too_many(fingerprint, "fcos.topk", config.fcos.topk, "evaluation keeps")
    colours, threshold = fingerprint.colours, config.boxinst.color_thr
    if (
        colours is not None
        and colours.contrast < PLAIN_CONTRAST
        and threshold < color_threshold(colours.contrast)
    ):
        yield (
            f"half of the objects differ by {colours.contrast:.1f} or less from what is around them (CIELAB), which "
            f"boxinst.color_thr {threshold:g} takes for alike; {color_threshold(colours.contrast):g} would not"
        )


def _too_small(
    fingerprint: Fingerprint,
    name: str,
    short_side: int,
    max_size: int,
    *,
    or_windows: bool = False,
) -> Iterator[str]:
    median = float(np.median(fingerprint.sides.sizes_at(short_side, max_size)))
    if median >= FEWEST_CELLS * CELL_PX:
        return
    wanted = 32 * math.ceil(short_side * GOOD_PX / median / 32)
    larger = float(np.median(fingerprint.sides.sizes_at(wanted)))
    ways = []
    if wanted <= LARGEST_SIDE:
        also = (
            f" with train.max_size {_long_side(fingerprint, wanted)}"
            if _is_cut(fingerprint, wanted, max_size)
            else ""
        )
        ways.append(f"{wanted}{also} would give {larger:.0f}")
    if or_windows:
        ways.append(f"train.window {WINDOW_PX} trains on enlarged pieces")
    yield (
        f"half of the boxes are under {median:.0f} px at {name} {short_side}, where a mask cell is {CELL_PX} px"
        + (f": {'; '.join(ways)}" if ways else "; cut the images into pieces")
    )


def _is_cut(fingerprint: Fingerprint, short_side: int, max_size: int) -> bool:
    """Whether `max_size` keeps half of the boxes from being as large as a short side would make them."""
    sides = fingerprint.sides
    return float(np.median(sides.sizes_at(short_side, max_size))) < 0.99 * float(
        np.median(sides.sizes_at(short_side))
    )


def _long_side(fingerprint: Fingerprint, short_side: int) -> int:
    sides = fingerprint.sides
    return math.ceil(short_side * float((sides.long_px / sides.short_px).max()))


def _too_many(fingerprint: Fingerprint, name: str, limit: int, what: str) -> Iterator[str]:
    many = fingerprint.boxes_per_image.high
    if many > limit:
        yield f"a tenth of the images have {many:.0f} boxes or more, and {what} {limit} at most: raise {name}"


def color_threshold(contrast: float) -> float:
    """Similarity above which neighbours count as alike where objects differ by `contrast` (CIELAB) from what is around.

    The usual threshold allows a quarter of `PLAIN_CONTRAST`; less contrast allows the same share of it.
    """
    usual = -2 * math.log(USUAL_COLOR_THR)
    return round(math.exp(-usual * max(min(contrast / PLAIN_CONTRAST, 1.0), 0.1) / 2), 2)
