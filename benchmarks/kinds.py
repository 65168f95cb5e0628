"""Generated pictures of many kinds, with exact masks."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from boxseg.ops.pixels import BoolArray, FloatArray

SIDE = 256
"""Of the square pictures [px]."""

Rng = np.random.Generator


class Scene:
    """A picture, and the visible part of each of its objects."""

    def __init__(self, picture: FloatArray) -> None:
        self.picture = picture
        """(h, w, 3), 0 to 255."""
        self.objects: list[tuple[int, BoolArray]] = []
        """Label and mask (h, w)."""

    def is_free(self, mask: BoolArray) -> bool:
        """Whether a mask touches no object."""
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), dtype=np.uint8)) > 0
        return not any((wide & other).any() for _, other in self.objects)

    def add(self, label: int, mask: BoolArray, surface: FloatArray, *, blur: float = 0.6) -> None:
        """An object in front of the others; `surface` broadcasts to the picture."""
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), blur)[..., None]
        self.picture = self.picture * (1 - share) + surface * share
        self.objects = [(other, there & ~mask) for other, there in self.objects]
        self.objects.append((label, mask))


def _ground(rng: Rng, color: FloatArray, *, clouds: float, grain: float) -> FloatArray:
    """A picture (h, w, 3) of one colour with clouds of all sizes and grains, both standard deviations."""
    cloud = np.zeros((SIDE, SIDE), dtype=np.float32)
    for octave in range(2, 7):
        noise = rng.normal(size=(2**octave, 2**octave)).astype(np.float32)
        cloud += cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / 2**octave
    grains = rng.normal(scale=grain, size=(SIDE, SIDE, 3))
    return color + clouds * (cloud / cloud.std())[..., None] + grains


def _polygon(points: FloatArray) -> BoolArray:
    """The pixels of a polygon (N, 2), x and y."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.fillPoly(mask, [(points * 16).round().astype(np.int32)], (1,), shift=4)
    return mask > 0


def _turned(points: FloatArray, angle: float, middle: FloatArray) -> FloatArray:
    sine, cosine = np.sin(angle), np.cos(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def _blob(rng: Rng) -> BoolArray:
    """The pixels of a round shape with bays."""
    angles, radius = np.linspace(0, 2 * np.pi, 80, endpoint=False), rng.uniform(16, 44)
    waves = np.zeros_like(angles)
    for k in range(2, 6):
        waves += rng.normal(scale=0.15 / k) * np.cos(k * angles + k)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (radius * (1 + waves))[:, None]
    return _polygon(outline + rng.uniform(radius, SIDE - radius, 2))


def _grains(rng: Rng, scale: float) -> FloatArray:
    return rng.normal(scale=scale, size=(SIDE, SIDE, 1))


def _digits(rng: Rng) -> Scene:
    """Digits of 20 to 34 px and any weight, in colours of their own."""
    scene = Scene(_ground(rng, rng.uniform(60, 190, 3), clouds=30, grain=4))
    for _ in range(40):
        digit, height = int(rng.integers(10)), rng.uniform(20, 34)
        x, y = (int(value) for value in rng.uniform(8, SIDE - 36, 2))
        drawn, weight = np.zeros((SIDE, SIDE), dtype=np.uint8), int(rng.integers(2, 6))
        font = cv2.FONT_HERSHEY_DUPLEX
        cv2.putText(drawn, str(digit), (x, y + 30), font, height / 24, (1,), weight)
        mask, color = drawn > 0, rng.uniform(0, 255, 3)
        is_seen = np.linalg.norm(scene.picture[mask].mean(axis=0) - color) > 80
        if is_seen and scene.is_free(mask):
            scene.add(digit, mask, color + rng.normal(scale=5, size=(SIDE, SIDE, 1)))
    return scene


def _roofs(rng: Rng) -> Scene:
    """Rectangles and L shapes with a ridge, from above, with shadows."""
    scene = Scene(_ground(rng, rng.uniform(80, 130, 3), clouds=14, grain=6))
    sun = rng.uniform(-7, 7, 2)
    for _ in range(14):
        a, b = rng.uniform(12, 30, 2)
        corners = [[-a, -b], [a, -b], [a, b], [-a, b]]
        if rng.random() < 0.4:
            corners = [[-a, -b], [a, -b], [a, 0], [0, 0], [0, b], [-a, b]]
        angle, middle = rng.uniform(0, np.pi), rng.uniform(30, SIDE - 30, 2)
        roof = _turned(np.array(corners), angle, middle)
        mask = _polygon(roof)
        if scene.is_free(mask):
            scene.picture[_polygon(roof + sun) & ~mask] *= 0.55
            rows, columns = np.mgrid[:SIDE, :SIDE]
            side = np.cos(angle) * (rows - middle[1]) - np.sin(angle) * (columns - middle[0])
            light = np.where(side > 0, 1.15, 0.85)[..., None]
            scene.add(0, mask, rng.uniform(70, 190, 3) * light)
    return scene


def _worms(rng: Rng) -> Scene:
    """Grey curves of 4 to 8 px that cross one another."""
    scene = Scene(_ground(rng, np.full(3, 165.0), clouds=8, grain=4))
    for _ in range(8):
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(scale=0.05) + np.zeros(40))
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(1.5, 3)
        path = np.cumsum(steps, axis=0) + rng.uniform(40, SIDE - 40, 2)
        drawn = np.zeros((SIDE, SIDE), dtype=np.uint8)
        points = path.round().astype(np.int32)
        cv2.polylines(drawn, [points], False, (1,), int(rng.integers(4, 9)))
        scene.add(0, drawn > 0, np.full((SIDE, SIDE, 3), rng.uniform(90, 130)))
    return scene


