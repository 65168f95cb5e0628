"""Draws a small COCO data set of shapes with exact masks, for tests, first runs and the demo."""

from __future__ import annotations

import colorsys
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.writer import CocoSplit
from boxseg.config.method import CocoSource, Shape, ToyConfig
from boxseg.files.writing import naming_storage_faults, sync_folder, sync_tree

DRAWING_VERSION = 2
"""Part of the folder's digest; raise it whenever the same settings would give other pictures."""

MAX_OBJECTS = 5
MIN_VISIBLE = 0.7
"""Share of an object that must stay visible beside image border and later objects."""
MIN_CONTRAST = 95.0
"""RGB distance (0 … 255 per channel) between an object and the background, and between two objects."""
CLASS_HUE_SPREAD = 0.3
"""Standard deviation of a class's hue, as a share of the distance between the hues of two classes."""
SUPERSAMPLING = 3

FloatArray = NDArray[np.float64]
Inside = Callable[[FloatArray, FloatArray, float], NDArray[np.bool_]]
DrawHue = Callable[[np.random.Generator], float]


def ensure_toy(root: Path, settings: ToyConfig) -> tuple[CocoSource, CocoSource]:
    """Train and val source of the generated data set; draws it first unless it is there.

    Args:
        root: Folder that holds generated data sets; made if missing.
        settings: Number of images, their size and the seed; the same settings give the same bytes.

    Returns:
        (train, val): images `root/toy-<digest>/{train,val}/*.png`, annotations `…/annotations/{train,val}.json`. Both
        files hold tight boxes and RLE masks of the visible part; training ignores the masks.

    Safe when several processes call it at once: each draws beside, the first rename wins.
    """
    digest = hashlib.sha256(
        f"{DRAWING_VERSION} {settings.model_dump_json()}".encode()
    ).hexdigest()[:10]
    final = root / f"toy-{digest}"
    if not final.is_dir():
        draft = root / f".toy-{digest}-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            with naming_storage_faults(draft):
                _write_dataset(draft, settings)
                sync_tree(draft)
            draft.rename(final)
            sync_folder(root)
        except OSError:
            if not final.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    train, val = (
        CocoSource(images=final / split, annotations=final / "annotations" / f"{split}.json")
        for split in ("train", "val")
    )
    return train, val


def draw_scene(
    rng: np.random.Generator, settings: ToyConfig
) -> tuple[NDArray[np.uint8], list[tuple[int, NDArray[np.bool_]]]]:
    """One picture and what is in it.

    Args:
        rng: Source of all randomness.
        settings: Size, classes and looks; the number of images and the seed are not looked at.

    Returns:
        RGB uint8 (size, size, 3) and 1 … 5 pairs of class index and visible mask, bool (size, size).
    """
    size = settings.size
    picture, background_colors = _draw_background(rng, size)
    if settings.clutter:
        picture = _draw_clutter(rng, picture, settings)
    colors = list(background_colors)
    masks: list[NDArray[np.bool_]] = []
    full_areas: list[int] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        label = int(rng.integers(len(settings.shapes)))
        placed = _place_object(
            rng, size, settings.shapes[label], settings.max_turn, masks, full_areas
        )
        if placed is None:
            continue
        alpha, full_area = placed
        color = _contrasting_color(rng, colors, _hue_of(label, settings))
        paint = _object_texture(rng, size, color)
        picture = _paint(picture, paint, alpha)
        covered = alpha >= 0.5
        masks = [*(mask & ~covered for mask in masks), covered]
        full_areas.append(full_area)
        labels.append(label)
        colors.append(color)
    picture = picture + rng.normal(0, rng.uniform(1.5, 3.5), picture.shape)
    return picture.clip(0, 255).round().astype(np.uint8), list(zip(labels, masks, strict=True))


