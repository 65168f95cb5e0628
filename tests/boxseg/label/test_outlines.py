import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from boxseg.config.method import ToyConfig
from boxseg.data.toy import draw_scene
from boxseg.errors import ShapeError
from boxseg.label.cut import cut_by_colors
from boxseg.label.outlines import find_outline
from boxseg.ops.masks import pixels_inside
from boxseg.ops.pixels import BoolArray, box_fit, pixels_of_box


def disc(size: int, radius: float) -> BoolArray:
    steps = np.arange(size) + 0.5 - size / 2
    return np.hypot(steps[None], steps[:, None]) <= radius


def painted(mask: BoolArray, there: int, here: int, noise: float = 2.0) -> NDArray[np.uint8]:
    """A grey window (3, h, w) with an object."""
    grey = np.where(mask, here, there) + np.random.default_rng(0).normal(0, noise, mask.shape)
    return np.broadcast_to(grey.clip(0, 255).round().astype(np.uint8), (3, *mask.shape))


def box_of(mask: BoolArray) -> NDArray[np.float32]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def iou(mask: BoolArray, other: BoolArray) -> float:
    return float((mask & other).sum() / (mask | other).sum())


@pytest.mark.parametrize(("there", "here"), [(6, 14), (120, 135), (250, 200), (90, 20)])
def test_dark_grey_and_faint_objects_are_found_without_a_network(there: int, here: int):
    mask = disc(64, 20)
    assert iou(find_outline(painted(mask, there, here), box_of(mask)).mask, mask) > 0.95


@pytest.mark.parametrize("side", [8, 24, 100, 400])
def test_objects_of_any_size_get_their_corners_cut_and_their_sides_touched(side: int):
    window = int(1.6 * side)
    mask = disc(window, side / 2)
    box = box_of(mask)
    outline = find_outline(painted(mask, 60, 160), box)
    assert iou(outline.mask, mask) > 0.93
    assert box_fit(outline.mask, pixels_of_box(box, mask.shape)) > 0.98


def test_the_hole_of_a_ring_stays_open():
    ring = disc(120, 40) & ~disc(120, 22)
    outline = find_outline(painted(ring, 180, 40), box_of(ring))
    assert iou(outline.mask, ring) > 0.93
    assert not outline.mask[60, 60]


def with_window(mask: BoolArray, window: BoolArray) -> NDArray[np.uint8]:
    """A red object on grey; a window in it is blue."""
    image = painted(mask, 100, 100).copy()
    for region, color in ((mask, (200, 40, 40)), (window, (30, 40, 190))):
        for channel, value in enumerate(color):
            image[channel][region] = value
    return image


def test_a_window_whose_colours_are_rare_around_the_object_belongs_to_it():
    mask, corners = (
        disc(120, 40),
        ~disc(120, 80),
    )  # in which the window's colour occurs, but seldom
    outline = find_outline(with_window(mask, disc(120, 18) | corners), box_of(mask))
    assert outline.is_clean
    assert iou(outline.mask, mask) > 0.97


def test_so_does_an_open_one_that_the_network_sees_unless_it_may_be_another_object():
    mask = disc(120, 40)
    window = mask & (np.arange(120)[:, None] > 70) & (abs(np.arange(120) - 60) < 9)
    corners = ~disc(120, 78)  # in which the window's colour occurs as well
    image, box = with_window(mask, window | corners), box_of(mask)
    soft = np.where(mask, 0.9, 0.1)
    alone, seen = find_outline(image, box).mask, find_outline(image, box, soft).mask
    assert not alone[window].any()
    assert seen[window].mean() > 0.9
    around_it = box_of(window)[None]
    beside_another = find_outline(image, box, soft, around_it).mask
    assert not beside_another[window].any()


def test_a_cut_that_the_network_contradicts_is_doubtful():
    rim = disc(120, 40) & ~disc(120, 34)
    image, box = painted(rim, 180, 40), box_of(rim)
    filled = find_outline(image, box, np.where(disc(120, 40), 0.9, 0.1))
    assert not filled.mask[60, 60], "what is seen through it is around it as well"
    assert filled.quality == 0.8
    assert find_outline(image, box, np.where(rim, 0.9, 0.1)).quality > 0.9


@pytest.mark.parametrize("rim", [0, 1])
def test_an_object_that_fills_the_picture_is_not_taken_for_its_whole_box(rim: int):
    mask = disc(200 + 2 * rim, 100)
    outline = find_outline(painted(mask, 60, 160), box_of(mask))
    assert not outline.is_clean  # nothing is around the box that colours could be told apart from
    assert iou(outline.mask, mask) > 0.93


