"""The shapes of the generated data set, as sets of points, and which share of each pixel they cover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from boxseg.config.method import Shape

SUPERSAMPLING = 3
"""Points per pixel along each axis that are tested for lying in a shape."""

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Inside = Callable[[FloatArray, FloatArray, float], BoolArray]
"""Which points (x, y) are inside a shape; y points down, and the shape lies in the unit disc around 0.

The number in [0, 1] is the form: it stretches or slants a shape, so that no two of a class need be alike.
"""


def coverage(
    inside: Inside, radius: float, angle: float, form: float, offset: FloatArray
) -> FloatArray:
    """Share of each pixel that a shape covers, on a square window whose middle pixel holds the shape's centre.

    Args:
        inside: The shape.
        radius: What the unit disc becomes [px].
        angle: How far it is turned [radians].
        form: See `Inside`.
        offset: (2,), x y of the centre in the middle pixel, in [0, 1).
    """
    half = int(np.ceil(radius)) + 1
    side = 2 * half + 1
    points = (np.arange(side * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - half
    x_offset, y_offset = offset
    dx, dy = np.meshgrid((points - x_offset) / radius, (points - y_offset) / radius)
    # Turning the points back is turning the shape.
    cos, sin = np.cos(angle), np.sin(angle)
    hits = inside(cos * dx + sin * dy, cos * dy - sin * dx, form)
    blocks = hits.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    return blocks.mean(axis=(1, 3))


def _in_disc(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    return x**2 + y**2 <= 1


def _in_ellipse(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    flatness = 0.45 + 0.35 * form
    return x**2 + (y / flatness) ** 2 <= 1


def _in_quad(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    """A trapezium: slanted sides, the upper one shorter."""
    slant = 0.1 + 0.3 * form
    half_width = 0.7 + slant * (y - 0.6) / 1.2
    return (np.abs(y) <= 0.6) & (np.abs(x) <= half_width)


def _in_triangle(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    """Tip at the top of the unit circle; the base is up to as wide as an equilateral one."""
    slant = 0.36 + 0.2 * form
    return (y <= 0.5) & (np.abs(x) <= (y + 1) * slant)


def _in_square(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    half_height = 0.7 * (0.75 + 0.25 * form)
    return (np.abs(x) <= 0.7) & (np.abs(y) <= half_height)


def _in_star(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    """Five-pointed; points on the unit circle, notches at 0.42 … 0.52 of it."""
    fold = np.pi / 5
    # All ten edges are alike, so each point is moved to one of them: 0 is towards a point, `fold` towards a notch.
    angle = np.abs((np.arctan2(y, x) + fold) % (2 * fold) - fold)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    notch = 0.42 + 0.1 * form
    notch_x, notch_y = notch * np.cos(fold), notch * np.sin(fold)
    # On the inner side of the line from point to notch.
    return (1 - u) * notch_y - v * (1 - notch_x) >= 0


def _in_ring(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    squared = x**2 + y**2
    hole = 0.45 + 0.13 * form
    return (squared <= 1) & (squared >= hole**2)


def _in_corner(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    """Two bars that meet at a right angle, like the letter L."""
    width = 0.45 + 0.12 * form
    square = (np.abs(x) <= 0.7) & (np.abs(y) <= 0.7)
    is_upright, is_lying = x <= -0.7 + width, y >= 0.7 - width
    return square & (is_upright | is_lying)


def _in_crescent(x: FloatArray, y: FloatArray, form: float) -> BoolArray:
    """The disc without another one that lies to the right."""
    bitten = (x - 0.52 - 0.12 * form) ** 2 + y**2 < 0.75**2
    return (x**2 + y**2 <= 1) & ~bitten


SHAPES: dict[Shape, Inside] = {
    "disc": _in_disc,
    "square": _in_square,
    "star": _in_star,
    "ring": _in_ring,
    "corner": _in_corner,
    "crescent": _in_crescent,
    "ellipse": _in_ellipse,
    "quad": _in_quad,
    "triangle": _in_triangle,
}
