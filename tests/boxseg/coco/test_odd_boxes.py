"""Boxes in another notation, turned, drawn twice or too small are reported; those with one meaning only are fixed."""

import json

import numpy as np
import pytest

from boxseg.coco.checks import check_source
from boxseg.coco.faults import FIX_IN_FILE
from boxseg.coco.fix import write_fixed
from boxseg.coco.odd_boxes import sign_of_corners
from boxseg.errors import DataError


def annotation(number, bbox, **fields):
    return {"id": number, "image_id": 10, "category_id": 3, "bbox": bbox, "iscrowd": 0} | fields


def told(source, **options):
    options = {"training": True} | options
    return [(fault.fatal, fault.text) for fault in check_source(source, **options)]


def mended(source, output):
    changes = write_fixed(source, output)
    return dict(changes), json.loads((output / "annotations.json").read_text())


# The image of id 10 has 60 x 40 px.
CORNERS = [[2, 2, 14, 11], [10, 20, 22, 29], [30, 15, 42, 24], [40, 30, 52, 39]]


def test_boxes_given_as_corners_are_refused_and_fixed(content, write_source, tmp_path):
    content["annotations"] = [annotation(i, box) for i, box in enumerate(CORNERS, start=1)]
    source = write_source(content)
    fatal, text = told(source)[0]
    assert fatal
    assert "4 boxes such as [2, 2, 14, 11] that all fit as x1, y1, x2, y2" in text
    changes, copy = mended(source, tmp_path / "out")
    assert changes == {"boxes written as x, y, width, height, not as corners": 4}
    boxes = [each["bbox"] for each in copy["annotations"]]
    assert boxes == [[2, 2, 12, 9], [10, 20, 12, 9], [30, 15, 12, 9], [40, 30, 12, 9]]
    assert [each["area"] for each in copy["annotations"]] == [108] * 4


@pytest.mark.parametrize(
    "boxes",
    [
        CORNERS[:3],  # so few may fit by chance
        [*CORNERS, [20, 20, 5, 5]],  # the last is no pair of corners
        [[2, 2, 14, 11], [3, 3, 12, 9], [4, 4, 20, 20], [5, 5, 20, 20]],  # all inside as they are
    ],
)
def test_boxes_that_may_be_right_are_not_taken_for_corners(content, write_source, boxes):
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    assert not any("x1, y1" in text for _, text in told(write_source(content)))


def test_corners_that_would_fit_as_sides_too_are_refused_and_fixed(
    content, write_source, tmp_path
):
    # In the upper left quarter of an image of 60 x 40 px, nothing ends beyond it when it is read as sides.
    places = np.random.default_rng(0).integers((1, 1), (24, 14), (24, 2)).tolist()
    corners = [[x, y, x + 6, y + 6] for x, y in places]
    content["annotations"] = [annotation(i, box) for i, box in enumerate(corners, start=1)]
    source = write_source(content)
    fatal, text = told(source)[0]
    assert fatal
    assert "24 boxes such as" in text
    assert "read so, all are wider and higher than they are far from left and top" in text
    _, copy = mended(source, tmp_path / "out")
    assert [each["bbox"] for each in copy["annotations"]] == [[x, y, 6, 6] for x, y in places]
    # The same objects as x, y, width, height.
    content["annotations"] = copy["annotations"]
    assert not any("x1, y1" in text for _, text in told(write_source(content)))


def real_boxes(path):
    """[x, y, width, height, image's width, its height] of each box, and the image that each is in."""
    content = json.loads(path.read_text())
    size_of = {each["id"]: [each["width"], each["height"]] for each in content["images"]}
    objects = [each for each in content["annotations"] if not each["iscrowd"]]
    boxes = np.array([each["bbox"] + size_of[each["image_id"]] for each in objects])
    return boxes, np.array([each["image_id"] for each in objects])


def looks_like_corners(boxes):
    objects = [{"image_id": i, "bbox": box} for i, box in enumerate(boxes[:, :4].tolist())]
    sizes = {i: (height, width) for i, (width, height) in enumerate(boxes[:, 4:].tolist())}
    return sign_of_corners(objects, sizes) is not None


@pytest.mark.parametrize(
    "real_set", ["pennfudan", "animals", "coco-mini", "nuclei"], indirect=True
)
@pytest.mark.parametrize("split", ["train_boxes", "val"])
def test_real_boxes_are_not_taken_for_corners_and_corners_are_reported(real_set, split):
    boxes, image_ids = real_boxes(real_set / f"annotations/{split}.json")
    assert_no_corners(boxes, image_ids)
    if real_set.name in ("nuclei", "coco-mini"):  # mostly small objects
        corners = boxes.copy()
        corners[:, 2:4] += corners[:, :2]
        quarter = corners[(corners[:, :2] + corners[:, 2:4] <= corners[:, 4:]).all(axis=1)]
        rng = np.random.default_rng(0)
        found = [looks_like_corners(rng.choice(quarter, 24, replace=False)) for _ in range(20)]
        assert sum(found) >= 18


