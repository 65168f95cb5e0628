"""A split keeps groups together, gives the same parts each time, and loses nothing."""

import json

import pytest

from boxseg.coco.split import split_coco
from boxseg.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "all.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def videos():
    """Forty images in eight videos and four folders, a box and a mask each; ids have gaps."""
    images = [
        {"id": 3 * n, "file_name": f"f{n % 4}/{n}.png", "width": 9, "height": 9, "video": n % 8}
        for n in range(40)
    ]
    annotations = [
        {
            "id": 5 * n,
            "image_id": 3 * n,
            "category_id": 2,
            "bbox": [1, 1, 4, 4],
            "segmentation": [[1, 1, 5, 1, 5, 5]],
        }
        for n in range(40)
    ]
    return {
        "info": {"by": "us"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 2, "name": "a"}],
    }


def ids(part):
    return {image["id"] for image in part["images"]}


@pytest.mark.parametrize("group", ["video", "folder"])
def test_groups_stay_together_and_nothing_is_lost(write, videos, group):
    parts = split_coco(write(videos), val=0.25, group=group)
    name_of = (
        (lambda image: image["file_name"][:2])
        if group == "folder"
        else (lambda image: image["video"])
    )
    groups = {name: {name_of(image) for image in part["images"]} for name, part in parts.items()}
    assert not groups["train"] & groups["val"]
    assert len(parts["val"]["images"]) == 10
    assert ids(parts["train"]) | ids(parts["val"]) == ids(videos)
    for part in parts.values():
        assert {each["image_id"] for each in part["annotations"]} == ids(part)
        assert all(each in videos["annotations"] for each in part["annotations"])
        assert (part["info"], part["categories"]) == (videos["info"], videos["categories"])


def test_the_order_of_the_file_does_not_matter_and_the_seed_does(write, videos):
    first = ids(split_coco(write(videos), val=0.2)["val"])
    videos["images"].reverse()
    assert ids(split_coco(write(videos), val=0.2)["val"]) == first
    assert ids(split_coco(write(videos), val=0.2, seed=1)["val"]) != first
    assert len(first) == 8


def test_a_file_listed_twice_is_in_one_part_only(write, videos):
    videos["images"] = [
        image | {"file_name": f"{image['id'] % 2}.png"} for image in videos["images"]
    ]
    parts = split_coco(write(videos), val=0.5)
    names = [{image["file_name"] for image in part["images"]} for part in parts.values()]
    assert sorted(map(sorted, names)) == [["0.png"], ["1.png"]]


@pytest.mark.parametrize("val", [0.001, 0.999])
def test_neither_part_is_without_images(write, videos, val):
    assert all(part["images"] for part in split_coco(write(videos), val=val).values())


def test_a_group_larger_than_its_share_goes_if_there_is_no_smaller_one(write, videos):
    # 15 and 25 images
    videos["images"] = [image | {"video": int(image["id"] < 45)} for image in videos["images"]]
    assert len(split_coco(write(videos), val=0.1, group="video")["val"]["images"]) == 15


@pytest.mark.parametrize(
    ("change", "settings", "error", "told"),
    [
        (lambda c: None, {"val": 1.0}, ConfigError, "--val 1"),
        (lambda c: None, {"val": float("nan")}, ConfigError, "--val nan"),
        (lambda c: None, {"group": "colour"}, ConfigError, "file_name, height, id, video, width"),
        (
            lambda c: c["images"][4].pop("video"),
            {"group": "video"},
            ConfigError,
            "image 12 .* has no such field",
        ),
        (
            lambda c: c.update(images=c["images"][:1], annotations=[]),
            {},
            DataError,
            "1 images in 1 groups",
        ),
        (
            lambda c: c["annotations"][3].update(image_id=1),
            {},
            DataError,
            "annotation 15 names image 1",
        ),
        (
            lambda c: c["annotations"][3].update(category_id=1),
            {},
            DataError,
            "annotation 15 has category id 1, which",
        ),
        (lambda c: c["images"][1].update(id=0), {}, DataError, "occurs 2 times"),
        (lambda c: c["images"][1].pop("file_name"), {}, DataError, "has no `file_name`"),
    ],
)
def test_data_that_cannot_be_split_is_refused_with_the_reason(
    write, videos, change, settings, error, told
):
    change(videos)
    with pytest.raises(error, match=told):
        split_coco(write(videos), **{"val": 0.2, **settings})