def test_the_network_decides_where_colours_cannot():
    mask = disc(80, 25)
    bitten = mask.copy()
    bitten[:40, :40] = False
    image = painted(mask, 100, 100)
    found = find_outline(image, box_of(mask), np.where(bitten, 0.95, 0.05)).mask
    assert (found & mask)[:40, :40].mean() < 0.3 * (found & mask)[40:, 40:].mean()


def test_a_map_that_stops_inside_its_box_is_carried_to_the_sides():
    mask = disc(80, 30)
    outline = find_outline(painted(mask, 60, 90), box_of(mask), np.where(disc(80, 18), 0.9, 0.05))
    assert outline.measures["fit"] > 0.98
    assert iou(outline.mask, mask) > 0.9


def test_a_map_may_be_coarser_than_the_window():
    mask = disc(80, 28)
    coarse = mask[2::4, 2::4].astype(np.float32)
    assert iou(find_outline(painted(mask, 60, 90), box_of(mask), coarse).mask, mask) > 0.95


def test_masks_stay_in_their_box():
    image = np.full((3, 60, 60), 200, dtype=np.uint8)
    image[:, 10:50, 10:50] = 30
    box = np.array([20.3, 15.0, 41.8, 40.0], dtype=np.float32)
    found = find_outline(image, box, np.ones((60, 60), dtype=np.float32)).mask
    assert found.any()
    assert not (found & ~pixels_inside(torch.from_numpy(box)[None], (60, 60))[0].numpy()).any()


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 9, 8, 9], [8, 5, 2, 9]])
def test_a_box_without_area_has_an_empty_mask_of_quality_0(box: list[float]):
    outline = find_outline(np.zeros((3, 20, 20), np.uint8), np.array(box, dtype=np.float32))
    assert not outline.mask.any()
    assert outline.quality == 0


@pytest.mark.parametrize(
    "box", [[3.2, 3.2, 3.4, 3.4], [0, 0, 12, 12], [-3, -3, 40, 40], [11.5, 0, 30, 1]]
)
def test_thin_tiny_and_window_filling_boxes_get_a_mask(box: list[float]):
    image = np.random.default_rng(0).integers(0, 256, (3, 12, 12), dtype=np.uint8)
    outline = find_outline(image, np.array(box, dtype=np.float32))
    assert outline.mask.any()
    assert 0 <= outline.quality <= 1


def test_a_window_of_one_colour_and_one_of_a_single_pixel_get_a_mask():
    flat = find_outline(
        np.full((3, 30, 30), 7, np.uint8), np.array([5, 5, 25, 25], dtype=np.float32)
    )
    assert 0.5 < flat.mask.sum() / 400 < 1  # about the inscribed ellipse
    assert find_outline(
        np.zeros((3, 1, 1), np.uint8), np.array([0, 0, 1, 1], dtype=np.float32)
    ).mask.all()


def test_the_same_window_gives_the_same_outline_and_stays_as_it_was():
    mask = disc(50, 15)
    image, soft = painted(mask, 100, 110).copy(), np.full((50, 50), 0.5, np.float32)
    before = image.copy(), soft.copy()
    one, two = (find_outline(image, box_of(mask), soft) for _ in range(2))
    assert (one.mask == two.mask).all()
    assert one.quality == two.quality
    assert (image == before[0]).all()
    assert (soft == before[1]).all()


def test_box_fit_is_the_iou_of_the_boxes():
    inside = np.zeros((10, 10), dtype=bool)
    inside[2:8, 2:8] = True
    mask = np.zeros_like(inside)
    assert box_fit(mask, inside) == 0
    mask[2:5, 2:8] = True
    assert box_fit(mask, inside) == pytest.approx(0.5)
    assert box_fit(inside, inside) == 1


def test_wrong_shapes_are_named():
    image, box = np.zeros((3, 8, 8), np.uint8), np.array([1, 1, 5, 5], dtype=np.float32)
    with pytest.raises(ShapeError, match=r"uint8 RGB \(3, h, w\) is needed"):
        find_outline(image[0], box)
    with pytest.raises(ShapeError, match="x1 y1 x2 y2 are needed"):
        find_outline(image, box[:3])
    with pytest.raises(ShapeError, match=r"soft has shape \(3, 8, 8\)"):
        find_outline(image, box, image.astype(np.float32))
    with pytest.raises(
        ShapeError, match=r"other_boxes has shape \(4,\); boxes \(M, 4\) are needed"
    ):
        find_outline(image, box, None, box)


def test_a_clean_disc_is_expected_to_be_better_than_noise():
    y, x = np.mgrid[:80, :80] + 0.5
    disc = np.hypot(x - 40, y - 40) < 25
    image = np.where(disc, 200, 60).astype(np.uint8)[None].repeat(3, axis=0)
    box = np.array([15, 15, 65, 65], dtype=np.float32)
    clean = find_outline(image, box, disc.astype(np.float32))
    rng = np.random.default_rng(0)
    noise = find_outline(
        rng.integers(0, 256, image.shape, dtype=np.uint8), box, rng.random((80, 80))
    )
    assert clean.quality > 0.85
    assert noise.quality <= 0.8
    assert noise.measures["ragged"] > clean.measures["ragged"]
    assert clean.measures["fit"] == 1