def test_generated_boxes_are_not_taken_for_corners(toy):
    for source in toy:
        assert_no_corners(*real_boxes(source.annotations))


def assert_no_corners(boxes, image_ids):
    """No boxes are taken for corners, neither all of them nor those of some images alone."""
    assert not looks_like_corners(boxes)
    may_be_corners = (boxes[:, 2:4] > boxes[:, :2]).all(axis=1)
    # The worst choice of images: of each, all boxes are wider and higher than far from left and top.
    others = set(image_ids[~may_be_corners].tolist())
    worst = [i for i in np.unique(image_ids).tolist() if i not in others]
    rng = np.random.default_rng(0)
    for ids in (np.unique(image_ids), np.array(worst)):
        for count in (4, 8, 16, 31, 64):
            for _ in range(20 if len(ids) else 0):
                chosen = rng.choice(ids, min(count, len(ids)), replace=False)
                assert not looks_like_corners(boxes[np.isin(image_ids, chosen)])


def test_boxes_in_fractions_of_the_image_are_refused(content, write_source):
    content["annotations"] = [annotation(1, [0.2, 0.3, 0.4, 0.3]), annotation(2, [0.5, 0.5, 1, 1])]
    fatal, text = told(write_source(content))[0]
    assert fatal
    assert "these look like shares of width and height" in text
    content["annotations"][1]["bbox"] = [5, 5, 10, 10]
    assert not any("shares" in text for _, text in told(write_source(content)))


def test_turned_repeated_ignored_and_tiny_boxes_are_reported_with_their_number(
    content, write_source
):
    content["annotations"] = [
        annotation(1, [5, 5, 9, 9], attributes={"rotation": 40.0}),
        annotation(2, [6, 5, 9, 9], attributes={"rotation": 360.0}),  # not turned at all
        annotation(3, [6, 5, 9, 9]),
        annotation(4, [6, 5, 9, 9], iscrowd=1),  # a crowd is no object
        annotation(5, [7, 5, 9, 9], ignore=1),
        annotation(6, [8, 5, 0.5, 0.5]),
        annotation(7, [8, 6, 1, 1]),
    ]
    expected = ["1 boxes with a rotation", "1 boxes that repeat", "1 boxes with `ignore`"]
    expected.append("2 boxes such as [8, 5, 0.5, 0.5]")
    faults = told(write_source(content))
    assert [fatal for fatal, _ in faults] == [False] * 4
    for (_, text), start in zip(faults, expected, strict=True):
        assert text.startswith(f"has {start}")


def test_an_object_listed_twice_is_kept_once(content, write_source, tmp_path):
    polygon = [[5, 5, 14, 5, 14, 14, 5, 14]]
    other = [[5, 5, 14, 5, 14, 14]]
    content["annotations"] = [
        annotation(1, [5, 5, 9, 9], segmentation=polygon),
        annotation(2, [5, 5, 9, 9], segmentation=polygon),
        annotation(3, [5, 5, 9, 9], segmentation=other),  # perhaps another object
    ]
    changes, copy = mended(write_source(content), tmp_path / "out")
    assert changes == {"annotations left out: the same twice": 1}
    assert [each["id"] for each in copy["annotations"]] == [1, 3]


def test_a_wrong_area_is_reported_for_evaluation_and_taken_from_the_mask(
    content, write_source, tmp_path
):
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    content["annotations"] = [
        annotation(1, [5, 5, 20, 20], segmentation=square, area=1.0),
        annotation(2, [4, 5, 21, 20], segmentation=square, area=300),  # near enough to 400
    ]
    source = write_source(content)
    (text,) = [text for _, text in told(source, training=False) if "area" in text]
    assert text.startswith(
        "has 1 of 2 objects with a wrong `area`, such as area 1.0 for a mask of 400 px"
    )
    changes, copy = mended(source, tmp_path / "out")
    assert changes == {"areas taken from the mask": 1}
    assert [each["area"] for each in copy["annotations"]] == [400, 300]


