import colorsys
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.config.method import ToyConfig
from boxseg.data.toy import MAX_OBJECTS, MIN_VISIBLE, draw_scene, ensure_toy
from boxseg.data.toy_shapes import SHAPES, coverage

SMALL = ToyConfig(train_images=3, val_images=2, size=64, seed=5)

CLASS_NAMES = ToyConfig().shapes


def folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def read(source):
    return json.loads(source.annotations.read_text())


def decode(annotation):
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


def test_the_same_settings_give_the_same_bytes(tmp_path):
    ensure_toy(tmp_path / "a", SMALL)
    ensure_toy(tmp_path / "b", SMALL)
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_another_seed_gives_another_folder_and_other_images(tmp_path):
    first, _ = ensure_toy(tmp_path, SMALL)
    other, _ = ensure_toy(tmp_path, SMALL.model_copy(update={"seed": 6}))
    assert first.images != other.images
    assert (first.images / "000000.png").read_bytes() != (other.images / "000000.png").read_bytes()


def test_train_and_val_images_differ(tmp_path):
    train, val = ensure_toy(tmp_path, SMALL)
    assert (train.images / "000000.png").read_bytes() != (val.images / "000000.png").read_bytes()


def test_more_images_leave_the_first_ones_as_they_were(tmp_path):
    few, _ = ensure_toy(tmp_path, SMALL)
    many, _ = ensure_toy(tmp_path, SMALL.model_copy(update={"train_images": 4}))
    assert (few.images / "000002.png").read_bytes() == (many.images / "000002.png").read_bytes()


def test_shapes_that_may_not_turn_stand_upright(tmp_path):
    upright = ToyConfig(train_images=30, val_images=1, shapes=("triangle",), max_turn=0)
    scenes = [draw_scene(np.random.default_rng(seed), upright) for seed in range(30)]
    halves = [_upper_and_lower_area(mask) for _, objects in scenes for _, mask in objects]
    assert sum(upper < lower for upper, lower in halves) > 0.9 * len(halves)
    train, _ = ensure_toy(tmp_path, upright)
    turned, _ = ensure_toy(tmp_path, upright.model_copy(update={"max_turn": 360.0}))
    assert (train.images / "000000.png").read_bytes() != (
        turned.images / "000000.png"
    ).read_bytes()


def _upper_and_lower_area(mask):
    """Visible pixels in the upper and in the lower half of the mask's box."""
    rows = np.nonzero(mask.any(axis=1))[0]
    middle = (rows[0] + rows[-1]) // 2
    return mask[:middle].sum(), mask[middle:].sum()


def test_a_data_set_that_is_there_is_left_alone(tmp_path):
    train, _ = ensure_toy(tmp_path, SMALL)
    train.annotations.write_text("mine")
    again, _ = ensure_toy(tmp_path, SMALL)
    assert again.annotations.read_text() == "mine"
    assert again == train


def test_several_processes_at_once_end_with_one_whole_data_set(tmp_path):
    program = (
        "import sys; from pathlib import Path; from boxseg.config.method import ToyConfig; "
        "from boxseg.data.toy import ensure_toy; "
        "ensure_toy(Path(sys.argv[1]), ToyConfig(train_images=3, val_images=2, size=64, seed=5))"
    )
    shared = tmp_path / "shared"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(shared)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    ensure_toy(tmp_path / "alone", SMALL)
    assert folder_digest(shared) == folder_digest(tmp_path / "alone")
    assert len(list(shared.iterdir())) == 1  # no draft is left


def test_a_failed_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("boxseg.data.toy.draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_toy(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_boxes_and_areas_are_tight_around_the_masks(toy):
    for annotation in read(toy[0])["annotations"]:
        mask = decode(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (
            x,
            y,
            x + width,
            y + height,
        )
        assert annotation["area"] == mask.sum()


def test_every_image_has_one_to_five_objects_that_do_not_share_pixels(toy):
    content = read(toy[0])
    by_image = {image["id"]: np.zeros((128, 128), dtype=int) for image in content["images"]}
    counts = dict.fromkeys(by_image, 0)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]] += decode(annotation)
        counts[annotation["image_id"]] += 1
    assert all(1 <= count <= MAX_OBJECTS for count in counts.values())
    assert all(depth.max() == 1 for depth in by_image.values())


def test_every_class_occurs_and_its_category_id_is_its_label_plus_one(toy):
    content = read(toy[0])
    assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(
        range(1, len(CLASS_NAMES) + 1)
    )


def test_a_filled_box_is_a_poor_mask(toy):
    fill = [
        a["area"] / (a["bbox"][2] * a["bbox"][3])
        for source in toy
        for a in read(source)["annotations"]
    ]
    assert np.mean(fill) < 0.65