def star(size: int) -> BoolArray:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return np.hypot(x, y) <= size / 3 * (0.7 + 0.3 * np.cos(5 * np.arctan2(y, x)))


def test_a_wrong_network_is_ignored_where_colours_show_the_object():
    mask = star(90)
    wrong = np.where(disc(90, 30), 0.999, 0.001)
    outline = find_outline(painted(mask, 60, 160), box_of(mask), wrong)
    assert iou(outline.mask, mask) > 0.97
    assert outline.quality > 0.9


def test_a_ring_on_a_busy_picture_is_cut_with_its_hole():
    rng = np.random.default_rng(0)
    ring = disc(120, 40) & ~disc(120, 24)
    ground = np.where(rng.random((120, 120)) < 0.5, 60, 90)
    image = np.where(ring, 200, ground).astype(np.uint8)[None].repeat(3, axis=0)
    cut = cut_by_colors(np.ascontiguousarray(image.transpose(1, 2, 0)), box_of(ring))
    assert cut.is_clean
    assert iou(cut.mask, ring) > 0.97


def test_the_holes_of_drawn_rings_are_open():
    settings = ToyConfig(shapes=["ring"])
    overlaps = []
    for seed in range(40):
        picture, objects = draw_scene(np.random.default_rng(seed), settings)
        front = objects[-1][1]  # nothing lies on it
        overlaps.append(iou(cut_by_colors(picture, box_of(front)).mask, front))
    # A filled ring has 0.6 to 0.8.
    assert sum(overlap > 0.88 for overlap in overlaps) >= 38


def test_the_holes_of_thin_strokes_stay_open():
    steps = np.arange(60) + 0.5
    distances = [np.hypot(steps[None] - 30, steps[:, None] - middle) for middle in (21, 38)]
    eight = np.logical_or.reduce([np.abs(distance - 8.5) <= 1.2 for distance in distances])
    picture = np.where(eight[..., None], (60, 190, 200), (150, 115, 70))
    picture = picture + np.random.default_rng(1).normal(0, 5, picture.shape)
    cut = cut_by_colors(picture.clip(0, 255).astype(np.uint8), box_of(eight))
    assert cut.is_clean
    assert iou(cut.mask, eight) > 0.97


def test_a_cut_of_noise_is_not_trusted():
    picture = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    assert not cut_by_colors(picture, np.array([15, 15, 45, 45], dtype=np.float32)).is_clean


def test_a_large_clean_cut_has_an_outline_at_the_resolution_of_the_picture():
    mask = star(600)
    image = painted(mask, 60, 160)
    assert (
        iou(cut_by_colors(np.ascontiguousarray(image.transpose(1, 2, 0)), box_of(mask)).mask, mask)
        > 0.985
    )


@pytest.mark.parametrize(
    "box", [[4, 4, 5, 5], [0, 0, 12, 12], [0, 5, 12, 6], [3.2, 3.2, 3.4, 3.4]]
)
def test_boxes_of_a_pixel_a_row_or_the_whole_picture_can_be_cut(box: list[float]):
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    cut = cut_by_colors(picture, np.array(box, dtype=np.float32))
    assert cut.mask.any()
    assert 0 <= cut.separation <= 1


def test_how_far_box_and_mask_lie_in_other_boxes_is_measured_and_leaves_the_mask_alone():
    mask = disc(80, 24)
    left_half = np.array([[0.0, 0, 40, 80], [500, 500, 600, 600]], dtype=np.float32)
    alone = find_outline(painted(mask, 60, 160), box_of(mask))
    among = find_outline(painted(mask, 60, 160), box_of(mask), None, left_half)
    assert (alone.measures["crowd"], alone.measures["among"]) == (0, 0)
    assert among.measures["crowd"] == pytest.approx(0.5)
    assert among.measures["among"] == pytest.approx(0.5, abs=0.02)
    assert (among.mask == alone.mask).all()


def test_hair_of_the_colour_around_it_is_found_as_the_box_is_tight():
    body, hair = np.zeros((2, 120, 80), dtype=np.bool_)
    body[30:100, 25:55] = True
    hair[20:30, 33:47] = True
    soft = np.where(body, 0.95, np.where(hair, 0.2, 0.02)).astype(np.float32)
    outline = find_outline(painted(body, 120, 180, noise=4), box_of(body | hair), soft)
    assert (outline.mask & hair).sum() > 0.6 * hair.sum()
    assert iou(outline.mask, body | hair) > 0.96