def _leaves(rng: Rng) -> Scene:
    """Rosettes of serrated leaves of one green, one before another."""
    scene = Scene(_ground(rng, np.array([95.0, 75, 60]), clouds=15, grain=8))
    middle, first, green = rng.uniform(100, SIDE - 100, 2), rng.uniform(0, 6), rng.uniform(90, 150)
    for number in range(int(rng.integers(5, 9))):
        along, length = np.linspace(0, 1, 60), rng.uniform(40, 80)
        teeth = 1 + 0.12 * np.sign(np.sin(60 * along))
        width = 0.3 * length * np.sin(np.pi * along**0.8) * teeth
        upper = np.stack([along * length, width], axis=1)
        outline = np.concatenate([upper, (upper * [1, -1])[::-1]])
        mask = _polygon(_turned(outline, first + 2.4 * number, middle))  # the golden angle
        scene.picture[np.roll(mask, (3, 3), (0, 1))] *= 0.75
        color = np.array([0.6 * green, green, 0.4 * green]) + rng.normal(scale=8, size=3)
        scene.add(0, mask, color + rng.normal(scale=5, size=(SIDE, SIDE, 1)))
    return scene


def _signs(rng: Rng) -> Scene:
    """Shields of 3, 4, 8 or 40 corners with a red or blue rim, a white field and a black bar."""
    scene = Scene(_ground(rng, rng.uniform(60, 180, 3), clouds=35, grain=8))
    for _ in range(5):
        label, radius = int(rng.integers(4)), rng.uniform(16, 45)
        middle, corners = rng.uniform(radius, SIDE - radius, 2), (3, 4, 8, 40)[label]
        angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners + np.pi / 2
        shape = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius
        mask = _polygon(shape + middle)
        if scene.is_free(mask):
            rim = np.array([190.0, 30, 35] if rng.random() < 0.5 else [30.0, 70, 170])
            surface = np.where(_polygon(0.7 * shape + middle)[..., None], 230.0, rim)
            bar = np.array([[-0.3, -0.1], [0.3, -0.1], [0.3, 0.1], [-0.3, 0.1]]) * radius
            surface[_polygon(bar + middle)] = 25
            scene.add(label, mask, surface * rng.uniform(0.6, 1))
    return scene