@pytest.mark.parametrize(
    ("fields", "key", "right"),
    [
        ({"bbox": ["4", "4.5", "16", "12"]}, "bbox", [4, 4.5, 16, 12]),
        ({"bbox": [20, 16, -16, -12]}, "bbox", [4, 4, 16, 12]),  # drawn from the right and below
        ({"iscrowd": "0"}, "iscrowd", 0),  # a text would count as true
        ({"image_id": "a.png"}, "image_id", 10),
        (
            {"segmentation": "[[4, 4, 20, 4, 20, 16]]"},
            "segmentation",
            [[4, 4, 20, 4, 20, 16]],
        ),
        ({"category_id": "cat"}, "category_id", 3),
        (
            {"segmentation": [[[4, 4], [20, 4], [20, 16]]]},
            "segmentation",
            [[4, 4, 20, 4, 20, 16]],
        ),
        (
            {"segmentation": [["4", "4", "20", "4", "20", "16"]]},
            "segmentation",
            [[4, 4, 20, 4, 20, 16]],
        ),
    ],
)
def test_values_with_a_clear_meaning_are_rewritten_in_the_right_form(
    content, write_source, tmp_path, fields, key, right
):
    content["categories"] = [{"id": 3, "name": "cat"}]
    content["annotations"] = [annotation(1, [4, 4, 16, 12]) | fields]
    source = write_source(content)
    assert any(fatal for fatal, _ in told(source, training=False))
    changes, copy = mended(source, tmp_path / "out")
    assert sum(changes.values()) == 1
    assert copy["annotations"][0][key] == right


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        ([{"id": 3, "name": 7}], ["7"]),
        ([{"id": 3, "name": " "}], ["class 3"]),
        ([{"id": 3}], ["class 3"]),
        ([], ["class 3"]),
    ],
)
def test_classes_without_a_name_get_one(content, write_source, tmp_path, categories, names):
    content["categories"] = categories
    content["annotations"] = [annotation(1, [4, 4, 16, 12])]
    source = write_source(content)
    assert told(source)[0][0]
    _, copy = mended(source, tmp_path / "out")
    assert [category["name"] for category in copy["categories"]] == names
    assert len(copy["annotations"]) == 1


def test_a_category_that_only_groups_others_is_reported(content, write_source):
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "pets"},
        {"id": 4, "name": "person", "supercategory": "person"},  # as in COCO: a class of its own
    ]
    content["annotations"] = [annotation(1, [4, 4, 16, 12])]
    (only,) = told(write_source(content))
    assert only[1].startswith("category id 0 'pets' has no object")


@pytest.mark.parametrize("listed", ["https://host/up/a.png?sig=1", "..\\photos\\a.png"])
def test_a_file_name_from_another_machine_is_found_by_its_last_parts(
    content, write_source, tmp_path, listed
):
    content["images"] = [image for image in content["images"] if image["file_name"] == "a.png"]
    content["annotations"] = [annotation(1, [4, 4, 16, 12])]
    source = write_source(content)
    content["images"][0]["file_name"] = listed
    source.annotations.write_text(json.dumps(content))
    (fault,) = check_source(source, training=True)
    assert "the file 'a.png' is there" in fault.way_out
    _, copy = mended(source, tmp_path / "out")
    assert copy["images"][0]["file_name"] == "a.png"


def scattered(count):
    """Boxes of 16 x 12 px anywhere in the image of id 10, as x, y, width, height."""
    generator = np.random.default_rng(0)
    places = generator.integers((0, 0), (45, 29), (count, 2))
    return [[int(x), int(y), 16, 12] for x, y in places]


