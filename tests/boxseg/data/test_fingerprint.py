import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sets import KINDS, write_set

from boxseg.coco.writer import CocoSplit
from boxseg.config.method import CocoSource
from boxseg.data.fingerprint import LOOKED_AT, Spread, take_fingerprint
from boxseg.errors import DataError
from boxseg.files.pixels import cielab
from boxseg.ops.neighbours import rgb_to_lab


def write_boxes(folder: Path, *boxes, size=(80, 60), image=None) -> CocoSource:
    """One image (width, height) with boxes x1 y1 x2 y2, and one without."""
    split = CocoSplit(folder, ["a", "b"])
    for name in ("with.png", "without.png"):
        split.add_image(name, (size[1], size[0]))
        Image.fromarray(
            np.zeros((size[1], size[0], 3), np.uint8) if image is None else image
        ).save(folder / name)
        for box in boxes if name == "with.png" else ():
            split.add_object(0, box=box)
    (folder / "boxes.json").write_text(json.dumps(split.content))
    return CocoSource(images=folder, annotations=folder / "boxes.json")


def test_sizes_are_those_of_the_file(tmp_path):
    found = take_fingerprint(
        write_boxes(tmp_path, (0, 0, 10, 4), (10, 10, 15, 40), (20, 20, 40, 30)), look=False
    )
    assert (found.images, found.boxes, found.classes) == (1, 3, 1)
    assert found.object_px.median == 20
    assert found.image_px == Spread(60, 60, 60)
    assert found.boxes_per_image.median == 3
    assert found.colours is None
    # at a short side of 30 px all is half as large; a limit of 20 px for the long side makes it a quarter
    assert found.sides.sizes_at(30).tolist() == [5, 15, 10]
    assert found.sides.sizes_at(30, 20).tolist() == [2.5, 7.5, 5]


def test_crowds_and_boxes_without_area_do_not_count(tmp_path):
    source = write_boxes(tmp_path, (0, 0, 10, 4), (0, 0, 50, 50), (5, 5, 30, 5))
    content = json.loads(source.annotations.read_text())
    content["annotations"][1]["iscrowd"] = 1
    source.annotations.write_text(json.dumps(content))
    assert take_fingerprint(source).boxes == 1
    content["annotations"] = content["annotations"][1:]
    source.annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no box with an area that is not a crowd"):
        take_fingerprint(source)


def test_contrast_is_the_distance_of_an_object_from_what_is_around_it(tmp_path):
    image = np.full((60, 80, 3), 50, np.uint8)
    image[20:40, 30:50] = 90
    found = take_fingerprint(write_boxes(tmp_path, (30, 20, 50, 40), image=image)).colours
    light = cielab(np.array([[[50, 50, 50], [90, 90, 90]]], np.uint8))[0, :, 0]
    assert found.contrast == pytest.approx(light[1] - light[0], abs=0.01)
    assert (len(found.is_grey), found.grey) == (1, 1.0)


def test_objects_with_a_hole_and_dark_objects_stand_out_from_their_surroundings(tmp_path):
    rings = take_fingerprint(write_set(tmp_path / "rings", KINDS["rings"], images=4)).colours
    assert rings.contrast > 30
    assert rings.grey == 0
    dark = take_fingerprint(write_set(tmp_path / "dark", KINDS["dark"], images=4)).colours
    assert dark.contrast < 6
    assert dark.grey == 1


def test_nothing_is_said_about_surroundings_where_boxes_fill_their_images(tmp_path):
    told = dict(take_fingerprint(write_boxes(tmp_path, (0, 0, 80, 60))).rows())
    assert told["colours"] == "grey"


def test_colours_are_those_that_training_compares():
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3)).astype(np.uint8)
    expected = rgb_to_lab(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0)
    np.testing.assert_allclose(cielab(pixels), expected.numpy(), rtol=0, atol=0.3)


def test_a_sample_of_the_images_is_opened_and_those_that_cannot_be_are_left_out(tmp_path):
    source = write_set(tmp_path, KINDS["rings"], images=3)
    (source.images / "001.png").write_bytes(b"no picture")
    assert len(take_fingerprint(source).colours.is_grey) == 2
    for path in source.images.glob("*.png"):
        path.unlink()
    assert take_fingerprint(source).colours is None
    content = json.loads(source.annotations.read_text())
    name = "one.png"
    Image.new("RGB", (8, 8)).save(source.images / name)
    images = [{"id": n, "file_name": name, "width": 8, "height": 8} for n in range(1, 200)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 4, 4]} for n in range(1, 200)
    ]
    source.annotations.write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    assert len(take_fingerprint(source).colours.is_grey) == LOOKED_AT


def test_boxes_far_outside_their_image_do_not_count_for_colours(tmp_path):
    source = write_boxes(
        tmp_path,
        [1e300, 5, 2e300, 20],
        [-2e300, 5, -1e300, 20],
        image=np.zeros((60, 80, 3), dtype=np.uint8),
    )
    assert np.isnan(take_fingerprint(source).colours.contrast)


@pytest.mark.parametrize("end", [1e300, 1.7e308])
def test_a_box_that_ends_far_outside_its_image_has_the_colours_of_its_part_in_it(tmp_path, end):
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[10:40, 30:] = 255
    source = write_boxes(tmp_path, [30, 10, end, 40], image=image)
    assert take_fingerprint(source).colours.contrast == pytest.approx(100, abs=5)
