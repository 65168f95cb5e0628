"""Boxes in another notation, turned, drawn twice or too small are told; what has one meaning only is mended."""

import json

import pytest

from boxseg.coco.checks import check_source
from boxseg.coco.fix import write_fixed


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


def test_boxes_that_are_corners_are_refused_and_mended(content, write_source, tmp_path):
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


def test_boxes_in_shares_are_refused(content, write_source):
    content["annotations"] = [annotation(1, [0.2, 0.3, 0.4, 0.3]), annotation(2, [0.5, 0.5, 1, 1])]
    fatal, text = told(write_source(content))[0]
    assert fatal
    assert "these look like shares of width and height" in text
    content["annotations"][1]["bbox"] = [5, 5, 10, 10]
    assert not any("shares" in text for _, text in told(write_source(content)))


def test_turned_repeated_ignored_and_tiny_boxes_are_told_with_their_number(content, write_source):
    content["annotations"] = [
        annotation(1, [5, 5, 9, 9], attributes={"rotation": 40.0}),
        annotation(2, [6, 5, 9, 9], attributes={"rotation": 360.0}),  # not turned at all
        annotation(3, [6, 5, 9, 9]),
        annotation(4, [6, 5, 9, 9], iscrowd=1),  # a crowd is no object
        annotation(5, [7, 5, 9, 9], ignore=1),
        annotation(6, [8, 5, 0.5, 0.5]),
    ]
    expected = ["1 boxes with a rotation", "1 boxes that repeat", "1 boxes with `ignore`"]
    expected.append("1 boxes such as [8, 5, 0.5, 0.5]")
    faults = told(write_source(content))
    assert [fatal for fatal, _ in faults] == [False] * 4
    for (_, text), start in zip(faults, expected, strict=True):
        assert text.startswith(f"has {start}")


def test_an_object_that_is_there_twice_is_kept_once(content, write_source, tmp_path):
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


def test_a_wrong_area_is_told_for_evaluation_and_taken_from_the_mask(
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
def test_what_means_the_right_thing_is_written_so(
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


def test_a_category_that_only_groups_others_is_told(content, write_source):
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "pets"},
        {"id": 4, "name": "person", "supercategory": "person"},  # as in COCO: a class of its own
    ]
    content["annotations"] = [annotation(1, [4, 4, 16, 12])]
    (only,) = told(write_source(content))
    assert only[1].startswith("category id 0 'pets' has no object")


@pytest.mark.parametrize(
    "listed", ["https://host/up/a.png?sig=1", "/media/photos/a", "..\\photos\\a.png"]
)
def test_a_name_of_another_machine_is_found_by_its_end(content, write_source, tmp_path, listed):
    content["images"] = [image for image in content["images"] if image["file_name"] == "a.png"]
    content["annotations"] = [annotation(1, [4, 4, 16, 12])]
    source = write_source(content)
    content["images"][0]["file_name"] = listed
    source.annotations.write_text(json.dumps(content))
    (fault,) = check_source(source, training=True)
    assert "the file 'a.png' is there" in fault.way_out
    _, copy = mended(source, tmp_path / "out")
    assert copy["images"][0]["file_name"] == "a.png"