def _write_dataset(folder: Path, settings: ToyConfig) -> None:
    (folder / "annotations").mkdir(parents=True)
    for number, (name, count) in enumerate(
        (("train", settings.train_images), ("val", settings.val_images))
    ):
        (folder / name).mkdir()
        split = CocoSplit(folder / name, settings.shapes)
        for index in range(count):
            rng = np.random.default_rng([settings.seed, number, index])
            picture, objects = draw_scene(rng, settings)
            Image.fromarray(picture).save(folder / name / f"{index:06d}.png", compress_level=1)
            split.add_image(f"{index:06d}.png", (settings.size, settings.size))
            for label, mask in objects:
                split.add_object(label, mask=mask)
        info = {"description": f"boxseg toy shapes, {name}, seed {settings.seed}"}
        content = {"info": info, **split.content}
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _place_object(
    rng: np.random.Generator,
    size: int,
    name: Shape,
    max_turn: float,
    masks: list[NDArray[np.bool_]],
    full_areas: list[int],
) -> tuple[FloatArray, int] | None:
    """Coverage (size, size) in [0, 1] and whole area [px] of a new object that hides too little to matter, or None."""
    for _ in range(30):
        radius = rng.uniform(0.085, 0.24) * size
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        whole = _coverage(
            SHAPES[name], radius, np.deg2rad(rng.uniform(0, max_turn)), rng.uniform(), centre % 1.0
        )
        alpha = _crop_to_canvas(whole, np.floor(centre).astype(int), size)
        full_area = int((whole >= 0.5).sum())
        covered = alpha >= 0.5
        left_over = (int((mask & ~covered).sum()) for mask in masks)
        if int(covered.sum()) >= MIN_VISIBLE * full_area and all(
            area >= MIN_VISIBLE * full for area, full in zip(left_over, full_areas, strict=True)
        ):
            return alpha, full_area
    return None


def _draw_clutter(
    rng: np.random.Generator, picture: FloatArray, settings: ToyConfig
) -> FloatArray:
    """The picture with shapes that are no class, in any colour; they may hide one another."""
    others = [name for name in SHAPES if name not in settings.shapes]
    for _ in range(int(rng.integers(settings.clutter + 1))):
        name = others[int(rng.integers(len(others)))]
        placed = _place_object(rng, settings.size, name, 360.0, [], [])
        if placed is not None:
            color = _vivid_color(rng, _any_hue)
            picture = _paint(picture, _object_texture(rng, settings.size, color), placed[0])
    return picture


def _paint(picture: FloatArray, paint: FloatArray, alpha: FloatArray) -> FloatArray:
    """The picture under paint (size, size, 3) that covers the share `alpha` (size, size) of each pixel."""
    return picture * (1 - alpha[..., None]) + paint * alpha[..., None]