def _speckle(rng: Rng) -> Scene:
    """Dim blobs without a sharp outline, in grey speckle."""
    scene = Scene(_ground(rng, np.full(3, 70.0), clouds=8, grain=0))
    for _ in range(4):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, scene.picture * rng.uniform(0.4, 0.65), blur=2)
    grains = cv2.GaussianBlur(rng.rayleigh(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 1.2)
    scene.picture = scene.picture * (grains / grains.mean())[..., None]
    return scene


def _plates(rng: Rng) -> Scene:
    """Light plates with dark letters."""
    scene = Scene(_ground(rng, rng.uniform(20, 230, 3), clouds=25, grain=5))
    for _ in range(6):
        half = rng.uniform(8, 16) * np.array([rng.uniform(3, 4.5), 1])  # of width and height
        middle = rng.uniform(half + 2, SIDE - half - 2)
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        mask = _polygon(_turned(corners, rng.normal(scale=0.12), middle))
        if scene.is_free(mask):
            text = "".join(rng.choice(list("ABCDEFGH0123456789"), 7))
            x, y = (int(value) for value in middle + half * [-0.9, 0.5])
            letters = np.zeros((SIDE, SIDE), dtype=np.uint8)
            cv2.putText(letters, text, (x, y), cv2.FONT_HERSHEY_DUPLEX, half[0] / 70, (1,), 2)
            surface = np.where(letters[..., None], rng.uniform(0, 60), rng.uniform(190, 245))
            scene.add(0, mask, surface + _grains(rng, 5))
    return scene


def _stripes(rng: Rng) -> Scene:
    """Blobs with stripes on stripes of the same two colours, which run another way."""
    color, way = rng.uniform(0, 255, 3), rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def striped(angle: float) -> FloatArray:
        waves = np.sin(0.7 * (columns * np.cos(angle) + rows * np.sin(angle)))
        return np.where(waves[..., None] > 0, color, 255 - color) + _grains(rng, 8)

    scene = Scene(striped(way))
    for _ in range(8):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, striped(way + np.pi / 2 + rng.normal(scale=0.3)))
    return scene