@pytest.mark.parametrize(("shift", "looks"), [(0.5, "the middle"), (-0.5, "too far left and up")])
def test_boxes_shifted_by_half_a_box_are_refused_and_not_clipped(
    content, write_source, tmp_path, shift, looks
):
    boxes = [[x + shift * w, y + shift * h, w, h] for x, y, w, h in scattered(20)]
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    source = write_source(content)
    fatal, text = told(source)[0]
    assert fatal
    assert "none would if it were moved by half its size" in text
    assert looks in text
    with pytest.raises(DataError, match=looks):
        write_fixed(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_boxes_with_y_before_x_are_refused_and_not_clipped(content, write_source, tmp_path):
    boxes = [[y, x, h, w] for x, y, w, h in scattered(20)]
    assert 3 <= sum(y + h > 40 for _, y, _, h in boxes) < 20  # the image has 60 x 40 px
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    source = write_source(content)
    fatal, text = told(source)[0]
    assert fatal
    assert "none would if x and y changed places" in text
    with pytest.raises(DataError, match="y seems to be first"):
        write_fixed(source, tmp_path / "out")


@pytest.mark.parametrize(
    "boxes",
    [
        scattered(20),
        # A few end beyond the image, and others touch its left edge.
        [*scattered(20), [0, 4, 16, 12], *[[50, 4, 16, 12]] * 3],
        [[48, 20, 16, 12]]
        * 8,  # all there: by chance as far from left and top as boxes of the middle
    ],
)
def test_boxes_that_end_beyond_their_image_are_not_always_taken_for_shifted(
    content, write_source, boxes
):
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    assert not any("moved" in text for _, text in told(write_source(content)))


def test_boxes_in_percent_of_large_images_are_reported_and_left_as_they_are(
    content, write_source, tmp_path
):
    content["images"] = [{"id": 10, "file_name": "large.png", "width": 640, "height": 480}]
    boxes = [[x * 1.6, y * 2.4, 20, 20] for x, y, _, _ in scattered(8)]
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    found = told(write_source(content))
    (warning,) = [(fatal, text) for fatal, text in found if "per cent" in text]
    assert not warning[0]
    assert "that all end by 100, in images whose longer side has 640 px or more" in warning[1]
    # One box elsewhere, and they are pixels.
    content["annotations"].append(annotation(9, [200, 100, 30, 30]))
    assert not any("per cent" in text for _, text in told(write_source(content)))


def test_boxes_in_thousandths_of_wide_images_are_reported(content, write_source):
    content["images"] = [{"id": 10, "file_name": "large.png", "width": 1920, "height": 1080}]
    boxes = [[x * 15, y * 24, 200, 200] for x, y, _, _ in scattered(8)]
    content["annotations"] = [annotation(i, box) for i, box in enumerate(boxes, start=1)]
    assert any("these look like thousandths" in text for _, text in told(write_source(content)))


@pytest.mark.parametrize(
    "bbox",
    [
        {"x": 4, "y": 4, "width": 16, "height": 12},
        {"left": "4", "top": "4", "width": "16", "height": "12"},
        {"xmin": 4, "ymin": 4, "xmax": 20, "ymax": 16},
        {"xMax": 20, "yMax": 16, "xMin": 4, "yMin": 4},
        {"x_center": 12, "y_center": 10, "w": 16, "h": 12},
        "4 4 16 12",
        "[4, 4, 16, 12]",
        [[4, 4, 16, 12]],
    ],
)
def test_boxes_in_another_form_are_reported_with_the_way_out_and_fixed(
    content, write_source, tmp_path, bbox
):
    content["annotations"] = [annotation(1, bbox)]
    source = write_source(content)
    ((fatal, text),) = told(source)
    assert fatal
    assert "the four numbers x, y, width, height" in text
    assert "let `boxseg data check --fix` do it" in text
    changes, copy = mended(source, tmp_path / "out")
    assert changes == {"boxes written as a list of four numbers": 1}
    assert [each["bbox"] for each in copy["annotations"]] == [[4, 4, 16, 12]]


@pytest.mark.parametrize(
    "bbox",
    [
        [[4, 4], [20, 16]],  # two corners, or a corner and the sides
        {"x": 4, "y": 4, "r": 3, "s": 2},
        {"x": 4, "y": 4, "width": 16, "height": 12, "rotation": 20},
        {"x": 4, "y": 4, "width": None, "height": 12},
        "4 4 16",
        "4 4 16 many",
        "nan nan nan nan",
    ],
)
def test_boxes_without_one_meaning_are_left_out_by_name(content, write_source, tmp_path, bbox):
    content["annotations"] = [annotation(1, bbox)]
    source = write_source(content)
    assert told(source)[0][1].endswith(f"({FIX_IN_FILE})")
    changes, copy = mended(source, tmp_path / "out")
    assert changes == {"annotations left out: malformed": 1}
    assert copy["annotations"] == []


def test_polygons_inside_others_and_names_that_differ_in_case_are_reported(content, write_source):
    outer, inner = [5, 5, 30, 5, 30, 30, 5, 30], [10, 10, 20, 10, 20, 20]
    content["annotations"] = [annotation(1, [5, 5, 25, 25], segmentation=[outer, inner])]
    content["images"][1]["file_name"] = content["images"][0]["file_name"].upper()
    found = told(write_source(content), look_at_masks=True)
    assert [fatal for fatal, _ in found] == [False, False]
    assert found[0][1].startswith("has 1 masks with a polygon inside another of their polygons")
    assert found[1][1].startswith("lists a.png and A.PNG, which differ in their case alone")


def test_a_rare_polygon_inside_another_is_clumsy_drawing(content, write_source):
    outer, inner = [5, 5, 30, 5, 30, 30, 5, 30], [10, 10, 20, 10, 20, 20]
    content["annotations"] = [
        annotation(number, [5, 5, 25, 25], segmentation=[outer]) for number in range(1, 1001)
    ]
    content["annotations"][0]["segmentation"].append(inner)
    found = told(write_source(content), look_at_masks=True)
    assert not [text for _, text in found if "inside another" in text]


def test_ids_of_more_than_64_bits_are_replaced(content, write_source, tmp_path):
    content["images"][0]["id"] = 2**70
    content["annotations"] = [annotation(1, [4, 4, 16, 12], image_id=2**70)]
    changes, copy = mended(write_source(content), tmp_path / "out")
    assert changes == {"images given another id": 1}
    (entry,) = copy["annotations"]
    first, *_ = [image["id"] for image in copy["images"] if image["file_name"] == "a.png"]
    assert entry["image_id"] == first