def _coverage(
    inside: Inside, radius: float, angle: float, form: float, offset: FloatArray
) -> FloatArray:
    """Share of each pixel that the shape covers, on a square window whose middle pixel holds the shape's centre."""
    half = int(np.ceil(radius)) + 1
    steps = (np.arange((2 * half + 1) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - half
    dx, dy = np.meshgrid((steps - offset[0]) / radius, (steps - offset[1]) / radius)
    cos, sin = np.cos(angle), np.sin(angle)
    hits = inside(cos * dx + sin * dy, cos * dy - sin * dx, form)
    side = 2 * half + 1
    return hits.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean(axis=(1, 3))


def _crop_to_canvas(window: FloatArray, centre: NDArray[np.int_], size: int) -> FloatArray:
    """Lay a square window with its middle on pixel `centre` (x, y) of an empty canvas; what sticks out is cut."""
    half = window.shape[0] // 2
    padded = np.zeros((size + 2 * half, size + 2 * half))
    x, y = centre
    padded[y : y + 2 * half + 1, x : x + 2 * half + 1] = window
    return padded[half : half + size, half : half + size]


def _draw_background(
    rng: np.random.Generator, size: int
) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """Float (size, size, 3) in 0 … 255 between two muted colours, and these colours."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.12, 0.45), rng.uniform(0.3, 0.9)
    first = _rgb(hue, saturation, value)
    second = _rgb(
        hue + rng.uniform(-0.12, 0.12),
        saturation,
        float(np.clip(value + rng.uniform(-0.16, 0.16), 0.2, 0.95)),
    )
    pattern = (_smooth_noise, _stripes, _ramp)[int(rng.integers(3))](rng, size)[..., None]
    grain = 6.0 * (_smooth_noise(rng, size, cells=16)[..., None] - 0.5)
    return first * (1 - pattern) + second * pattern + grain, (first, second)


def _object_texture(rng: np.random.Generator, size: int, color: FloatArray) -> FloatArray:
    """Float (size, size, 3): one colour with gentle light, stripes or clouds."""
    pattern = (_smooth_noise, _stripes, _ramp)[int(rng.integers(3))](rng, size)
    light = (0.5 - pattern) * rng.uniform(0.05, 0.2)
    return color * (1 + light[..., None])


def _contrasting_color(
    rng: np.random.Generator, taken: list[FloatArray], draw_hue: DrawHue
) -> FloatArray:
    """A vivid colour far from all taken ones, or the farthest of 40 tries."""
    tries = [_vivid_color(rng, draw_hue) for _ in range(40)]
    distances = np.array(
        [min(np.linalg.norm(color - other) for other in taken) for color in tries]
    )
    far = np.nonzero(distances >= MIN_CONTRAST)[0]
    return tries[int(far[0]) if len(far) else int(distances.argmax())]


def _vivid_color(rng: np.random.Generator, draw_hue: DrawHue) -> FloatArray:
    return _rgb(draw_hue(rng), rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.98))


def _any_hue(rng: np.random.Generator) -> float:
    return rng.uniform()


def _hue_of(label: int, settings: ToyConfig) -> DrawHue:
    """Draws hues of a class, as shares of the colour circle."""
    if not settings.class_colors:
        return _any_hue
    distance = 1 / len(settings.shapes)
    return lambda rng: distance * (label + CLASS_HUE_SPREAD * rng.normal())


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    return 255.0 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _smooth_noise(rng: np.random.Generator, size: int, cells: int = 5) -> FloatArray:
    coarse = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(
        coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64
    ).clip(0, 1)


def _stripes(rng: np.random.Generator, size: int) -> FloatArray:
    waves = rng.uniform(4, 9)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (waves * _slope(rng, size) + rng.uniform()))


def _ramp(rng: np.random.Generator, size: int) -> FloatArray:
    return (0.5 + 0.7 * _slope(rng, size)).clip(0, 1)


def _slope(rng: np.random.Generator, size: int) -> FloatArray:
    """A plane through 0 in the middle that rises by 1 over the picture in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = (np.arange(size) + 0.5) / size - 0.5
    return np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]


def _in_disc(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    return x**2 + y**2 <= 1


def _in_ellipse(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    return x**2 + (y / (0.45 + 0.35 * form)) ** 2 <= 1


def _in_quad(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    """A trapezium: slanted sides, the upper one shorter."""
    return (np.abs(y) <= 0.6) & (np.abs(x) <= 0.7 + (0.1 + 0.3 * form) * (y - 0.6) / 1.2)


def _in_triangle(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    """Tip at the top of the unit circle; the base is up to as wide as an equilateral one."""
    return (y <= 0.5) & (np.abs(x) <= (y + 1) * (0.36 + 0.2 * form))


def _in_square(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    return (np.abs(x) <= 0.7) & (np.abs(y) <= 0.7 * (0.75 + 0.25 * form))


def _in_star(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    """Five-pointed; points on the unit circle, notches at 0.42 … 0.52 of it."""
    fold = np.pi / 5
    # 0 towards a point, `fold` towards a notch
    angle = np.abs((np.arctan2(y, x) + fold) % (2 * fold) - fold)
    radius = np.hypot(x, y)
    notch = 0.42 + 0.1 * form
    notch_x, notch_y = notch * np.cos(fold), notch * np.sin(fold)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    # on the inner side of the line from point to notch
    return (1 - u) * notch_y - v * (1 - notch_x) >= 0


def _in_ring(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    squared = x**2 + y**2
    return (squared <= 1) & (squared >= (0.45 + 0.13 * form) ** 2)


def _in_corner(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    """Two bars that meet at a right angle, like the letter L."""
    width = 0.45 + 0.12 * form
    square = (np.abs(x) <= 0.7) & (np.abs(y) <= 0.7)
    return square & ((x <= -0.7 + width) | (y >= 0.7 - width))


def _in_crescent(x: FloatArray, y: FloatArray, form: float) -> NDArray[np.bool_]:
    return (x**2 + y**2 <= 1) & ((x - 0.52 - 0.12 * form) ** 2 + y**2 >= 0.75**2)


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
"""Which points of the unit disc are inside a shape, given a form in [0, 1]."""