def _camouflage(rng: Rng) -> Scene:
    """Blobs with spots in the five colours of the ground; only how much there is of each differs."""
    colors = rng.uniform(0, 255, (5, 3))

    def spotted(shares: list[float]) -> FloatArray:
        spots = colors[rng.choice(5, p=shares, size=(SIDE // 6, SIDE // 6))]
        large = cv2.resize(spots, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        return cv2.GaussianBlur(large, (0, 0), 1.5) + _grains(rng, 6)

    scene = Scene(spotted([0.3, 0.3, 0.2, 0.15, 0.05]))
    for _ in range(7):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, spotted([0.05, 0.15, 0.2, 0.3, 0.3]))
    return scene


def _ellipse(middle: FloatArray, width: float, height: float) -> BoolArray:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return _polygon(np.stack([width * np.cos(angles), height * np.sin(angles)], axis=1) + middle)


def _strokes(paths: list[FloatArray], width: int) -> BoolArray:
    """The pixels of lines through points (N, 2), x and y."""
    drawn = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for path in paths:
        cv2.polylines(drawn, [path.round().astype(np.int32)], False, (1,), max(width, 1))
    return drawn > 0


def _grown(mask: BoolArray, pixels: int) -> BoolArray:
    """A mask with so many more pixels on each side; fewer if negative."""
    kernel = np.ones((2 * abs(pixels) + 1,) * 2, dtype=np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), kernel) > 0


def _rectangle(left: float, right: float, top: float, bottom: float) -> FloatArray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _clutter(scene: Scene, rng: Rng, colors: FloatArray, *, outlined: bool) -> None:
    """Rectangles of some colours (N, 3), which are no objects."""
    for color in colors:
        left, top = rng.uniform(-10, SIDE - 20, 2)
        shape = _polygon(
            _rectangle(left, left + rng.uniform(10, 60), top, top + rng.uniform(10, 60))
        )
        scene.picture[_grown(shape, 1) & outlined] = 10
        scene.picture[shape] = color


def _cars(rng: Rng) -> Scene:
    """Cars of about 20 by 9 px on grey roads, from above, with dark windows and shadows; most of them are grey."""
    scene = Scene(_ground(rng, np.array([105.0, 110, 95]), clouds=18, grain=6))
    angle, middle = rng.uniform(0, np.pi), np.full(2, SIDE / 2)
    lanes = (-70, 0, 70)

    def placed(left: float, right: float, top: float, bottom: float) -> BoolArray:
        return _polygon(_turned(_rectangle(left, right, top, bottom), angle, middle))

    for lane in lanes:
        road = placed(-400, 400, lane - 22, lane + 22)
        scene.picture = np.where(road[..., None], 92 + _grains(rng, 5), scene.picture)
        scene.picture[placed(-400, 400, lane - 1, lane + 1)] = 200
    for _ in range(34):
        x, y = rng.uniform(-170, 170), rng.choice(lanes) + rng.choice((-12, 12))
        long, wide = rng.uniform(8, 11), rng.uniform(4, 5)
        mask = placed(x - long, x + long, y - wide, y + wide)
        center = _turned(np.array([[x, y]]), angle, middle)[0]
        if center.min() < 12 or center.max() > SIDE - 12 or not scene.is_free(mask):
            continue
        scene.picture[np.roll(mask, (3, 2), (0, 1)) & ~mask] *= 0.5
        is_grey = rng.random() < 0.7
        color = (
            np.full(3, rng.choice([30, 70, 100, 180, 235])) if is_grey else rng.uniform(20, 230, 3)
        )
        windows = placed(x - 0.1 * long, x + 0.45 * long, y - 0.8 * wide, y + 0.8 * wide)
        scene.add(0, mask, np.where(windows[..., None], 40, color) + _grains(rng, 5))
    return scene


def _insects(rng: Rng) -> Scene:
    """Dark bodies with six legs and two feelers, each 2 px wide."""
    scene = Scene(_ground(rng, np.array([150.0, 140, 105]), clouds=28, grain=10))
    turns = np.linspace(0, 2 * np.pi, 40)
    body = np.stack([np.cos(turns), 0.4 * np.sin(turns)], axis=1)
    head = np.stack([1.25 + 0.35 * np.cos(turns), 0.3 * np.sin(turns)], axis=1)
    limbs = [np.array([[1.5, 0.1], [2.0, 0.5]])]
    limbs += [np.array([[x, 0.3], [1.2 * x, 0.9], [1.6 * x - 0.1, 1.5]]) for x in (-0.5, 0.1, 0.6)]
    limbs += [limb * [1, -1] for limb in limbs]
    for _ in range(7):
        length, angle = rng.uniform(12, 26), rng.uniform(0, 2 * np.pi)
        middle = rng.uniform(2.2 * length, SIDE - 2.2 * length, 2)
        mask = _strokes([_turned(limb * length, angle, middle) for limb in limbs], 2)
        for part in (body, head):
            mask |= _polygon(_turned(part * length, angle, middle))
        if scene.is_free(mask):
            scene.add(0, mask, np.array([60.0, 45, 35]) * rng.uniform(0.6, 1.5) + _grains(rng, 10))
    return scene


def _person(middle: FloatArray, height: float, stride: float) -> dict[str, BoolArray]:
    """The parts of a standing figure: legs, arms, torso, head."""

    def limb(*points: tuple[float, float]) -> FloatArray:
        return np.array(points) * height + middle

    wide = round(0.11 * height)
    legs = [limb((s * 0.05, 0.03), (s * (0.07 + stride), 0.48)) for s in (-1, 1)]
    arms = [
        limb((s * 0.11, -0.3), (s * 0.17, -0.1), (s * (0.14 + stride / 2), 0.05)) for s in (-1, 1)
    ]
    torso = _polygon(limb((-0.11, -0.33), (0.11, -0.33), (0.09, 0.05), (-0.09, 0.05)))
    head = _ellipse(limb((0, -0.42))[0], 0.065 * height, 0.08 * height)
    return {
        "legs": _strokes(legs, wide),
        "arms": _strokes(arms, wide // 2),
        "torso": torso,
        "head": head,
    }


def _people(rng: Rng) -> Scene:
    """Figures with shirt, trousers and head of different colours, one before another, among coloured rectangles."""
    scene = Scene(_ground(rng, rng.uniform(80, 160, 3), clouds=25, grain=6))
    _clutter(scene, rng, rng.uniform(20, 230, (25, 3)), outlined=False)
    scene.picture = cv2.GaussianBlur(scene.picture, (0, 0), 1) + _grains(rng, 6)
    for _ in range(7):
        height = rng.uniform(50, 110)
        middle = rng.uniform([25, 5 + height / 2], [SIDE - 25, SIDE - 5 - height / 2])
        parts = _person(middle, height, rng.uniform(-0.05, 0.14))
        shirt, skin = rng.uniform(10, 240, 3), np.array([200, 160, 130]) * rng.uniform(0.4, 1.1)
        colors = {"legs": rng.uniform(10, 200, 3), "arms": shirt, "torso": shirt, "head": skin}
        surface = np.zeros((SIDE, SIDE, 3))
        for name, part in parts.items():
            surface[part] = colors[name]
        mask = np.logical_or.reduce(list(parts.values()))
        scene.add(0, mask, surface + _grains(rng, 9))
    return scene


def _comics(rng: Rng) -> Scene:
    """Figures in flat colours with black lines around each part, among rectangles of the same colours and lines."""
    colors = rng.uniform(0, 255, (6, 3))
    scene = Scene(np.zeros((SIDE, SIDE, 3)) + colors[0])
    _clutter(scene, rng, colors[rng.integers(6, size=12)], outlined=True)
    for _ in range(6):
        height = rng.uniform(60, 110)
        middle = rng.uniform(height / 2 + 5, SIDE - height / 2 - 5, 2)
        parts = _person(middle, height, rng.uniform(0, 0.12))
        mask = _grown(np.logical_or.reduce(list(parts.values())), 1)
        if scene.is_free(mask):
            surface = np.full((SIDE, SIDE, 3), 10.0)
            for part, color in zip(parts.values(), rng.permutation(colors), strict=False):
                surface[_grown(part, 1)] = 10
                surface[_grown(part, -1)] = color
            scene.add(0, mask, surface, blur=0.4)
    return scene


def _fruit(rng: Rng) -> Scene:
    """A pile of balls of one kind, with shades and highlights."""
    scene = Scene(_ground(rng, np.array([110.0, 85, 60]), clouds=20, grain=6))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    kind = np.array([[190.0, 40, 30], [210, 140, 30], [90, 150, 40]])[rng.integers(3)]
    pile = rng.uniform(90, SIDE - 90, 2)
    for _ in range(14):
        radius, (x, y) = rng.uniform(18, 30), pile + rng.normal(scale=42, size=2)
        if min(x, y) < radius or max(x, y) > SIDE - radius:
            continue
        distance = np.hypot(columns - x, rows - y) / radius
        shade = 0.35 + 0.65 * np.sqrt(np.clip(1 - distance**2, 0, 1))
        from_light = np.hypot(columns - x + 0.35 * radius, rows - y + 0.4 * radius) / radius
        light = 200 * np.exp(-18 * from_light**2)
        color = kind + rng.normal(scale=12, size=3)
        scene.add(0, distance < 1, color * shade[..., None] + light[..., None] + _grains(rng, 5))
    return scene


def _bottles(rng: Rng) -> Scene:
    """Bottles of clear glass: a dark rim, a highlight, and what is behind them."""
    scene = Scene(_ground(rng, rng.uniform(90, 180, 3), clouds=25, grain=4))
    left = np.array([[-1, 1], [-1, -0.3], [-0.35, -0.6], [-0.35, -1]])
    shape = np.concatenate([left, (left * [-1, 1])[::-1]])
    for _ in range(5):
        half = rng.uniform([12, 35], [22, 60])
        middle = rng.uniform(half + 4, SIDE - half - 4)
        mask = _polygon(shape * half + middle)
        if scene.is_free(mask):
            rim = mask & ~_grown(mask, -2)
            highlight = _polygon(_rectangle(-0.7, -0.55, -0.2, 0.8) * half + middle)
            surface = scene.picture * 0.93 + 8
            surface[rim] *= rng.uniform(0.6, 0.8)
            surface[highlight] = surface[highlight] * 0.5 + 120
            scene.add(0, mask, surface)
    return scene


def _x_rays(rng: Rng) -> Scene:
    """Grey shadows of blobs, plates and frames; where they overlap, each is seen through the others."""
    scene = Scene(_ground(rng, np.full(3, 225.0), clouds=5, grain=0))
    for _ in range(6):
        width, height = rng.uniform(8, 40, 2)
        plate = _turned(
            _rectangle(-width, width, -height, height),
            rng.uniform(0, np.pi),
            rng.uniform(45, SIDE - 45, 2),
        )
        mask = _polygon(plate) if rng.random() < 0.5 else _blob(rng)
        if rng.random() < 0.3:
            mask &= ~_grown(mask, -4)
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1)[..., None]
        scene.picture = scene.picture * (1 - share * (1 - rng.uniform(0.55, 0.8)))
        scene.objects.append((0, mask))  # those behind stay whole
    scene.picture = scene.picture + _grains(rng, 4)
    return scene


KINDS: dict[str, Callable[[Rng], Scene]] = {
    "digits": _digits,
    "roofs": _roofs,
    "worms": _worms,
    "leaves": _leaves,
    "signs": _signs,
    "speckle": _speckle,
    "plates": _plates,
    "stripes": _stripes,
    "camouflage": _camouflage,
    "cars": _cars,
    "insects": _insects,
    "people": _people,
    "comics": _comics,
    "fruit": _fruit,
    "bottles": _bottles,
    "x-rays": _x_rays,
}