def test_object_sizes_suit_the_image(toy):
    sides = [max(annotation["bbox"][2:]) for annotation in read(toy[0])["annotations"]]
    assert min(sides) >= 12
    assert max(sides) <= 70
    assert 30 <= np.median(sides) <= 48


@pytest.mark.parametrize("name", ["star", "ring", "corner", "crescent"])
def test_several_shapes_are_not_convex(name):
    shape = coverage(SHAPES[name], 24.0, 0.3, 0.5, np.zeros(2)) >= 0.5
    rows, columns = np.nonzero(shape)
    points = np.stack([rows, columns], axis=1)
    # midpoints of pairs lie in a convex shape
    middles = (points[:, None, :] + points[None, ::7, :]) // 2
    inside = shape[middles[..., 0], middles[..., 1]]
    assert inside.mean() < 0.95


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("form", [0.0, 1.0])
def test_every_shape_has_a_reasonable_area_that_turning_keeps(name, form):
    areas = [
        (coverage(SHAPES[name], 20.0, angle, form, np.zeros(2)) >= 0.5).sum()
        for angle in (0.0, 0.4, 2.0)
    ]
    assert min(areas) > 0.25 * np.pi * 20**2
    assert max(areas) - min(areas) < 0.08 * max(areas)


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_shape_stays_inside_the_unit_disc(name):
    x, y = np.meshgrid(np.linspace(-2, 2, 200), np.linspace(-2, 2, 200))
    outside = np.hypot(x, y) > 1
    for form in (0.0, 1.0):
        assert not SHAPES[name](x, y, form)[outside].any()
        assert SHAPES[name](x, y, form).any()


def test_objects_stand_out_from_what_surrounds_them():
    distances = []
    for seed in range(12):
        picture, objects = draw_scene(np.random.default_rng(seed), ToyConfig())
        background = ~np.any([mask for _, mask in objects], axis=0)
        for _, mask in objects:
            distances.append(
                np.linalg.norm(picture[mask].mean(axis=0) - picture[background].mean(axis=0))
            )
    assert min(distances) > 50


def test_objects_hide_little_of_one_another():
    for seed in range(12):
        _, objects = draw_scene(np.random.default_rng(seed), ToyConfig())
        for label, mask in objects:
            if CLASS_NAMES[label] == "disc":  # its whole area follows from its extent
                side = max(np.ptp(np.nonzero(mask)[0]), np.ptp(np.nonzero(mask)[1])) + 1
                assert mask.sum() >= (MIN_VISIBLE - 0.1) * np.pi * (side / 2) ** 2


@pytest.mark.parametrize("own", [True, False])
def test_classes_can_have_colors_of_their_own(own):
    settings = ToyConfig(shapes=("ellipse", "quad", "triangle"), class_colors=own)
    for label, hues in _mean_hues(settings).items():
        # hues of two classes are a third of the circle apart
        away = np.abs((hues - label / 3 + 0.5) % 1 - 0.5)
        assert (np.median(away) < 0.12) == own


def _mean_hues(settings):
    """Hue in 0 … 1 of the mean colour of each object of 30 pictures, by label."""
    hues = {label: [] for label in range(len(settings.shapes))}
    for seed in range(30):
        picture, objects = draw_scene(np.random.default_rng(seed), settings)
        for label, mask in objects:
            hues[label].append(colorsys.rgb_to_hsv(*picture[mask].mean(axis=0) / 255)[0])
    return {label: np.array(of_class) for label, of_class in hues.items()}


def test_clutter_is_drawn_but_is_no_object():
    plain = ToyConfig(shapes=("ellipse", "quad", "triangle"))
    cluttered = plain.model_copy(update={"clutter": 6})
    for settings, busy in ((plain, False), (cluttered, True)):
        spread = []
        for seed in range(20):
            picture, objects = draw_scene(np.random.default_rng(seed), settings)
            background = ~np.any([mask for _, mask in objects], axis=0)
            spread.append(picture[background].std(axis=0).max())
        assert (np.median(spread) > 35) == busy


def test_clutter_needs_a_shape_that_is_no_class():
    with pytest.raises(ValueError, match="clutter 1 needs a shape that is no class"):
        ToyConfig(shapes=tuple(SHAPES), clutter=1)


def test_images_are_rgb_of_the_wanted_size(tmp_path):
    train, val = ensure_toy(tmp_path, SMALL)
    assert len(list(train.images.iterdir())) == 3
    assert len(list(val.images.iterdir())) == 2
    with Image.open(train.images / "000000.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (64, 64))


def test_the_classes_are_the_shapes_that_were_asked_for(tmp_path):
    train, _ = ensure_toy(tmp_path, SMALL.model_copy(update={"shapes": ("triangle", "ellipse")}))
    assert [category["name"] for category in read(train)["categories"]] == ["triangle", "ellipse"]
